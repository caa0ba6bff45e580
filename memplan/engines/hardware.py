"""Which vendors' devices an engine runs on, as far as its rules here go."""

from __future__ import annotations

from collections.abc import Mapping

from memplan.domain.gpu import GpuSpec
from memplan.errors import UsageError

# By the engines' names in the registry. Plugins for other devices (TPUs, Neuron) allocate in other ways.
RUNS_ON: Mapping[str, tuple[str, ...]] = {
    "vllm": ("nvidia", "amd", "intel"),
    "sglang": ("nvidia", "amd"),
    "tensorrt-llm": ("nvidia",),
    "llama.cpp": ("nvidia", "amd", "intel", "apple", "cpu"),
    "transformers": ("nvidia", "amd", "intel", "apple"),
}
_TITLES: Mapping[str, str] = {"vllm": "vLLM", "sglang": "SGLang", "tensorrt-llm": "TensorRT-LLM"}
_VENDORS: Mapping[str, str] = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel", "apple": "Apple", "cpu": "CPU"}


def check_hardware(engine: str, gpu: GpuSpec) -> None:
    """Refuse a device that the engine does not run on, and name the engines that do.

    Raises: UsageError.
    """
    vendors = RUNS_ON[engine]
    if gpu.vendor in vendors:
        return
    others = [f"--engine {name}" for name, known in RUNS_ON.items() if gpu.vendor in known]
    *most, last = (_VENDORS[vendor] for vendor in vendors)
    listed = f"{', '.join(most)} and {last}" if most else last
    raise UsageError(
        f"{_TITLES.get(engine, engine)} for {listed} GPUs does not run on {gpu.name}",
        hint=f"use {' or '.join(others)}" if others else "no engine that memplan knows runs there",
    )
