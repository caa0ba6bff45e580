"""A vLLM start-up of a catalogue model: its settings as the release fills them in, and its budget."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from memplan.catalog.gpus import find_gpu
from memplan.catalog.quant_schemes import parse_scheme
from memplan.catalog.rules import Rules, load_rules
from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.engines.vllm.engine import VLLM
from memplan.engines.vllm.settings import VllmSettings, resolve
from memplan.introspect.quantized import quantize_spec
from memplan.introspect.resolve import resolve_model
from memplan.records import dataclass

DENSE = "meta-llama/Llama-3.1-8B-Instruct"
LATENT = "deepseek-ai/DeepSeek-V2-Lite-Chat"
ROUTED = "Qwen/Qwen3-30B-A3B"
VISION = "Qwen/Qwen2-VL-7B-Instruct"
RECURRENT = "ibm-granite/granite-4.0-h-small"
EMBEDDING = "BAAI/bge-large-en-v1.5"


@lru_cache(maxsize=64)
def model(name: str, scheme: str | None = None) -> ModelSpec:
    """A model of the catalogue, in another weight scheme if one is named."""
    spec = resolve_model(name, offline=True)
    return quantize_spec(spec, parse_scheme(scheme)) if scheme else spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start-up: a model on a GPU under a release."""

    spec: ModelSpec
    gpu: GpuSpec
    asked: ServingSettings
    rules: Rules

    @property
    def settings(self) -> VllmSettings:
        """The settings with every default filled in."""
        return resolve(self.spec, self.gpu, self.asked, self.rules)

    @property
    def budget(self) -> MemoryBudget:
        """The whole budget."""
        return VLLM.estimate(self.spec, self.gpu, self.asked, self.rules.version)


def start(
    version: str,
    gpu: str = "h100",
    name: str = DENSE,
    *,
    scheme: str | None = None,
    tp: int = 1,
    pp: int = 1,
    **asked: Any,
) -> Start:
    """A start-up with these settings; `context` and `concurrency` go to the workload."""
    workload = Workload(context_tokens=asked.pop("context", None), concurrency=asked.pop("concurrency", 1))
    settings = ServingSettings(layout=ParallelLayout(tensor=tp, pipeline=pp), workload=workload, **asked)
    return Start(spec=model(name, scheme), gpu=find_gpu(gpu), asked=settings, rules=load_rules("vllm", version))
