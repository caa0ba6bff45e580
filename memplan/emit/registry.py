"""The formats by name: a literal table, so that only the format that is asked for is imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from memplan.domain.emission import Emission, EmitSubject
from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass

Emitter = Callable[[EmitSubject], Emission]


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
    if known not in FORMATS:
        near = did_you_mean(known, list(FORMATS))
        raise UsageError(f"unknown format: `{name}`", hint=near or "see memplan emit-config --format list")
    return known, FORMATS[known]


def load_emitter(found: Format) -> Emitter:
    """Import and return the emitter of a format."""
    module, attribute = found.emitter.split(":")
    emitter: Emitter = getattr(importlib.import_module(module), attribute)
    return emitter
