"""What contiguous and paged caches waste on requests that stay shorter than they may become.

A contiguous cache reserves the longest length for every request, so the waste of each is the longest less the mean. A
paged cache hands out pages as the request grows; half of the last page is empty on average. That is the argument of
the PagedAttention paper, which found 20 to 38 % of contiguous caches in use.

Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023;
docs/memory-model.md, "Waste".
"""

from __future__ import annotations

from memplan.domain.budget import KvWaste


def kv_waste(
    *, pool_bytes: int, mean_tokens: int, context_tokens: int, mean_bytes: int, context_bytes: int, page_tokens: int
) -> KvWaste:
    """Return the waste of a pool of `pool_bytes` that is full of requests of `mean_tokens`.

    `mean_bytes` and `context_bytes` are what one request of the mean and of the longest length takes.
    """
    growth = (context_bytes - mean_bytes) / max(1, context_tokens - mean_tokens)
    page_waste = round(growth * page_tokens / 2)
    contiguous = pool_bytes // max(1, context_bytes)
    paged = pool_bytes // max(1, mean_bytes + page_waste)
    return KvWaste(
        mean_tokens=mean_tokens,
        context_tokens=context_tokens,
        contiguous_wasted_bytes=contiguous * max(0, context_bytes - mean_bytes),
        paged_wasted_bytes=paged * page_waste,
        contiguous_requests=contiguous,
        paged_requests=paged,
    )
