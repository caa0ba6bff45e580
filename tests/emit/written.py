"""What tests of emit-config share: a setup from options, its file, and the budget that the file gives when it is read
back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.cli.choosing import chosen_setup
from memplan.cli.emit_subject import subject_of
from memplan.cli.questions import ask
from memplan.cli.setup import Setup
from memplan.domain.budget import MemoryBudget
from memplan.domain.emission import Emission
from memplan.emit.checks import settled
from memplan.emit.registry import find_format, load_emitter
from memplan.pipeline import answer
from memplan.records import replace

# Formats that name the model elsewhere than in the file.
NAMED_ELSEWHERE = ("tensorrt-llm", "llama.cpp")
# Files that do not say how many GPUs there are: the process takes those that it sees.
GPUS_ELSEWHERE = ("llama.cpp", "transformers")


def emitted(given: Mapping[str, Any], format_name: str | None = None) -> tuple[Setup, Emission]:
    """The setup that options lead to, and what is written for it."""
    wanted = find_format(format_name, "")[1] if format_name else None
    setup = chosen_setup(dict(given), wanted, strict=False)
    name, found = find_format(format_name, setup.question.engine)
    subject = settled(subject_of(setup, name))
    return replace(setup, budget=subject.budget), load_emitter(found)(subject)


def read_back(setup: Setup, emission: Emission, folder: Path, **more: Any) -> MemoryBudget:
    """The budget of `estimate --config FILE` on the same GPU, under the same release."""
    file = emission.files[0]
    path = folder / file.name
    path.write_text(file.text)
    given = setup.asked.given
    named = {name: given[name] for name in ("gpu", "gpu_memory", "gpu_free", "sharing") if name in given}
    engine = f"{setup.question.engine}@{setup.budget.engine_version}"
    if setup.question.engine in NAMED_ELSEWHERE:
        named |= {name: given[name] for name in ("model", "quant") if name in given}
    if setup.question.engine in GPUS_ELSEWHERE and "tp" in given:
        named["tp"] = given["tp"]
    concurrency = setup.question.settings.workload.concurrency
    if setup.question.engine != "llama.cpp":
        named["concurrency"] = str(concurrency)
    asked = ask({"config": path, "engine": engine, "offline": True, **named, **more})
    question = asked.questions()[0]
    return answer(replace(question, with_remedies=False))


def terms(budget: MemoryBudget) -> dict[str, Any]:
    """What must not change on the way through a file."""
    return {
        "lines": [(line.name, line.size_bytes) for line in budget.lines],
        "tokens": budget.kv.capacity_tokens,
        "needed": budget.kv.needed_bytes,
        "verdict": budget.verdict,
    }
