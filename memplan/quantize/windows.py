"""Documents as windows of tokens: to calibrate on, packed to the brim; to judge on, scored token by token once.

Axes: N windows, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memplan.errors import SourceNotFound, UnsupportedModel, UsageError
from memplan.quantize.documents import Document
from memplan.quantize.text_sets import TextSet
from memplan.quantize.unsupported import NEWER_TRANSFORMERS
from memplan.records import dataclass

# Below this many scored tokens of a domain, the standard error of its perplexity is some 5 %: no gate can be judged.
MIN_SCORED_TOKENS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Windows to run a model over. `token_NT` is int64; shorter windows are padded behind their end.

    Of window n, the tokens from `first_N[n]` to `end_N[n]` (exclusive) are scored, each given all before it in the
    window; token 0 never is. `domain_N` is the domain of each window, `text_bytes` the UTF-8 bytes of the text that is
    scored, by domain.
    """

    token_NT: Tensor
    first_N: tuple[int, ...]
    end_N: tuple[int, ...]
    domain_N: tuple[str, ...]
    text_bytes: dict[str, int]

    @property
    def num_scored(self) -> int:
        """How many tokens are scored."""
        return sum(end - first for first, end in zip(self.first_N, self.end_N, strict=True))


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer in a model's folder. Raises: SourceNotFound where there is none, UnsupportedModel."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            raise SourceNotFound(f"no tokenizer in {path}", hint="download the whole repository") from error
        raise UnsupportedModel(f"the tokenizer of {path} cannot be read: {reason}", hint=NEWER_TRANSFORMERS) from error


def tokens_of(document: Document, tokenizer: Any) -> list[int]:
    """The tokens of a document without any that start or end it; a conversation goes through the chat template."""
    text = document.text
    if document.messages:
        text = document.plain
        if getattr(tokenizer, "chat_template", None):
            messages = [{"role": role, "content": content} for role, content in document.messages]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, verbose=False)
    return [int(token) for token in encoded["input_ids"]]


def calibration_windows(texts: TextSet, tokenizer: Any, *, window_tokens: int, num_windows: int = 0) -> Tensor:
    """Return `token_NT`: all documents one after the other, with an end token between, cut to full windows.

    With `num_windows`, that many at most. Raises: UsageError when there is not one window's worth of text.
    """
    separator = _separator(tokenizer)
    stream: list[int] = []
    for document in texts.documents:
        stream += [*separator, *tokens_of(document, tokenizer)]
        if num_windows and len(stream) >= num_windows * window_tokens:
            break
    full = len(stream) // window_tokens
    count = min(full, num_windows) if num_windows else full
    if not count:
        raise UsageError(
            f"`{texts.name}` has {len(stream):,} tokens to calibrate on, less than one window of {window_tokens:,}",
            hint="give more text, or shorter windows",
        )
    return torch.tensor(stream[: count * window_tokens], dtype=torch.int64).view(count, window_tokens)


def check_enough(token_NT: Tensor, *, widest_inputs: int) -> str | None:
    """Return what to warn of when the calibration text is thin for a model, None when it is not.

    `widest_inputs` is how many inputs the widest layer has. Raises: UsageError when there are fewer tokens than that:
    the statistics of its inputs would leave directions that no token ever took, and rounding be fitted to nothing.
    """
    tokens = token_NT.numel()
    if tokens < widest_inputs:
        raise UsageError(
            f"{tokens:,} tokens are too few to calibrate a layer of {widest_inputs:,} inputs",
            hint=f"give at least {8 * widest_inputs:,} tokens of text; every direction of the inputs must be seen",
        )
    if tokens < 8 * widest_inputs:
        return (
            f"{tokens:,} calibration tokens are thin for layers of {widest_inputs:,} inputs; "
            f"{8 * widest_inputs:,} or more give steadier results"
        )
    return None


def scoring_windows(texts: TextSet, tokenizer: Any, *, window_tokens: int, stride_tokens: int = 0) -> Windows:
    """Return the windows that a perplexity is measured over, domain by domain.

    Without a stride they do not overlap, as in the papers on quantization, and all tokens but a window's first are
    scored. With one, every window starts that many tokens after the last and scores only the tokens that are new, so
    that each has at least `window_tokens - stride_tokens` tokens before it. Raises: UsageError for too little text.
    """
    step = stride_tokens or window_tokens
    if not 0 < step <= window_tokens:
        raise UsageError(
            f"a stride of {step:,} tokens leaves gaps between windows of {window_tokens:,}",
            hint="use a --stride of at most --window",
        )
    if window_tokens < 2:
        raise UsageError(f"a window of {window_tokens} tokens scores nothing", hint="use 2048")
    pieces: list[tuple[list[int], int, str]] = []
    sizes: dict[str, int] = {}
    for domain in texts.domains:
        own = [document for document in texts.documents if document.domain == domain]
        stream = _stream(own, tokenizer)
        sizes[domain] = sum(len(document.plain.encode()) for document in own)
        found = _cut(stream, window_tokens, step)
        scored = sum(len(piece) - first for piece, first in found)
        if scored < MIN_SCORED_TOKENS:
            raise UsageError(
                f"`{texts.name}` has {scored:,} tokens of {domain} text to judge on, under {MIN_SCORED_TOKENS:,}",
                hint="with so few, the perplexity is known to some 5 % only; give more text",
            )
        pieces += [(piece, first, domain) for piece, first in found]
    token_NT = torch.zeros(len(pieces), max(len(piece) for piece, _, _ in pieces), dtype=torch.int64)
    for number, (piece, _, _) in enumerate(pieces):
        token_NT[number, : len(piece)] = torch.tensor(piece)
    return Windows(
        token_NT=token_NT,
        first_N=tuple(first for _, first, _ in pieces),
        end_N=tuple(len(piece) for piece, _, _ in pieces),
        domain_N=tuple(domain for _, _, domain in pieces),
        text_bytes=sizes,
    )


def _stream(documents: Sequence[Document], tokenizer: Any) -> list[int]:
    separator = _separator(tokenizer)
    stream: list[int] = []
    for document in documents:
        stream += [*separator, *tokens_of(document, tokenizer)]
    return stream


def _separator(tokenizer: Any) -> list[int]:
    """The token that starts a text, else the one that ends it; none for a tokenizer that has neither."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [int(token)]
    return []


def _cut(stream: list[int], window: int, step: int) -> list[tuple[list[int], int]]:
    """Windows of a stream with the first token of each to score; a last one of a single token is left out."""
    found: list[tuple[list[int], int]] = []
    seen = 1
    for start in range(0, len(stream), step):
        piece = stream[start : start + window]
        first = max(1, seen - start)
        if len(piece) > first:
            found.append((piece, first))
        seen = start + len(piece) + (step == window)
        if start + window >= len(stream):
            break
    return found
