"""OPT-13B on one A100 of 40 GB, as both published comparisons had it: the cache's room, step times, lengths.

The room is that of the PagedAttention paper (table 1: 12 GB, 15.7 thousand tokens), so that what is compared is how it
is shared out. Step times are memplan's speed model of vLLM on that card: engines of 2023 took longer steps.
"""

from __future__ import annotations

from memplan.budget.kv_cache import kv_format
from memplan.catalog.efficiency import efficiency_for
from memplan.catalog.gpus import find_gpu
from memplan.domain.dtypes import DType
from memplan.domain.serving import ParallelLayout
from memplan.domain.simulation import CacheGroup, SimulationResult, SimulationSettings
from memplan.pipeline import load_model
from memplan.simulate.step_times import modelled_steps

TOKENS_OF_ROOM = 15_700
BLOCK_TOKENS = 16
CONTEXT_TOKENS = 2048


def deployment() -> SimulationSettings:
    """vLLM's way: paged blocks, continuous batching."""
    gpu, spec = find_gpu("a100-40g"), load_model("opt-13b", revision=None, offline=True, introspect="auto")
    steps = modelled_steps(
        spec, gpu, ParallelLayout(), kv_format(None, DType.F16), DType.F16, efficiency_for("vllm", gpu)
    )
    return SimulationSettings(
        num_blocks=TOKENS_OF_ROOM // BLOCK_TOKENS,
        groups=(CacheGroup(block_tokens=BLOCK_TOKENS),),
        context_tokens=CONTEXT_TOKENS,
        max_num_seqs=256,
        max_num_batched_tokens=2560,
        prefix_caching=False,
        steps=steps,
    )


def mean_running(result: SimulationResult) -> float:
    """Requests in the batch on average over the time in which there was work, by Little's law."""
    stays = (
        finished - scheduled
        for finished, scheduled in zip(result.finished_s, result.scheduled_s, strict=True)
        if finished >= 0
    )
    return sum(stays) / max(1e-9, result.busy_s)
