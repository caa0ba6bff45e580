"""How a cause is put: one sentence with figures, and the evidence that it rests on."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memplan.doctor.facts import Facts
from memplan.domain.diagnosis import Diagnosis, Evidence, Severity
from memplan.records import dataclass
from memplan.units import GIB, MIB, format_gib

_TERMS = (
    ("GPU memory", "total_bytes"),
    ("free on the GPU", "free_bytes"),
    ("in use before the start", "initial_bytes"),
    ("the engine's part", "requested_bytes"),
    ("weights", "weights_bytes"),
    ("activations at the peak", "activation_bytes"),
    ("outside of PyTorch", "non_torch_bytes"),
    ("CUDA graphs", "graphs_bytes"),
    ("KV cache available", "available_bytes"),
    ("KV cache needed", "needed_bytes"),
    ("asked for when it ran out", "wanted_bytes"),
    ("allocated by PyTorch", "allocated_bytes"),
    ("reserved and unused", "unallocated_bytes"),
    ("held by this process", "process_bytes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A line that says by itself what is the matter.

    `at` is its pattern. In the `sentence` stand the pattern's own figures: `{seqs:n}` a count, `{swap:size}` a size,
    `{option}` a word.
    """

    at: str
    cause: str
    sentence: str
    because: str = ""


def refused(facts: Facts, refusals: Sequence[Refusal]) -> Iterator[Diagnosis]:
    """Yield a diagnosis for each of these lines that is there."""
    for each in refusals:
        if place := facts.seen.last(each.at):
            sentence = _Figures().vformat(each.sentence, (), place.values)
            yield told(facts, each.cause, sentence, because=each.because, at=(each.at,))


class _Figures(string.Formatter):
    """Fills in what a line says, as it is put in sentences; what the line lacks is unknown."""

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs.get(str(key))

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec == "size":
            return size(value)
        if value is None:
            return "unknown"
        return f"{value:,.0f}" if format_spec == "n" else str(value)


def size(value: float | None) -> str:
    """A size in words; small ones in MiB."""
    if value is None:
        return "an unknown size"
    return format_gib(int(value)) if abs(value) >= GIB / 10 else f"{value / MIB:,.0f} MiB"


def tokens(value: float | None) -> str:
    """A number of tokens in words."""
    return "an unknown number of tokens" if value is None else f"{value:,.0f} tokens"


def told(
    facts: Facts,
    cause: str,
    sentence: str,
    *,
    severity: Severity = "error",
    because: str = "",
    at: tuple[str, ...] = (),
    is_certain: bool = True,
) -> Diagnosis:
    """Return a diagnosis. `at` names the patterns that it rests on, whose lines become its evidence."""
    evidence: list[Evidence] = []
    for name in at:
        place = facts.seen.last(name)
        if place is not None and place.text:
            evidence.append(Evidence(term="said", value=place.text, unit="text", where=f"line {place.line}"))
            break
    for term, name in _TERMS:
        value = getattr(facts, name)
        if value is not None:
            evidence.append(Evidence(term=term, value=value, unit="bytes"))
    for term, value in (("KV cache", facts.kv_tokens), ("longest that fits", facts.longest_tokens)):
        if value is not None:
            evidence.append(Evidence(term=term, value=value, unit="tokens"))
    return Diagnosis(
        cause=cause,
        severity=severity,
        sentence=sentence,
        because=because,
        evidence=tuple(evidence),
        is_certain=is_certain,
    )
