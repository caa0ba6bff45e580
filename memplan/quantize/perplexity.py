"""How well a model predicts text, and how far its predictions are from those of the model it was made from.

Axes: B windows of a batch, T tokens, S scored tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt

import torch
from torch import Tensor

from memplan.domain.quality import OVERALL, Difference, DomainQuality, Figure
from memplan.errors import CorruptFile, UsageError
from memplan.quantize.forward import Forward, Progress, batches
from memplan.quantize.windows import Windows
from memplan.records import dataclass

# Losses of neighbouring tokens go together; of runs this long hardly. Standard errors are those of sums over runs.
_RUN_TOKENS = 128
# Logits are taken to float32 for so many tokens at a time.
_CHUNK_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Of one window's scored tokens, float64 on the CPU: the loss, and where there is a base its loss, the divergence
    from it, and whether both rank the same token first (1) or not (0).
    """

    loss_S: Tensor
    base_loss_S: Tensor | None = None
    divergence_S: Tensor | None = None
    agrees_S: Tensor | None = None


def measure(
    model: Forward, windows: Windows, *, base: Forward | None = None, progress: Progress | None = None
) -> tuple[tuple[DomainQuality, ...], DomainQuality]:
    """Return the quality over every domain in the order of the windows, and over all of them.

    Raises: CorruptFile for a model whose predictions are not finite; UsageError for a base of another vocabulary.
    """
    scores = list(score(model, windows, base=base, progress=progress))
    domains = tuple(dict.fromkeys(windows.domain_N))
    found = tuple(
        summarize(
            domain,
            [each for each, of in zip(scores, windows.domain_N, strict=True) if of == domain],
            windows.text_bytes[domain],
        )
        for domain in domains
    )
    return found, summarize(OVERALL, scores, sum(windows.text_bytes[domain] for domain in domains))


@torch.no_grad()
def score(
    model: Forward, windows: Windows, *, base: Forward | None = None, progress: Progress | None = None
) -> Iterator[TokenScores]:
    """Yield the scores of every window, in order. Raises: as `measure`."""
    own = model.logits(windows.token_NT, progress)
    bases = base.logits(windows.token_NT) if base is not None else None
    number = 0
    for token_BT in batches(windows.token_NT):
        parts: list[list[TokenScores]] = [[] for _ in token_BT]
        place = 0
        while place < token_BT.shape[1]:
            place += _score_piece(own, bases, token_BT, place, number, windows, parts)
        yield from map(_one_window, parts)
        number += len(token_BT)


def _score_piece(
    own: Iterator[Tensor],
    bases: Iterator[Tensor] | None,
    token_BT: Tensor,
    place: int,
    number: int,
    windows: Windows,
    parts: list[list[TokenScores]],
) -> int:
    """Score the next piece of a batch, which starts at token `place`, and return how long it is.

    A function of its own, so that no logits are held while the next are made.
    """
    logits_BTV = next(own)
    base_BTV = next(bases) if bases is not None else None
    _check_vocabularies(logits_BTV, base_BTV)
    for row, found in enumerate(parts):
        first = max(place, windows.first_N[number + row] - 1)
        end = min(place + logits_BTV.shape[1], windows.end_N[number + row] - 1)
        if first < end:
            base_SV = None if base_BTV is None else base_BTV[row, first - place : end - place]
            logits_SV = logits_BTV[row, first - place : end - place]
            found.append(_score_tokens(token_BT[row, first + 1 : end + 1], logits_SV, base_SV))
    return int(logits_BTV.shape[1])


def _check_vocabularies(logits_BTV: Tensor, base_BTV: Tensor | None) -> None:
    if base_BTV is not None and base_BTV.shape != logits_BTV.shape:
        raise UsageError(
            f"the two models have vocabularies of {base_BTV.shape[2]:,} and {logits_BTV.shape[2]:,} tokens",
            hint="--against takes the model that this one was made from",
        )


def _one_window(parts: Sequence[TokenScores]) -> TokenScores:
    """The scores of a window that came in pieces."""
    if len(parts) == 1:
        return parts[0]
    if any(part.base_loss_S is None for part in parts):
        return TokenScores(loss_S=torch.cat([part.loss_S for part in parts]))
    return TokenScores(
        loss_S=torch.cat([part.loss_S for part in parts]),
        base_loss_S=torch.cat([_given(part.base_loss_S) for part in parts]),
        divergence_S=torch.cat([_given(part.divergence_S) for part in parts]),
        agrees_S=torch.cat([_given(part.agrees_S) for part in parts]),
    )


def summarize(domain: str, scores: Sequence[TokenScores], text_bytes: int) -> DomainQuality:
    """Return the figures over some windows."""
    difference = None
    if all(each.base_loss_S is not None for each in scores):
        difference = Difference(
            base_loss=_figure([_given(each.base_loss_S) for each in scores]),
            loss_increase=_figure([each.loss_S - _given(each.base_loss_S) for each in scores]),
            kl_divergence=_figure([_given(each.divergence_S) for each in scores]),
            top1_agreement=_figure([_given(each.agrees_S) for each in scores]),
        )
    return DomainQuality(
        domain=domain,
        tokens=sum(len(each.loss_S) for each in scores),
        text_bytes=text_bytes,
        loss=_figure([each.loss_S for each in scores]),
        difference=difference,
    )


def _score_tokens(target_S: Tensor, logits_SV: Tensor, base_SV: Tensor | None) -> TokenScores:
    loss_S = torch.empty(len(target_S), dtype=torch.float64)
    base_loss_S, divergence_S, agrees_S = (torch.empty_like(loss_S) for _ in range(3))
    for start in range(0, len(target_S), _CHUNK_TOKENS):
        chunk = slice(start, start + _CHUNK_TOKENS)
        wanted_S1 = target_S[chunk, None].to(logits_SV.device)
        log_SV = logits_SV[chunk].log_softmax(-1, dtype=torch.float32)
        loss_S[chunk] = -log_SV.gather(1, wanted_S1)[:, 0].double().cpu()
        if base_SV is not None:
            base_log_SV = base_SV[chunk].to(log_SV.device).log_softmax(-1, dtype=torch.float32)
            base_loss_S[chunk] = -base_log_SV.gather(1, wanted_S1)[:, 0].double().cpu()
            agrees_S[chunk] = (log_SV.argmax(-1) == base_log_SV.argmax(-1)).double().cpu()
            terms_SV, part_SV = log_SV.neg_().add_(base_log_SV), base_log_SV.exp_()
            # 0 * (-inf - x) where the base rules a token out is no divergence, not NaN.
            divergence_S[chunk] = terms_SV.mul_(part_SV).masked_fill_(part_SV == 0, 0).sum(-1).double().cpu()
    if not bool(loss_S.isfinite().all()):
        raise CorruptFile(
            "the model's predictions are not finite numbers (NaN or infinite)",
            hint="its weights are broken, or too large for the type it computes in",
        )
    if base_SV is None:
        return TokenScores(loss_S=loss_S)
    return TokenScores(loss_S=loss_S, base_loss_S=base_loss_S, divergence_S=divergence_S, agrees_S=agrees_S)


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _figure(values: Sequence[Tensor]) -> Figure:
    """The mean over all tokens, and its standard error as a ratio of sums over runs of tokens.

    Source: the estimator of a ratio from clusters of unequal size, Cochran, Sampling Techniques, 3rd ed., 6.3.
    """
    runs = [run for value_S in values for run in value_S.split(_RUN_TOKENS)]
    sums = torch.stack([run.sum() for run in runs])
    sizes = torch.tensor([len(run) for run in runs], dtype=torch.float64)
    mean = float(sums.sum() / sizes.sum())
    if len(runs) < 2:
        return Figure(mean=mean, standard_error=float("nan"))
    spread = float(((sums - mean * sizes) ** 2).sum())
    error = sqrt(spread * len(runs) / (len(runs) - 1)) / float(sizes.sum())
    return Figure(mean=mean, standard_error=error)
