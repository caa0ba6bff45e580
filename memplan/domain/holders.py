"""What a model needs before anyone has picked a GPU, and the GPUs that hold it."""

from __future__ import annotations

from memplan.domain.budget import MemoryBudget
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Holders:
    """The answer when no GPU was named: what the model needs in all, and one budget per GPU type that holds it.

    `weights_bytes` is the whole model, unsharded; `running_bytes` what the engine needs beside weights and cache on
    one GPU; `kv_bytes` the cache of `concurrency` requests of `context_tokens`. Every budget has the smallest number
    of its GPU that holds the model. `left_out` names the GPU types that do not hold it at any number tried.
    """

    model_name: str
    parameters: int
    weights_bytes: int
    running_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    context_tokens: int
    concurrency: int
    budgets: tuple[MemoryBudget, ...]
    left_out: tuple[str, ...] = ()
