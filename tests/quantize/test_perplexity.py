"""Perplexity and what it is compared by: known answers, and the same figures however a model is run."""

from __future__ import annotations

from collections.abc import Iterator
from math import log

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from memplan.errors import CorruptFile, UsageError  # noqa: E402 - after the skip
from memplan.introspect.resolve import weights_folder  # noqa: E402
from memplan.quantize.forward import Forward, Progress, StreamedModel, WholeModel, batches  # noqa: E402
from memplan.quantize.kv_rounding import KvRounding, kv_dtype_named  # noqa: E402
from memplan.quantize.perplexity import TokenScores, measure, score, summarize  # noqa: E402
from memplan.quantize.text_sets import TextSet, read_set  # noqa: E402
from memplan.quantize.windows import Windows, calibration_windows, load_tokenizer, scoring_windows  # noqa: E402

DEMO = weights_folder("demo")
VOCABULARY = 5


class Bigrams(Forward):
    """A model that looks at one token only: row t of a table has the logits after token t."""

    def __init__(self, table_VV: torch.Tensor) -> None:
        self.table_VV = table_VV

    def logits(self, token_NT: torch.Tensor, progress: Progress | None = None) -> Iterator[torch.Tensor]:
        for token_BT in batches(token_NT):
            yield self.table_VV[token_BT]


@pytest.fixture(scope="module")
def windows() -> Windows:
    generator = torch.Generator().manual_seed(0)
    token_NT = torch.randint(VOCABULARY, (12, 400), generator=generator)
    return Windows(
        token_NT=token_NT,
        first_N=(1,) * 12,
        end_N=(400,) * 10 + (300, 2),
        domain_N=("a",) * 6 + ("b",) * 6,
        text_bytes={"a": 6000, "b": 5000},
    )


@pytest.fixture(scope="module")
def demo_windows() -> Windows:
    texts = read_set("builtin", "validate")
    few = TextSet(name="few", part="validate", documents=texts.documents[:4])
    assert DEMO is not None
    return scoring_windows(few, load_tokenizer(DEMO), window_tokens=256)


def test_a_model_that_knows_nothing_has_the_size_of_its_vocabulary_as_perplexity(windows: Windows) -> None:
    (a, b), overall = measure(Bigrams(torch.zeros(VOCABULARY, VOCABULARY)), windows)
    assert a.perplexity == pytest.approx(VOCABULARY)
    assert (a.tokens, b.tokens, overall.tokens) == (6 * 399, 4 * 399 + 299 + 1, windows.num_scored)
    assert a.bits_per_byte == pytest.approx(log(VOCABULARY, 2) * a.tokens / 6000)
    assert a.difference is None


def test_a_model_beside_itself_differs_in_nothing(windows: Windows) -> None:
    model = Bigrams(torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1)))
    _, overall = measure(model, windows, base=model)
    assert overall.difference is not None
    assert overall.difference.perplexity_increase == 0
    assert overall.difference.kl_divergence.mean == pytest.approx(0, abs=1e-12)
    assert overall.difference.top1_agreement.mean == 1


def test_the_divergence_is_that_of_the_base_from_the_model() -> None:
    base_V, own_V = torch.tensor([0.7, 0.2, 0.1, 0.0, 0.0]), torch.tensor([0.5, 0.1, 0.2, 0.1, 0.1])
    expected = 0.7 * log(0.7 / 0.5) + 0.2 * log(0.2 / 0.1) + 0.1 * log(0.1 / 0.2)
    one = Windows(
        token_NT=torch.zeros(1, 300, dtype=torch.int64),
        first_N=(1,),
        end_N=(300,),
        domain_N=("a",),
        text_bytes={"a": 300},
    )
    (found,), _ = measure(Bigrams(own_V.log().expand(5, 5)), one, base=Bigrams(base_V.log().expand(5, 5)))
    assert found.difference is not None
    assert found.difference.kl_divergence.mean == pytest.approx(expected, rel=1e-5)
    assert found.difference.loss_increase.mean == pytest.approx(log(0.7 / 0.5), rel=1e-5)


def test_the_standard_error_is_that_of_a_mean_where_tokens_are_independent() -> None:
    generator = torch.Generator().manual_seed(2)
    loss_S = torch.rand(200_000, generator=generator, dtype=torch.float64)
    figure = summarize("a", [TokenScores(loss_S=part) for part in loss_S.split(2048)], 1).loss
    assert figure.mean == pytest.approx(0.5, abs=0.005)
    assert figure.standard_error == pytest.approx((1 / 12) ** 0.5 / 200_000**0.5, rel=0.1)


def test_predictions_that_are_no_numbers_are_refused(windows: Windows) -> None:
    with pytest.raises(CorruptFile, match="not finite"):
        measure(Bigrams(torch.full((VOCABULARY, VOCABULARY), float("nan"))), windows)


def test_models_of_different_vocabularies_are_not_compared(windows: Windows) -> None:
    with pytest.raises(UsageError, match="vocabularies of 6 and 5 tokens"):
        measure(Bigrams(torch.zeros(5, 5)), windows, base=Bigrams(torch.zeros(6, 6)))


def test_the_loss_is_the_one_that_transformers_computes(demo_windows: Windows) -> None:
    assert DEMO is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    scores = list(score(WholeModel(DEMO), demo_windows))
    for number in (0, len(scores) - 1):
        token_1T = demo_windows.token_NT[number : number + 1, : demo_windows.end_N[number]]
        with torch.no_grad():
            expected = model(input_ids=token_1T, labels=token_1T).loss.item()
        assert scores[number].loss_S.mean().item() == pytest.approx(expected, rel=1e-4)


def test_the_demo_model_has_learned_to_read(demo_windows: Windows) -> None:
    assert DEMO is not None
    _, overall = measure(WholeModel(DEMO), demo_windows)
    assert overall.perplexity < 250  # of 4,096 tokens


@pytest.mark.parametrize("kv", [None, "fp8", "int8"])
def test_a_model_run_block_by_block_gives_the_same_figures(demo_windows: Windows, kv: str | None) -> None:
    assert DEMO is not None
    scales_NT = calibration_windows(
        read_set("code", "calibrate"), load_tokenizer(DEMO), window_tokens=256, num_windows=4
    )
    found = []
    for kind in (WholeModel, StreamedModel):
        rounding = KvRounding(kv_dtype_named(kv)) if kv else None
        found.append(measure(kind(DEMO, kv=rounding, calibration_NT=scales_NT if kv else None), demo_windows))
    assert found[0] == found[1]


def test_a_cache_of_eight_bits_costs_little_and_fp8_more_than_int8(demo_windows: Windows) -> None:
    assert DEMO is not None
    scales_NT = calibration_windows(
        read_set("code", "calibrate"), load_tokenizer(DEMO), window_tokens=256, num_windows=4
    )
    divergence = {}
    for name in ("fp8", "int8"):
        rounding = KvRounding(kv_dtype_named(name))
        model = WholeModel(DEMO, kv=rounding, calibration_NT=scales_NT)
        _, overall = measure(model, demo_windows, base=WholeModel(DEMO))
        assert overall.difference is not None
        divergence[name] = overall.difference.kl_divergence.mean
        assert sorted(rounding.scales()) == list(range(6))
        assert all(each.k_scale > 0 and each.v_scale > 0 for each in rounding.scales().values())
    assert 0 < divergence["int8"] < divergence["fp8"] < 0.02


def test_a_cache_type_that_is_not_evaluated_is_refused() -> None:
    with pytest.raises(UsageError, match="not a cache type that can be evaluated: `nvfp4`"):
        kv_dtype_named("nvfp4")
