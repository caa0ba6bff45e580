"""A checkpoint as GGUF: what is read back is what was there, and what is not known is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_models import save_model, windows

pytest.importorskip("gguf")
pytest.importorskip("tokenizers")

from memplan.errors import MissingExtra, UnsupportedModel
from memplan.introspect.resolve import resolve_model
from memplan.quantize.forward import StreamedModel
from memplan.quantize.gguf_file.families import family_of
from memplan.quantize.gguf_file.llama_cpp import check_installed
from memplan.quantize.gguf_file.reader import GgufCheckpoint
from memplan.quantize.gguf_file.vocabulary import _CUTS, read_vocabulary
from memplan.quantize.gguf_file.writer import turned, turned_back, write_gguf
from memplan.quantize.skeleton import Skeleton

TEXTS = ["In 1905 he wrote", "def f(x):\n    return x + 12\n\n\n", "It's  done."]


def with_tokenizer(folder: Path, cut: str = "qwen2") -> Path:
    """Give a model a byte-level tokenizer that cuts text as one of llama.cpp's does."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in _CUTS[cut]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(TEXTS) * 20, " 1905 2012" * 50], trainer)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of a family whose conversion is known."""
    return with_tokenizer(save_model(request.param, tmp_path_factory.mktemp("model") / request.param))


def test_a_16_bit_file_holds_every_weight_as_it_was(model: Path, tmp_path: Path) -> None:
    assert write_gguf(model, tmp_path / "model.gguf", "bf16", TEXTS) == []
    family = family_of(json.loads((model / "config.json").read_text()))
    read = GgufCheckpoint(tmp_path / "model.gguf", model, family)
    for name, weight in load_file(model / "model.safetensors").items():
        assert torch.equal(read.read(name), weight.float()), name


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_a_quantized_file_predicts_what_the_model_does(model: Path, tmp_path: Path, kind: str) -> None:
    write_gguf(model, tmp_path / "model.gguf", kind, TEXTS)
    family = family_of(json.loads((model / "config.json").read_text()))
    skeleton = Skeleton(model, checkpoint=GgufCheckpoint(tmp_path / "model.gguf", model, family))
    tokens = windows(1, 2, 24)[0]
    want, got = (
        torch.cat(list(each.logits(tokens))).log_softmax(-1)
        for each in (StreamedModel(model), StreamedModel(model, skeleton=skeleton))
    )
    divergence = float((want.exp() * (want - got)).sum(-1).mean())
    assert divergence < (1e-4 if kind == "q8_0" else 5e-3)


def test_memplan_reads_the_file_as_it_reads_any_other(tmp_path: Path) -> None:
    model = with_tokenizer(save_model("llama", tmp_path / "model"))
    write_gguf(model, tmp_path / "model.gguf", "q8_0", TEXTS)
    spec = resolve_model(str(tmp_path / "model.gguf"), revision=None, offline=True, introspect="auto")
    assert spec.num_layers == 2
    assert spec.quantization == "gguf:q8_0"


def test_weaving_halves_together_is_undone() -> None:
    weight = torch.randn((32, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(turned_back(turned(weight, 4), 4), weight)
    assert torch.equal(turned(weight, 0), weight)
    # llama.cpp turns neighbours, transformers the first half of a head against the second.
    assert torch.equal(turned(weight, 4)[1], weight[4])


@pytest.mark.parametrize("cut", list(_CUTS))
def test_the_cut_of_a_tokenizer_is_found_by_trying(tmp_path: Path, cut: str) -> None:
    found = read_vocabulary(with_tokenizer(tmp_path, cut), 320, TEXTS)
    assert not found.note  # another cut may be as good, where no merge tells the two apart
    assert cut not in ("gpt-2", "llama-bpe") or found.cut == cut
    assert len(found.tokens) == len(found.kinds) == 320
    assert found.kinds[found.tokens.index(b"<s>")] == 3


def test_a_cut_that_llama_cpp_does_not_have_is_said(tmp_path: Path) -> None:
    with_tokenizer(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    whole["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert "no cut of text like this" in read_vocabulary(tmp_path, 320, TEXTS).note


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, "dynamic"),
        ({"sliding_window": 64}, "sliding windows"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(model: Path, change: dict[str, object], said: str) -> None:
    config = {**json.loads((model / "config.json").read_text()), "use_sliding_window": False, **change}
    if "sliding_window" in change:
        del config["use_sliding_window"]
    with pytest.raises(UnsupportedModel, match=said):
        family_of(config)


def test_a_tokenizer_without_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": {}}}))
    with pytest.raises(UnsupportedModel, match="WordPiece"):
        read_vocabulary(tmp_path, 320, TEXTS)


def test_k_quants_without_llama_cpp_name_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from memplan.quantize.gguf_file import llama_cpp

    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="written by llama"):
        check_installed("q4_k_m")
