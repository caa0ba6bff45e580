"""The budget of a model under vLLM: utilization x device memory, less weights, activation peak, what lies outside
torch, and CUDA graphs where the release charges them; the rest becomes cache pages.

Source: vllm/worker/worker.py and vllm/v1/worker/gpu_worker.py, 0.2 to 0.33; docs/memory-model.md, "vLLM".
"""

from __future__ import annotations

from memplan.budget.weights import check_divides
from memplan.catalog.rules import load_rules
from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.hardware import check_hardware
from memplan.engines.vllm.answer import budget_of
from memplan.engines.vllm.fitted import load_fitted
from memplan.engines.vllm.length import with_fitted_length
from memplan.engines.vllm.loading import as_loaded
from memplan.engines.vllm.options import check_options, fits_length, unused_options
from memplan.engines.vllm.rank import plan_rank
from memplan.engines.vllm.settings import resolve
from memplan.records import replace


class Vllm:
    """vLLM on NVIDIA, AMD and Intel GPUs."""

    name = "vllm"

    def estimate(self, spec: ModelSpec, gpu: GpuSpec, settings: ServingSettings, version: str | None) -> MemoryBudget:
        """Return the budget of `spec` on `gpu`. Raises: UsageError for settings or a device that it refuses."""
        check_hardware(self.name, gpu)
        rules, fitted = load_rules("vllm", version), load_fitted()
        check_options(settings, gpu, rules)
        unused = unused_options(settings)
        check_divides(spec, settings.layout)
        loaded = as_loaded(text_only(spec) if settings.language_model_only else spec, rules, gpu, settings.layout)
        resolved = resolve(loaded, gpu, settings, rules)
        plans = [
            plan_rank(loaded, gpu, settings, resolved, rules, fitted, stage)
            for stage in range(settings.layout.pipeline)
        ]
        tightest = min(plans, key=lambda plan: (plan.blocks if plan.groups else 1 << 62, plan.kv_bytes))
        if fits_length(settings):
            resolved = with_fitted_length(settings, resolved, rules, plans)
        budget = budget_of(loaded, gpu, settings, resolved, rules, fitted, tightest, unused)
        return replace(budget, parameters=spec.parameters, active_parameters=spec.active_parameters)


VLLM = Vllm()


def text_only(spec: ModelSpec) -> ModelSpec:
    """The model without its towers, as `--language-model-only` loads it."""
    return replace(spec, towers=())
