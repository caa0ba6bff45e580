"""`memplan doctor` on a training script or config: what runs out of memory first, with a budget where the model is
known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.cli.options import Given
from memplan.cli.script_config import script_calls
from memplan.doctor.secrets import redact, shown
from memplan.doctor.telling import size
from memplan.doctor.training_config import rules, training_options
from memplan.domain.diagnosis import GRAVITY, Diagnosis, DoctorReport, Mend, Recognised, WhyLine
from memplan.domain.training_budget import TrainingBudget
from memplan.errors import MemplanError, UsageError
from memplan.records import replace

_CONFIGS = ("TrainingArguments", "SFTConfig", "DPOConfig", "GRPOConfig", "ORPOConfig", "KTOConfig", "RewardConfig")
_MOST_KEYS = 2000
_BY_BUDGET = "by the budget"
_TRAINER = (
    (r"--micro-batch (\d+)", r"per_device_train_batch_size=\1"),
    (r"--grad-accum (\d+)", r"gradient_accumulation_steps=\1"),
    (r"--checkpointing full", "gradient_checkpointing=True"),
    (r"--loss linear", "use_liger_kernel=True"),
    (r"--optimizer adamw-8bit", 'optim="adamw_bnb_8bit"'),
    (r"--optimizer adafactor", 'optim="adafactor"'),
    (r"--train lora", "LoRA (peft.LoraConfig)"),
    (r"--train qlora", "QLoRA (LoraConfig, load_in_4bit=True)"),
    (r"--sharding zero(\d)", r"DeepSpeed zero_optimization.stage: \1"),
    (r"--sharding fsdp2?\b", "fsdp='full_shard'"),
    (r"--offload optimizer", "offload_optimizer.device: cpu"),
)


def training_report(text: str, path: Path | None, given: Given) -> DoctorReport:
    """Return what is the matter with a training setup. Raises: UsageError for what does not parse."""
    name, pairs = _pairs(text, path)
    options = training_options(pairs)
    asked = {**options, **{key: given[key] for key in ("model", "gpu", "gpu_memory") if key in given}}
    diagnoses = list(rules(pairs, options))
    budget, note = _budget(asked, given)
    working: tuple[WhyLine, ...] = ()
    if budget is not None:
        working = tuple(WhyLine(term=line.name, unit="bytes", budget=line.size_bytes) for line in budget.lines)
        if budget.verdict == "fits":  # what would run out first is then no more than a note
            diagnoses = [replace(each, severity="note") for each in diagnoses]
        diagnoses.insert(0, _verdict(budget))
    ordered = sorted(diagnoses, key=lambda each: (each.because != _BY_BUDGET, GRAVITY[each.severity]))
    if not ordered:
        ordered = [Diagnosis(cause="starts", severity="fine", sentence="nothing is known to be the matter")]
    ordered[0] = replace(ordered[0], why=working)
    return DoctorReport(
        recognised=Recognised(
            kind="training config", name=name, num_lines=text.count("\n") + 1, size_bytes=len(text.encode())
        ),
        diagnoses=tuple(ordered),
        settings={key: redact(str(value)) for key, value in options.items()},
        budget_of=_subject(budget),
        needs=_needs(asked, budget),
        notes=(note,) if note else (),
    )


def _pairs(text: str, path: Path | None) -> tuple[str, dict[str, Any]]:
    """What kind of config it is, and its keys, nested ones joined by dots."""
    origin = path or Path("stdin")
    if origin.suffix == ".py" or any(f"{each}(" in text for each in _CONFIGS):
        pairs: dict[str, Any] = {}
        for called, arguments in script_calls(text, origin):
            if called in (*_CONFIGS, "LoraConfig", "BitsAndBytesConfig"):
                pairs.update(arguments)
            elif called == "from_pretrained" and isinstance(arguments.get("first"), str) and "model" not in pairs:
                pairs["model"] = arguments["first"]
        return "a training script", _flat(pairs)
    if text.lstrip().startswith("{"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"not valid JSON: {error}") from None
        kind = "a DeepSpeed config" if "zero_optimization" in content else "a training config"
        return kind, _flat(content)
    from memplan.catalog.tables import read_yaml

    content = read_yaml(text, str(origin))
    kind = "an accelerate config" if "distributed_type" in content else "a training config"
    return kind, _flat(content)


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    stack: list[tuple[str, Any]] = [(str(key), value) for key, value in content.items()]
    while stack and len(found) < _MOST_KEYS:
        name, value = stack.pop()
        if isinstance(value, Mapping) and name.count(".") < 8:
            stack += [(f"{name}.{key}", item) for key, item in value.items()]
        else:
            found[name] = value
    return found


def _budget(asked: dict[str, Any], given: Given) -> tuple[TrainingBudget | None, str]:
    """The budget of the step; None, and in words why, where the model or the GPU is not known."""
    from memplan.cli.doctor_budget import known_model

    if "model" not in given and "model" in asked:
        asked["model"] = known_model(str(asked["model"]))
    if asked.get("model") is None or ("gpu" not in asked and "gpu_memory" not in asked):
        return None, ""
    from memplan.cli.serving_options import parse_devices
    from memplan.cli.training_options import training_question
    from memplan.engines.training.answer import TrainingAsked, answer_training
    from memplan.pipeline import load_model

    try:
        device = parse_devices(asked.get("gpu"), memory=asked.get("gpu_memory"), free=None)[0]
        question = training_question(asked, num_gpus=device.count)
        offline = bool(given.get("offline")) or "model" not in given
        spec = load_model(asked["model"], revision=None, offline=offline, introspect="auto")
        return answer_training(TrainingAsked(spec=spec, gpu=device.gpu, question=question)), ""
    except MemplanError as error:
        return None, shown(f"no budget: {error.message}")


def _verdict(budget: TrainingBudget) -> Diagnosis:
    """What the budget says of the step, with its own remedies as mends."""
    fits = budget.verdict != "does_not_fit"
    needed = budget.reserved_bytes + budget.outside_bytes
    sentence = f"a step peaks at {size(needed)} of {size(budget.gpu_memory_bytes)} in its {budget.peak_phase} phase"
    if not fits:
        sentence += f": {size(budget.shortfall_bytes)} too much"
    mends = tuple(
        Mend(
            change=_typed(remedy.change),
            risk="low" if remedy.cost < 5 else "medium",
            basis="budget",
            effect_bytes=remedy.saves_bytes,
            mends=remedy.verdict != "does_not_fit",
            note=remedy.note,
        )
        for remedy in budget.remedies[:8]
    )
    return Diagnosis(
        cause="starts" if fits else f"{budget.peak_phase}_oom",
        severity="fine" if budget.verdict == "fits" else "warning" if fits else "error",
        sentence=sentence,
        because=_BY_BUDGET,
        mends=mends,
        is_certain=False,
    )


def _typed(change: str) -> str:
    """A change in Trainer's own words where it has them."""
    typed = change
    for ours, theirs in _TRAINER:
        typed = re.sub(ours, theirs, typed)
    return typed


def _subject(budget: TrainingBudget | None) -> str:
    if budget is None:
        return ""
    return f"{budget.model_name} on {budget.num_gpus} x {budget.gpu_name}, {budget.trainer}"


def _needs(asked: Mapping[str, Any], budget: TrainingBudget | None) -> tuple[str, ...]:
    if budget is not None:
        return ()
    needs = []
    if asked.get("model") is None:
        needs.append("the model: --model NAME")
    if "gpu" not in asked and "gpu_memory" not in asked:
        needs.append("the GPUs: --gpu NAMExN")
    return tuple(needs)
