"""The budget of a model under TensorRT-LLM: a part of what is free once everything else is placed becomes the cache.

    PyTorch flow   cache = (device - peak of the profiled step + the cache it ran with) x free_gpu_memory_fraction
    engine flow    cache = free memory once engine, contexts and buffers are placed x free_gpu_memory_fraction

The temporary cache of the profiled step lies outside torch and is added back, so it cancels out. A max_seq_len that
does not fit the blocks is cut without an error.

Source: tensorrt_llm/_torch/pyexecutor/_util.py (KvCacheCreator), 1.0 to 1.3; cpp kvCacheManager, 0.8 to 0.20;
docs/memory-model.md, "TensorRT-LLM".
"""

from __future__ import annotations

from memplan.budget.weights import check_divides
from memplan.catalog.rules import load_rules
from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.engines.hardware import check_hardware
from memplan.engines.options import EngineOptions
from memplan.engines.tensorrt_llm.answer import budget_of
from memplan.engines.tensorrt_llm.fitted import load_fitted
from memplan.engines.tensorrt_llm.rank import NO_LIMIT, plan_rank
from memplan.engines.tensorrt_llm.settings import KNOWN_OPTIONS, resolve


class TensorrtLlm:
    """TensorRT-LLM on NVIDIA GPUs."""

    name = "tensorrt-llm"

    def estimate(self, spec: ModelSpec, gpu: GpuSpec, settings: ServingSettings, version: str | None) -> MemoryBudget:
        """Return the budget of `spec` on `gpu`.

        Raises: UsageError for settings that it refuses, or for a GPU that is not NVIDIA's.
        """
        check_hardware(self.name, gpu)
        rules, fitted = load_rules("tensorrt-llm", version), load_fitted()
        options = EngineOptions("TensorRT-LLM", settings.engine_options, KNOWN_OPTIONS)
        resolved = resolve(spec, settings, options, rules)
        unused = options.unused()
        check_divides(spec, ParallelLayout(tensor=resolved.attention_ranks, pipeline=resolved.layout.pipeline))
        plans = [
            plan_rank(spec, gpu, settings, resolved, rules, fitted, stage) for stage in range(resolved.layout.pipeline)
        ]
        tightest = min(plans, key=lambda plan: (plan.blocks if plan.pools.pools else NO_LIMIT, plan.cache_bytes))
        return budget_of(spec, gpu, settings, resolved, rules, fitted, tightest, unused)


TENSORRT_LLM = TensorrtLlm()
