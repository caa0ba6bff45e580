"""The budget of a model under SGLang: what is available after loading, less the part of what was available before that
the fraction leaves alone, becomes the pools.

    pool = available after loading - available before loading x (1 - mem_fraction_static)

The request table, the attention workspaces, CUDA graphs and activations lie outside the fraction.

Source: sglang/srt/model_executor/model_runner.py, 0.3.0 to 0.5.23; docs/memory-model.md, "SGLang".
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
from memplan.engines.sglang.answer import budget_of
from memplan.engines.sglang.fitted import load_fitted
from memplan.engines.sglang.rank import plan_rank
from memplan.engines.sglang.settings import KNOWN_OPTIONS, resolve


class Sglang:
    """SGLang on NVIDIA and AMD GPUs."""

    name = "sglang"

    def estimate(self, spec: ModelSpec, gpu: GpuSpec, settings: ServingSettings, version: str | None) -> MemoryBudget:
        """Return the budget of `spec` on `gpu`.

        Raises: UsageError for settings that it refuses, or for a GPU that is neither NVIDIA's nor AMD's.
        """
        check_hardware(self.name, gpu)
        rules, fitted = load_rules("sglang", version), load_fitted()
        options = EngineOptions("SGLang", settings.engine_options, KNOWN_OPTIONS)
        resolved = resolve(spec, gpu, settings, options, rules)
        unused = options.unused()
        check_divides(spec, ParallelLayout(tensor=resolved.ranks.attention, pipeline=resolved.ranks.pipeline))
        plans = [
            plan_rank(spec, gpu, settings, resolved, rules, fitted, stage) for stage in range(resolved.ranks.pipeline)
        ]
        tightest = min(plans, key=lambda plan: (plan.tokens if not plan.pools.is_empty else 1 << 62, plan.pool_bytes))
        return budget_of(spec, gpu, settings, resolved, rules, fitted, tightest, unused)


SGLANG = Sglang()
