"""Prefill and decode on GPUs of their own: what two pools make of a load, with the cache sent from one to the other.

Formulas (docs/speed-model.md, "Pools"), for x prefill replicas that read r prompts a second all together:

    throughput   min(decode pool's, 0.85 r) requests a second: a pool that is busy all the time has an endless queue
    queue        b / (2 (1 - b)) x (x / r), with b the busy part of the prefill pool   (M/D/1, each replica its own)
    first token  prompt read alone + queue + transfer + half a decode step + the server's own time
    transfer     latency + cache of the prompt on the fuller rank / link
    each token   one decode round: no prompt of another is in the way

Source: Zhong et al., "DistServe" (2024), sections 3 and 4, for the queue and for what limits either pool.
Not modelled: caches that are sent layer by layer while the prompt is read, and requests that wait for room.
"""

from __future__ import annotations

from memplan.budget.kv_cache import KvFormat, sequence_bytes
from memplan.budget.links import GPUS_PER_MACHINE, link_between, send_s
from memplan.domain.attention import IndexerKeys
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.speed import Efficiency, ServingSpeed
from memplan.records import dataclass, replace

_MOST_BUSY = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The prefill pool of a deployment: `one` is the speed of a replica that reads one prompt and writes one token,
    `request_per_s` what all replicas read.
    """

    one: ServingSpeed
    replicas: int
    request_per_s: float
    transfer_s: float
    link: str


def transfer_between(
    spec: ModelSpec,
    gpu: GpuSpec,
    form: KvFormat,
    prompt_tokens: int,
    ranks: tuple[int, int],
    total: int,
    use: Efficiency,
) -> tuple[float, str]:
    """Seconds that a prompt's cache takes from a replica of the first ranks to one of the second, and over what."""
    link = link_between(gpu, min(total, GPUS_PER_MACHINE + 1), use)
    size = max(
        sum(
            copies * sequence_bytes(cache, form, prompt_tokens, side)
            for layer, copies in spec.distinct_layers()
            for cache in layer.caches
            if not isinstance(cache, IndexerKeys)
        )
        for side in ranks
    )
    return send_s(link, size), link.kind


def pooled_speed(pool: Pool, decode: ServingSpeed, output_tokens: int) -> ServingSpeed:
    """Return the speed of both pools; `decode` is that of the decode pool, which finds every prompt in its cache."""
    per_s = min(decode.request_per_s, _MOST_BUSY * pool.request_per_s)
    wait_s = queue_s(pool, per_s) + pool.transfer_s + decode.step_s / 2
    ttft_s, long_ttft_s = pool.one.ttft_s + wait_s, pool.one.long_ttft_s + wait_s
    low, high = (bound / pool.one.ttft_s for bound in (pool.one.low_ttft_s, pool.one.high_ttft_s))
    return replace(
        decode,
        ttft_s=ttft_s,
        long_ttft_s=long_ttft_s,
        low_ttft_s=ttft_s * low,
        high_ttft_s=ttft_s * high,
        prefill_tokens_per_s=pool.one.prefill_tokens_per_s * pool.replicas,
        decode_tokens_per_s=per_s * output_tokens,
        request_per_s=per_s,
        bound={"prefill": pool.one.bound["prefill"], "decode": decode.bound["decode"]},
        lines=(
            *(line for line in pool.one.lines if line.phase == "prefill"),
            *(line for line in decode.lines if line.phase == "decode"),
        ),
    )


def busy_fraction(pool: Pool, per_s: float) -> float:
    """The part of the time that a prefill replica works."""
    return per_s / pool.request_per_s


def queue_s(pool: Pool, per_s: float) -> float:
    """The mean wait before a prompt is read."""
    busy = busy_fraction(pool, per_s)
    return busy / (2 * (1 - busy)) * pool.replicas / pool.request_per_s
