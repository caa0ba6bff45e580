"""A diagnosis in words that every report shares."""

from __future__ import annotations

from memplan.domain.diagnosis import DoctorReport, Mend, Unit, WhyLine
from memplan.units import GIB, MIB, format_gib

SEVERITY = {"error": "FAILS", "warning": "WARNING", "note": "NOTE", "fine": "FINE"}
BASIS = {"budget": "by the budget", "log": "by its own figures", "rule": "by rule"}
_ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "llama.cpp": "llama.cpp", "tensorrt-llm": "TensorRT-LLM", "tgi": "TGI"}


def figure(value: float | str | None, unit: Unit) -> str:
    """A figure in its unit; nothing where it is not known."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if unit == "bytes":
        return format_gib(int(value)) if abs(value) >= GIB / 10 or value == 0 else f"{value / MIB:,.1f} MiB"
    if unit == "fraction":
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def difference(line: WhyLine) -> str:
    """How far the budget was off: measured less budget."""
    if line.budget is None or line.measured is None:
        return ""
    off = line.measured - line.budget
    if line.unit == "bytes" and abs(off) < MIB / 20:
        return "0"
    sign = "+" if off > 0 else "-" if off < 0 else ""
    return f"{sign}{figure(abs(off), line.unit)}"


def effect(mend: Mend) -> str:
    """What a change brings, and whether that is enough."""
    parts = []
    if mend.effect_bytes is not None:
        sign = "+" if mend.effect_bytes >= 0 else "-"
        parts.append(f"{sign}{figure(abs(mend.effect_bytes), 'bytes')}")
    if mend.mends is not None:
        parts.append("enough" if mend.mends else "not enough alone")
    return ", ".join(parts)


def about(mend: Mend) -> str:
    """The risk, what its effect rests on, and what to know."""
    risk = "no risk" if mend.risk == "none" else f"{mend.risk} risk"
    return "; ".join(part for part in (risk, BASIS[mend.basis], mend.note) if part)


def given(report: DoctorReport) -> str:
    """What was read, in one line."""
    it = report.recognised
    release = f" {it.version}" if it.version else ""
    generation = f" ({it.generation})" if it.generation else ""
    size = f", {lines(it.num_lines)}" if it.num_lines else ""
    name = it.name
    if it.engine and _ENGINES.get(it.engine, it.engine) not in name:
        name = f"{name} of {_ENGINES.get(it.engine, it.engine)}"
    return f"{name}{release}{generation}{size}"


def lines(number: int) -> str:
    """How many lines, in words."""
    return f"{number:,} line" if number == 1 else f"{number:,} lines"


def where(report: DoctorReport) -> list[tuple[str, str]]:
    """The lines that decided it, of the main diagnosis."""
    main = report.main
    return [(each.where, str(each.value)) for each in main.evidence if each.term == "said"] if main else []
