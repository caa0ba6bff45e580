"""The formats by name: a literal table, so that only the format that is asked for is imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from memplan.domain.emission import Emission, EmitSubject
from memplan.domain.training_emission import TrainingSubject
from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass

Emitter = Callable[[EmitSubject], Emission]
TrainingEmitter = Callable[[TrainingSubject], Emission]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format: where its emitter is, the engines that it is for (the first is taken when none was named; none
    means any), and what it is.
    """

    emitter: str
    about: str
    engines: tuple[str, ...] = ()


# What stands around a server, for every engine that is one.
_SERVERS = ("vllm", "sglang", "tensorrt-llm", "llama.cpp")
SURROUNDINGS: Mapping[str, Format] = {
    name: Format(emitter=f"memplan.emit.{module}:emit", engines=_SERVERS, about=about)
    for name, module, about in (
        ("docker", "docker", "a script with `docker run`"),
        ("compose", "compose", "a Compose file"),
        ("kubernetes", "kubernetes", "a Deployment and a Service with probes, caches and shared memory"),
        ("systemd", "systemd", "a unit for an engine installed on the machine"),
        ("alerts", "alerts", "Prometheus alert rules on the engine's own metrics"),
        ("grafana", "dashboard", "a Grafana dashboard"),
        ("autoscaling", "autoscaling", "a KEDA ScaledObject, and a HorizontalPodAutoscaler"),
        ("limits", "limits", "token caps, session budgets and admission limits for a gateway"),
        ("load-test", "load_test", "a script that loads the server as the budget says it may be"),
    )
}
FORMATS: Mapping[str, Format] = {
    "vllm": Format(
        emitter="memplan.emit.vllm_yaml:emit",
        engines=("vllm",),
        about="YAML for `vllm serve --config`, vLLM 0.8 and newer",
    ),
    "vllm-python": Format(
        emitter="memplan.emit.vllm_python:emit",
        engines=("vllm",),
        about="a script with vLLM's `LLM` class, for batches",
    ),
    "sglang": Format(
        emitter="memplan.emit.sglang_yaml:emit",
        engines=("sglang",),
        about="YAML for SGLang's --config, 0.5.3 and newer",
    ),
    "tensorrt-llm": Format(
        emitter="memplan.emit.tensorrt_llm_yaml:emit",
        engines=("tensorrt-llm",),
        about="YAML for `trtllm-serve MODEL --config`",
    ),
    "llama.cpp": Format(
        emitter="memplan.emit.llama_server:emit", engines=("llama.cpp",), about="a script with llama-server's arguments"
    ),
    "llama.cpp-presets": Format(
        emitter="memplan.emit.llama_server:emit_preset",
        engines=("llama.cpp",),
        about="a preset for `llama-server --models-preset`",
    ),
    "ollama": Format(
        emitter="memplan.emit.ollama:emit", engines=("llama.cpp",), about="a Modelfile, and the server's environment"
    ),
    "tgi": Format(
        emitter="memplan.emit.tgi:emit", engines=("vllm",), about="arguments of TGI, which is in maintenance mode"
    ),
    "transformers": Format(
        emitter="memplan.emit.transformers_python:emit",
        engines=("transformers",),
        about="a script that loads the model with transformers and bitsandbytes",
    ),
    **SURROUNDINGS,
}
# For training, `engines` are trainers.
_TRAINER = ("transformers", "trl", "axolotl")
TRAINING_FORMATS: Mapping[str, Format] = {
    name: Format(emitter=f"memplan.emit.training.{module}:emit", engines=trainers, about=about)
    for name, module, trainers, about in (
        ("accelerate", "accelerate_yaml", _TRAINER, "training: YAML for `accelerate launch --config_file`"),
        ("deepspeed", "deepspeed_json", ("deepspeed", *_TRAINER), "training: DeepSpeed's JSON"),
        ("torchtitan", "torchtitan_toml", ("torchtitan",), "training: torchtitan's job config, up to 0.2.2"),
        ("training-arguments", "arguments_python", _TRAINER[:2], "training: transformers' TrainingArguments, Python"),
        ("torchrun", "torchrun", (*_TRAINER[:2], "torchtitan", "deepspeed"), "training: a script with `torchrun`"),
    )
}
# What a training run is written as when no format was named.
DEFAULT_TRAINING_FORMATS: Mapping[str, str] = {
    **dict.fromkeys(_TRAINER, "accelerate"),
    "deepspeed": "deepspeed",
    "torchtitan": "torchtitan",
}
# What an engine's setup is written as when no format was named.
DEFAULT_FORMATS: Mapping[str, str] = {
    name: name for name in ("vllm", "sglang", "tensorrt-llm", "llama.cpp", "transformers")
}


def find_format(name: str | None, engine: str) -> tuple[str, Format]:
    """Return the format of that name, the engine's own one for None.

    Raises: UsageError for an unknown name, or an engine that nothing is written for.
    """
    known = name or DEFAULT_FORMATS.get(engine)
    if known is None:
        raise UsageError(
            f"no config is written for {engine}", hint="name a --format; memplan emit-config --format list"
        )
    known = known.lower().replace("_", "-")
    if known in TRAINING_FORMATS:
        raise UsageError(f"format `{name}` is of training", hint="add --train full, lora, dora or qlora")
    if known not in FORMATS:
        near = did_you_mean(known, [*FORMATS, *TRAINING_FORMATS])
        raise UsageError(f"unknown format: `{name}`", hint=near or "see memplan emit-config --format list")
    return known, FORMATS[known]


def find_training_format(name: str | None, trainer: str) -> tuple[str, Format]:
    """Return the training format of that name, the trainer's own one for None.

    Raises: UsageError for an unknown name, one of serving, or a trainer that nothing is written for.
    """
    known = name or DEFAULT_TRAINING_FORMATS.get(trainer)
    if known is None:
        trainers = ", ".join(DEFAULT_TRAINING_FORMATS)
        raise UsageError(f"no config is written for {trainer}", hint=f"use --trainer with one of {trainers}")
    known = known.lower().replace("_", "-")
    if known not in TRAINING_FORMATS:
        near = did_you_mean(known, list(TRAINING_FORMATS))
        what = "is of serving, not of training" if known in FORMATS else "is not known"
        raise UsageError(f"format `{name}` {what}", hint=near or f"use one of {', '.join(TRAINING_FORMATS)}")
    return known, TRAINING_FORMATS[known]


def load_emitter(found: Format) -> Emitter:
    """Import and return the emitter of a format."""
    emitter: Emitter = _load(found)
    return emitter


def load_training_emitter(found: Format) -> TrainingEmitter:
    """Import and return the emitter of a training format."""
    emitter: TrainingEmitter = _load(found)
    return emitter


def _load(found: Format) -> Any:
    module, attribute = found.emitter.split(":")
    return getattr(importlib.import_module(module), attribute)
