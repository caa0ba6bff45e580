"""Memory of the host: the process itself, weights and caches that stay there, and what loading passes through it.

With a `device_map`, a release before 4.50 reads one shard of a checkpoint into memory at a time; later ones map the
file and read tensor by tensor, a few at once, so that only tensors on their way take memory of their own.

Source: modeling_utils.py (_load_state_dict_into_meta_model, load_state_dict), core_model_loading.py (GLOBAL_WORKERS).
"""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.model import ModelSpec
from memplan.engines.transformers.caches import layer_cache
from memplan.engines.transformers.families import family_of
from memplan.engines.transformers.fitted import Fitted
from memplan.engines.transformers.loading import tensor_sizes
from memplan.engines.transformers.placement import CPU
from memplan.engines.transformers.plan import Placed
from memplan.engines.transformers.settings import TransformersSettings
from memplan.units import GIB

_SHARD_BYTES = 5 * 10**9
_WORKERS = 4


def host_bytes(
    spec: ModelSpec,
    stored_bytes: int,
    placed: Placed,
    settings: TransformersSettings,
    rules: Rules,
    fitted: Fitted,
) -> int:
    """Return what the process needs of the host's memory, files that are only mapped left out."""
    base = round(fitted.host_base_gib * GIB)
    kept = placed.sizes.get(CPU, 0)
    if settings.cache in ("offloaded", "offloaded_static"):
        kept += sum(layer_cache(layer, settings, rules, family_of(spec)).final_bytes for layer in spec.layers)
    return base + kept + _staged(spec, stored_bytes, settings, rules)


def _staged(spec: ModelSpec, stored_bytes: int, settings: TransformersSettings, rules: Rules) -> int:
    """What is on its way from the file to a device at once."""
    if not rules["warm_up"]:
        return min(stored_bytes, _SHARD_BYTES)
    tensors = [*spec.shared, *(tensor for layer in set(spec.layers) for tensor in layer.tensors)]
    largest = max((sum(tensor_sizes(tensor, settings.dtype)) for tensor in tensors), default=0)
    return min(stored_bytes, _WORKERS * largest)
