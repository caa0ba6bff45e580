"""A tokenizer as GGUF holds it: its tokens, what they are, its merges, and how text is cut before they apply.

llama.cpp knows a tokenizer's cut of text by a name alone. Which of its names cuts like this tokenizer is found by
trying them on text; where none does it exactly, the nearest is taken and said.

Source: vocabularies and pre-tokenizers of llama.cpp (src/llama-vocab.cpp as of llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memplan.quantize.unsupported import UnsupportedHere
from memplan.records import dataclass

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# What each name cuts at, one expression after another. All but the first are of byte-level tokenizers since GPT-2.
_CUTS: Mapping[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "llama-bpe": (_WORDS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",),
    "qwen2": (_WORDS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",),
    "smollm": (r"\p{N}", _GPT2),
}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a file says of the tokenizer; `note` where llama.cpp will cut some text otherwise than the model's own."""

    model: str
    cut: str
    tokens: tuple[bytes, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...] = ()
    note: str = ""


def read_vocabulary(folder: Path, vocab_size: int, texts: Sequence[str]) -> Vocabulary:
    """Return the vocabulary of a model's folder; `texts` are what cuts are tried on.

    Raises: UnsupportedModel for a tokenizer that is neither byte-level BPE nor one of SentencePiece's with bytes.
    """
    path = folder / "tokenizer.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        model = found["model"]
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedHere(f"cannot read {path}, which the GGUF's vocabulary is made from: {error}") from None
    if model.get("type") != "BPE":
        raise UnsupportedHere(f"a tokenizer of type {model.get('type')} as GGUF is not known here")
    if model.get("byte_fallback"):
        return _with_bytes(folder, vocab_size)
    tokens: list[bytes] = [f"[PAD{index}]".encode() for index in range(vocab_size)]
    kinds = [_UNUSED] * vocab_size
    for token, index in model["vocab"].items():
        tokens[index], kinds[index] = token.encode(), _NORMAL
    for added in found.get("added_tokens") or ():
        tokens[added["id"]] = added["content"].encode()
        kinds[added["id"]] = _CONTROL if added.get("special") else _USER_DEFINED
    cut, note = _cut(path, texts)
    return Vocabulary(model="gpt2", cut=cut, tokens=tuple(tokens), kinds=tuple(kinds), note=note)


def _with_bytes(folder: Path, vocab_size: int) -> Vocabulary:
    """A vocabulary of SentencePiece, whose pieces have scores."""
    from gguf.vocab import LlamaHfVocab

    rows = list(LlamaHfVocab(folder).all_tokens())
    rows += [(f"[PAD{index}]".encode(), -1000.0, _UNUSED) for index in range(len(rows), vocab_size)]
    return Vocabulary(
        model="llama",
        cut="default",
        tokens=tuple(token for token, _, _ in rows),
        kinds=tuple(int(kind) for _, _, kind in rows),
        scores=tuple(float(score) for _, score, _ in rows),
    )


def _cut(path: Path, texts: Sequence[str]) -> tuple[str, str]:
    """The name whose cut gives this tokenizer's own tokens, on most texts at least."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    whole = Tokenizer.from_file(str(path))
    wanted = [whole.encode(text, add_special_tokens=False).ids for text in texts]
    best, most = "", -1
    for name, expressions in _CUTS.items():
        tried: Any = Tokenizer.from_file(str(path))
        steps = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
        tried.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])
        same = sum(
            tried.encode(text, add_special_tokens=False).ids == ids for text, ids in zip(texts, wanted, strict=True)
        )
        if same > most:
            best, most = name, same
        if same == len(texts):
            return name, ""
    return best, (
        f"llama.cpp has no cut of text like this tokenizer's: as `{best}`, {len(texts) - most} of {len(texts)} texts "
        "come out in other tokens"
    )
