"""What a budget says, in words and numbers that every format shares. Nothing here knows how a page looks."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.budget import MemoryBudget
from memplan.domain.remedies import cheapest_remedy, flags_to_type
from memplan.units import KIB, format_count, format_gib

VERDICTS = {"fits": "FITS", "tight": "TIGHT", "does_not_fit": "DOES NOT FIT"}
SHORT_VERDICTS = {"fits": "yes", "tight": "tight", "does_not_fit": "no"}


def title(budget: MemoryBudget) -> str:
    """The model and its size: `llama, 70.55 B parameters`."""
    moe = f", {format_count(budget.active_parameters)} active" if budget.active_parameters != budget.parameters else ""
    return model_title(budget.model_name, budget.parameters) + moe


def model_title(name: str, parameters: int) -> str:
    """A model and its size."""
    return f"{name}, {format_count(parameters)} parameters"


def gpus(budget: MemoryBudget) -> str:
    """The GPUs as they are named: `a100-80g`, or `2 x a100-80g`."""
    return f"{budget.num_gpus} x {budget.gpu_name}" if budget.num_gpus > 1 else budget.gpu_name


def device(budget: MemoryBudget) -> str:
    """What holds it all: a GPU, or a machine that has none."""
    return "machine" if budget.settings.get("backend") == "CPU" else "GPU"


def each_gpu(budget: MemoryBudget) -> str:
    """The GPU that the numbers are for: `the GPU`, or `each of 2 GPUs`."""
    return f"each of {budget.num_gpus} GPUs" if budget.num_gpus > 1 else f"the {device(budget)}"


def engine(budget: MemoryBudget) -> str:
    """The engine and its version."""
    return f"{budget.engine_name} {budget.engine_version}".strip()


def scheme(budget: MemoryBudget) -> str:
    """How the weights are stored, as far as the budget knows."""
    return budget.weights_scheme or str(budget.settings.get("quantization") or "")


def label(budget: MemoryBudget) -> str:
    """What tells this budget from others: GPUs, scheme, engine."""
    return ", ".join(part for part in (gpus(budget), scheme(budget), engine(budget)) if part)


def asked(budget: MemoryBudget) -> tuple[int, int] | None:
    """The context and the concurrency that were asked for; None where nothing is cached or neither is known."""
    needed, concurrency = budget.kv.needed_tokens, budget.settings.get("concurrency")
    if needed > 0 and isinstance(concurrency, int) and concurrency > 0 and needed >= concurrency:
        return needed // concurrency, concurrency
    context = budget.settings.get("max_model_len")
    return (context, needed // context) if isinstance(context, int) and 0 < context <= needed else None


def requests(number: int, context_tokens: int) -> str:
    """`1 request of 131,072 tokens`."""
    return f"{number:,} request{'s' if number != 1 else ''} of {context_tokens:,} tokens"


def sentence(budget: MemoryBudget) -> str:
    """The verdict as a sentence that needs nothing around it, without the verdict's word."""
    wanted = asked(budget)
    short = format_gib(budget.shortfall_bytes)
    if budget.verdict == "does_not_fit":
        what = f" for {requests(wanted[1], wanted[0])}" if wanted else ""
        return f"{short} short on {each_gpu(budget)}{what}." if budget.shortfall_bytes else "it cannot start as asked."
    if budget.verdict == "tight":
        if budget.shortfall_bytes:
            return f"too close to call. {short} are likely missing, which is within the error of this estimate."
        return "too close to call. What is left over is less than the error of this estimate."
    if wanted is None or budget.kv.max_concurrency is None:
        return "the weights load and the engine starts."
    room = max(int(budget.kv.max_concurrency), wanted[1])
    return f"there is room for {requests(room, wanted[0])} at once, {wanted[1]:,} asked for."


def reasons(budget: MemoryBudget) -> tuple[str, ...]:
    """The reasons of a verdict, each a sentence."""
    return tuple(reason[:1].upper() + reason[1:].rstrip(".") + "." for reason in budget.reasons if reason)


def mending(budget: MemoryBudget) -> str:
    """The cheapest change that mends the budget, as a sentence; nothing when it fits, or no change was tried."""
    if budget.verdict == "fits" or not budget.remedies:
        return ""
    best = cheapest_remedy(budget)
    if best is None:
        return "No single change mends it. Combine changes from the list, or take more or larger GPUs."
    about = f" ({best.note})" if best.note else ""
    outcome = "" if best.verdict == "fits" else " and makes it tight"
    returns = f"returns {format_gib(best.saves_bytes)} on {each_gpu(budget)}{outcome}"
    return f"Cheapest change that mends it: {flags_to_type(best.change)}{about}, which {returns}."


def next_step(budget: MemoryBudget) -> str:
    """How to go on from here."""
    best = cheapest_remedy(budget)
    if best is not None:
        return f"run it again with `{flags_to_type(best.change)}`"
    if budget.verdict == "does_not_fit":
        return f"`memplan estimate {budget.model_name}` without --gpu lists the GPUs that hold it"
    return "`--html --output page.html` draws this page, `--json` is for scripts"


def token_bytes(size_bytes: int) -> str:
    """What one token costs: `320 KiB`, `68.6 KiB`, `512 B`."""
    if size_bytes < KIB:
        return f"{size_bytes:,} B"
    return f"{size_bytes / KIB:,.1f}".removesuffix(".0") + " KiB"


def capacity(budget: MemoryBudget) -> list[tuple[str, str]]:
    """What the KV cache holds, as names and values; nothing for a model without one."""
    kv = budget.kv
    if kv.capacity_tokens is None:
        return []
    cost = ("one token takes", f"{token_bytes(kv.bytes_per_token)} over all layers, before sharding")
    wanted = asked(budget)
    what = requests(wanted[1], wanted[0]) if wanted else f"{kv.needed_tokens:,} tokens"
    need = ("asked for", f"{what}, {format_gib(kv.needed_bytes)} on {each_gpu(budget)}")
    if kv.capacity_tokens <= 0:
        return [cost, need, ("the cache holds", "nothing: no memory is left for it")]
    tokens = f"{kv.capacity_tokens:,} tokens"
    if kv.low_tokens is not None and kv.high_tokens is not None and kv.low_tokens != kv.high_tokens:
        tokens += f" ({kv.low_tokens:,} .. {kv.high_tokens:,})"
    if kv.blocks is not None and kv.block_size:
        tokens += f", {kv.blocks:,} blocks of {kv.block_size}"
    room = []
    if kv.max_concurrency is not None:
        number = f"{kv.max_concurrency:,.2f}".rstrip("0").rstrip(".")
        room.append(f"{number} requests of {wanted[0]:,} tokens at once" if wanted else f"{number} requests at once")
    if kv.max_context_tokens is not None:
        room.append(f"one request of {kv.max_context_tokens:,} tokens")
    return [cost, need, ("the cache holds", tokens), *([("room for", ", or ".join(room))] if room else [])]


def waste(budget: MemoryBudget) -> list[tuple[str, str, str]]:
    """Kind of cache, bytes wasted, requests that have room; nothing when no mean length was given."""
    found = budget.kv_waste
    if found is None:
        return []
    return [
        ("contiguous", format_gib(found.contiguous_wasted_bytes), f"{found.contiguous_requests:,}"),
        ("paged", format_gib(found.paged_wasted_bytes), f"{found.paged_requests:,}"),
    ]


def waste_title(budget: MemoryBudget) -> str:
    """What the waste is measured on."""
    found = budget.kv_waste
    assert found is not None
    return f"requests of {found.mean_tokens:,} tokens on average, each up to {found.context_tokens:,}"


def setting(value: object) -> str:
    """A setting's value as people read it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(each) for each in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def price(budget: MemoryBudget) -> str:
    """US dollars per hour of all GPUs, as a range where sources differ; nothing when no price is known."""
    found = budget.price
    if found is None:
        return ""
    low, high = found.low * budget.num_gpus, found.high * budget.num_gpus
    return f"{low:,.2f}" if low == high else f"{low:,.2f}-{high:,.2f}"


def price_sources(budgets: Sequence[MemoryBudget]) -> str:
    """Where the prices come from, each source once."""
    sources = (part for budget in budgets if budget.price for part in budget.price.source.split(" and "))
    return ", ".join(dict.fromkeys(sources))
