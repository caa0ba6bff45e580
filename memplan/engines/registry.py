"""The engines by name: a literal table, so that only the engine that is asked for is imported."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.errors import UsageError, did_you_mean

ENGINES: Mapping[str, str] = {
    "vllm": "memplan.engines.vllm.engine:VLLM",
    "sglang": "memplan.engines.sglang.engine:SGLANG",
    "tensorrt-llm": "memplan.engines.tensorrt_llm.engine:TENSORRT_LLM",
    "llama.cpp": "memplan.engines.llama_cpp.engine:LLAMA_CPP",
    "transformers": "memplan.engines.transformers.engine:TRANSFORMERS",
}
DEFAULT_ENGINE = "vllm"


class Engine(Protocol):
    """A serving engine that can say what it would use."""

    name: str

    def estimate(self, spec: ModelSpec, gpu: GpuSpec, settings: ServingSettings, version: str | None) -> MemoryBudget:
        """Return the budget of `spec` on `gpu` under this engine at `version` (the newest known by default)."""
        ...


def parse_engine(text: str | None) -> tuple[str, str | None]:
    """Split `vllm@0.10.2` into the engine's name and version; the default engine for None.

    Raises: UsageError for an engine that is not known.
    """
    name, at, version = (text or DEFAULT_ENGINE).strip().partition("@")
    name = name.lower().replace("_", "-")
    name = {"trtllm": "tensorrt-llm", "trt-llm": "tensorrt-llm", "llamacpp": "llama.cpp", "llama-cpp": "llama.cpp"}.get(
        name, name
    )
    if name not in ENGINES:
        known = sorted(ENGINES)
        raise UsageError(
            f"unknown engine: `{name}`", hint=did_you_mean(name, known) or f"use one of {', '.join(known)}"
        )
    if at and not version:
        raise UsageError(f"no version behind the @: `{text}`", hint=f"write {name}@1.2.3, or {name} for the newest")
    return name, version.removeprefix("v") or None


def load_engine(name: str) -> Engine:
    """Import and return the engine of that name."""
    module, attribute = ENGINES[name].split(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)
    return engine
