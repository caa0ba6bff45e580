"""`memplan doctor` on a serving config: read as `--config` reads it, budgeted, and checked as an emitted one is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memplan.cli.engine_config import read_engine_config
from memplan.cli.options import Given
from memplan.doctor.diagnose_log import budget_diagnosis
from memplan.doctor.lint import (
    file_traps,
    graph_note,
    quantization_told,
    removed_options,
    room,
    setup_findings,
)
from memplan.doctor.secrets import redact, shown
from memplan.domain.diagnosis import GRAVITY, Diagnosis, DoctorReport, Recognised, WhyLine
from memplan.domain.emission import EmitSubject
from memplan.errors import MemplanError
from memplan.records import replace

_SAID = 6


def config_report(text: str, path: Path | None, given: Given) -> DoctorReport:
    """Return what is the matter with a config: in the file, with the release, with the model on the GPU."""
    try:
        found, notes = _read(text, path, given.get("engine"))
    except MemplanError as error:
        refused = Diagnosis(
            cause="config_refused", severity="error", sentence=shown(f"the config does not read: {error.message}")
        )
        recognised = Recognised(kind="serving config", name="a serving config", num_lines=text.count("\n") + 1)
        return DoctorReport(recognised=recognised, diagnoses=(refused,), needs=(error.hint,) if error.hint else ())
    engine, version = _release(found, given)
    own = dict(pair.partition("=")[::2] for pair in found.get("set", ()))
    diagnoses = list(removed_options(engine, version, {**own, **_named(text)}))
    subject, needs = _subject(found, given, [each.evidence[0].value for each in diagnoses])
    diagnoses += _checks(subject, engine, text, own.get("quantization")) if isinstance(subject, EmitSubject) else []
    working: tuple[WhyLine, ...] = ()
    budget_of = ""
    if isinstance(subject, EmitSubject):
        working, budget_of = _working(subject)
    if not diagnoses and isinstance(subject, EmitSubject):
        sentence = f"nothing is the matter: {room(subject)}"
        diagnoses = [Diagnosis(cause="starts", severity="fine", sentence=sentence)]
    ordered = _merged(sorted(diagnoses, key=lambda each: GRAVITY[each.severity]))
    if ordered:
        ordered[0] = replace(ordered[0], why=working)
    return DoctorReport(
        recognised=Recognised(
            kind="serving config",
            name="a serving config",
            engine=engine,
            version=version,
            num_lines=text.count("\n") + 1,
            size_bytes=len(text.encode()),
        ),
        diagnoses=tuple(ordered),
        settings={name: redact(str(value)) for name, value in found.items() if name != "set"},
        budget_of=budget_of,
        needs=tuple(needs),
        notes=tuple(redact(note) for note in notes if ": read as a config" not in note),
    )


def _merged(diagnoses: list[Diagnosis]) -> list[Diagnosis]:
    """What several checks say of one thing, once: the gravest, with the mends of all."""
    found: dict[str, Diagnosis] = {}
    for each in diagnoses:
        key = each.sentence if each.cause in ("unknown_option", "config_trap") else each.cause
        if (kept := found.get(key)) is None:
            found[key] = each
        else:
            mends = {mend.change: mend for mend in (*kept.mends, *each.mends)}
            found[key] = replace(kept, mends=tuple(mends.values()))
    return list(found.values())


def _read(text: str, path: Path | None, engine: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What `--config` reads; text from elsewhere than a file is given an ending by what it looks like."""
    if path is not None and path.is_file() and path.suffix.lower() not in (".txt", ".log", ".conf", ""):
        return read_engine_config(path, engine)
    stripped = text.lstrip()
    ending = ".json" if stripped.startswith("{") else ".sh" if _is_command(stripped) else ".yaml"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"given{ending}"
        copy.write_text(text, encoding="utf-8")
        return read_engine_config(copy, engine)


def _is_command(text: str) -> bool:
    first = next((line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    return " --" in f" {text}" and ":" not in first.partition(" ")[0]


def _named(text: str) -> dict[str, str]:
    """Option names as they stand in a file: those that reading already gave to others, too."""
    import re

    found = re.findall(r"^\s{0,2}(?:--)?([A-Za-z][\w-]{1,60})\s*[:= ]\s*([^\n]{0,100})", text, re.MULTILINE)
    flags = re.findall(r"--([A-Za-z][\w-]{1,60})(?:[ =]([^\s-][^\s]{0,60}))?", text)
    return {name: redact(value) for name, value in (*found, *flags)}


def _release(found: dict[str, Any], given: Given) -> tuple[str, str]:
    from memplan.catalog.rules import load_rules
    from memplan.engines.registry import parse_engine

    engine, version = parse_engine(given.get("engine") or found.get("engine"))
    return engine, version or load_rules(engine, None).version


def _subject(
    found: dict[str, Any], given: Given, removed: list[object]
) -> tuple[EmitSubject | Diagnosis | None, list[str]]:
    """The setup as an emitter would have it; None with what is needed to make one."""
    asked = {**found, **{name: given[name] for name in ("model", "gpu", "gpu_memory", "engine") if name in given}}
    gone = {str(each).partition(":")[0].replace("-", "_") for each in removed}
    asked["set"] = [pair for pair in found.get("set", ()) if pair.partition("=")[0] not in gone]
    needs = []
    if "model" not in asked:
        needs.append("the model: --model NAME")
    if "gpu" not in asked and "gpu_memory" not in asked:
        needs.append("the GPU: --gpu NAME")
    if needs:
        return None, needs
    asked["offline"] = bool(given.get("offline")) or "model" not in given
    try:
        return _setup(asked), []
    except MemplanError as error:
        return None, [shown(error.message), *([error.hint] if error.hint else [])]


def _setup(asked: dict[str, Any]) -> EmitSubject:
    from memplan.cli.emit_subject import subject_of
    from memplan.cli.questions import ask
    from memplan.cli.setup import Setup
    from memplan.pipeline import answer

    given = {name: value for name, value in asked.items() if value is not None and value != []}
    whole = ask({**given, "quiet": True})
    question = replace(whole.questions()[0], with_remedies=False)
    return subject_of(Setup(asked=whole, question=question, budget=answer(question)), question.engine)


def _checks(subject: EmitSubject, engine: str, text: str, told: str | None) -> Iterator[Diagnosis]:
    budget = subject.budget
    yield from quantization_told(told, subject.spec.quantization)
    yield from file_traps(subject, engine, text)
    if budget.verdict == "does_not_fit":
        yield budget_diagnosis(budget)
    yield from setup_findings(subject)
    yield from graph_note(subject)


def _working(subject: EmitSubject) -> tuple[tuple[WhyLine, ...], str]:
    from memplan.doctor.diagnose_log import budget_of
    from memplan.doctor.facts import Facts
    from memplan.doctor.scan import Scanned
    from memplan.doctor.sightings import Sightings
    from memplan.doctor.working import why

    nothing = Facts(scanned=Scanned(seen=Sightings(), num_lines=0, num_bytes=0), engine=subject.engine)
    return why(nothing, subject.budget), budget_of(subject.budget)
