"""Whether text to judge a model on was also calibrated on: long runs of words that two sets share."""

from __future__ import annotations

import re
from collections.abc import Iterator

from memplan.errors import UsageError
from memplan.quantize.text_sets import TextSet
from memplan.records import dataclass

# Thirteen words in a row are rarely shared by chance. Source: the contamination study of GPT-3, arXiv 2005.14165, C.
_RUN_WORDS = 13
# Phrases that a field repeats (licences, imports, definitions) are shared by documents that are not copies.
_COPY_FRACTION = 0.2
_WORD = re.compile(r"\w+")
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Documents of the validation part most of whose text, or much of it, is in the calibration part.

    `copies` are (origin, shared fraction of its runs of 13 words); `shared_fraction` is that over all documents.
    """

    copies: tuple[tuple[str, float], ...]
    shared_fraction: float


def find_overlap(calibrate: TextSet, validate: TextSet) -> Overlap:
    """Return what the two parts share."""
    known = {run for document in calibrate.documents for run in _runs(document.plain)}
    copies = []
    shared = total = 0
    for document in validate.documents:
        runs = list(_runs(document.plain))
        found = sum(run in known for run in runs)
        shared, total = shared + found, total + len(runs)
        if runs and found / len(runs) >= _COPY_FRACTION:
            copies.append((document.origin, found / len(runs)))
    return Overlap(copies=tuple(copies), shared_fraction=shared / total if total else 0.0)


def check_disjoint(calibrate: TextSet, validate: TextSet) -> Overlap:
    """Return what the two parts share, which is little. Raises: UsageError when a document was copied."""
    overlap = find_overlap(calibrate, validate)
    if overlap.copies:
        named = ", ".join(origin for origin, _ in overlap.copies[:_SHOWN])
        raise UsageError(
            f"{len(overlap.copies)} documents to validate on are in the calibration text: {named}",
            hint="a model is judged on text that it was not fitted to; give another set to validate on",
        )
    return overlap


def _runs(text: str) -> Iterator[int]:
    """A hash of every run of words; a shorter text is one run."""
    words = [word.lower() for word in _WORD.findall(text)]
    if words and len(words) < _RUN_WORDS:
        yield hash(tuple(words))
    for start in range(len(words) - _RUN_WORDS + 1):
        yield hash(tuple(words[start : start + _RUN_WORDS]))
