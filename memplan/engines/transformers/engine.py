"""The budget of a model under transformers: weights where `device_map` puts them, the prefill of the whole batch in one
pass, caches that grow or stand, and a token at a time.

Nothing is set aside in advance: what a run needs is the fullest moment of `generate`, and what is left over stays free.

Source: modeling_utils.py, generation/utils.py, cache_utils.py, integrations/, 4.31 to 5.23; accelerate 0.20 to 1.15;
docs/engines/transformers.md.
"""

from __future__ import annotations

from memplan.catalog.rules import load_rules
from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.hardware import check_hardware
from memplan.engines.options import EngineOptions
from memplan.engines.transformers.families import family_of
from memplan.engines.transformers.fitted import load_fitted
from memplan.engines.transformers.loading import as_loaded
from memplan.engines.transformers.plan import free_bytes, holdings, place_model, plan_device
from memplan.engines.transformers.settings import KNOWN_OPTIONS, resolve
from memplan.records import replace


class Transformers:
    """Hugging Face transformers with accelerate."""

    name = "transformers"

    def estimate(self, spec: ModelSpec, gpu: GpuSpec, settings: ServingSettings, version: str | None) -> MemoryBudget:
        """Return the budget of `spec` on `gpu`. Raises: UsageError for settings or a device that it refuses."""
        from memplan.engines.transformers.answer import Run, budget_of

        check_hardware(self.name, gpu)
        rules, fitted = load_rules("transformers", version), load_fitted()
        if settings.language_model_only:
            spec = text_only(spec)
        family = family_of(spec)
        options = EngineOptions("transformers", settings.engine_options, KNOWN_OPTIONS)
        resolved = resolve(spec, gpu, settings, options, family, rules)
        unused = options.unused()
        loaded = as_loaded(spec, gpu, resolved, rules)
        placed = place_model(loaded.spec, gpu, settings, resolved, rules, fitted)
        held = holdings(spec, loaded, placed, settings, resolved, rules)
        free = free_bytes(gpu, settings)

        def room(context_tokens: int, requests: int) -> int:
            new_tokens = min(resolved.context_tokens - resolved.prompt_tokens, context_tokens - 1)
            asked = replace(
                resolved,
                context_tokens=context_tokens,
                prompt_tokens=context_tokens - new_tokens,
                sequences=requests * resolved.num_beams,
            )
            plans = (plan_device(loaded.spec, one, gpu, asked, family, rules, fitted) for one in held)
            return min(free - plan.used_bytes for plan in plans)

        return budget_of(
            Run(
                source=spec,
                loaded=loaded,
                gpu=gpu,
                free_bytes=free,
                settings=resolved,
                family=family,
                rules=rules,
                fitted=fitted,
                placed=placed,
                plans=[plan_device(loaded.spec, one, gpu, resolved, family, rules, fitted) for one in held],
                unused=unused,
                room=room,
            )
        )


TRANSFORMERS = Transformers()


def text_only(spec: ModelSpec) -> ModelSpec:
    """The model without its towers, as the class for text alone loads it."""
    return replace(spec, towers=())
