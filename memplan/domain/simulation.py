"""A simulated serving engine: the requests that reach it, how it is set up, and what came of it.

Columns of many requests are `array.array` ('q' for counts, 'd' for seconds): a million of them take megabytes.
"""

from __future__ import annotations

from array import array
from typing import Literal

from memplan.errors import UsageError
from memplan.records import dataclass, field

Batching = Literal["continuous", "static"]
Allocation = Literal["paged", "contiguous"]
Preemption = Literal["recompute", "swap"]
Routing = Literal["round-robin", "least-loaded", "kv-aware"]
ArrivalUnit = Literal["seconds", "steps"]
Outcome = Literal["finished", "rejected", "unfinished"]

OUTCOMES: tuple[Outcome, ...] = ("finished", "rejected", "unfinished")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests, one an index of every column, in the order in which they arrive (those that follow others apart).

    `arrivals` are seconds or scheduler steps (`unit`): request i is handed to the engine before the first step that
    starts at or after it. Where `follows[i]` is another request's index (an earlier one), `arrivals[i]` is the pause
    after that one has finished: turns of a conversation, users of a closed loop.

    What tokens are equal decides what a prefix cache finds. A request's tokens are the pieces of
    `prefixes[prefix_of[i]]`, then tokens of the stream `stream_of[i]` up to the end of the prompt; the answer continues
    the stream. A piece `(content, tokens)` is the first so many tokens of the text with that id; two texts or streams
    with different ids have nothing in common, and two with the same id are equal as far as both go. -1 stands for no
    prefix, and for a stream that no other request has. So a system prompt is a prefix, a trace's block hashes are
    pieces, and the turns of a conversation have one stream, the prompt of each reaching past the answer before it.
    """

    arrivals: array[float]
    prompt_tokens: array[int]
    output_tokens: array[int]
    unit: ArrivalUnit = "seconds"
    prefixes: tuple[tuple[tuple[int, int], ...], ...] = ()
    prefix_of: array[int] | None = None
    stream_of: array[int] | None = None
    follows: array[int] | None = None

    def __post_init__(self) -> None:
        columns = (self.prompt_tokens, self.output_tokens, self.prefix_of, self.stream_of, self.follows)
        for column in columns:
            if column is not None and len(column) != len(self.arrivals):
                raise UsageError(
                    f"{len(self.arrivals)} requests arrive, a column has {len(column)}", hint="give one value a request"
                )

    @property
    def num_requests(self) -> int:
        return len(self.arrivals)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroup:
    """Layers that share a block table: one block of the pool holds `block_tokens` tokens of all layers of the group.

    `window_tokens` is that of sliding-window layers, whose blocks are given back once they have left it; None for
    layers that keep everything. `chunk_tokens` that of chunked local attention, whose blocks go with their chunk.
    """

    block_tokens: int = 16
    window_tokens: int | None = None
    chunk_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledSteps:
    """Step times of the planner's speed model, as tables with straight lines between their points.

    A step takes `pass_s` at its tokens (weights, collectives, overheads), `sequence_s` for every sequence in it, for
    each decoding sequence `decode_s` at its mean context, and for a chunk of a prompt from position a to b
    `prompt_s(b) - prompt_s(a)`. `decode_s` and `prompt_s` share the points `positions`. `request_s` is spent on a
    request before it reaches the scheduler.
    """

    tokens: tuple[float, ...]
    pass_s: tuple[float, ...]
    positions: tuple[float, ...]
    decode_s: tuple[float, ...]
    prompt_s: tuple[float, ...]
    sequence_s: float = 0.0
    request_s: float = 0.0
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSteps:
    """Step times as a user measured them: decode steps over batch and mean context, prompts over tokens in a step.

    `decode_points` are (batch, context tokens, seconds), `prefill_points` (prompt tokens in one step, seconds). Between
    the points lines are drawn, beyond them the last line goes on, never below the nearest point's part of zero. A step
    of both takes the longer one's time and what the other adds to an empty step.
    """

    decode_points: tuple[tuple[float, float, float], ...]
    prefill_points: tuple[tuple[float, float], ...]
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualSteps:
    """Every step takes as long: the clock of a replay in lock-step, where time is counted in steps."""

    step_s: float = 1.0


StepTimes = ModelledSteps | MeasuredSteps | EqualSteps
"""A closed union of what tells how long a step takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSettings:
    """One deployment: its cache and its scheduler, for each replica alike.

    `num_blocks` are the blocks of the pool that requests can have (vLLM prints one more, the null block), shared by all
    `groups`; a contiguous cache has the same room, `num_blocks` times the first group's block, in one piece, and gives
    every request `context_tokens` of it (`reserve` "longest"), its prompt and the next power of two of its answer
    ("power"), or exactly what it will need ("exact"): the three of the PagedAttention paper. `pieces` come from the
    first gap that is wide enough, or from a "buddy" allocator, as that paper takes them to. `static` batching takes a
    batch in and no other until all of it has finished.

    With `partial_reuse` a cached prefix may end inside a block: its tokens are copied to a block of the request's own
    (copy on write), for one group of layers that keep everything. `window_retention_tokens` says where the blocks of
    sliding windows stay findable: before the end of a prompt and where requests part (0, as vLLM does), before every
    multiple of it too, or everywhere (None).

    `long_prefill_tokens` caps a chunk of one prompt (0: no cap). `watermark_fraction` of the pool is left free when a
    waiting request is taken in beside others. With `reserve_prompt` it is taken in only when its whole prompt has room,
    not the first chunk alone. Requests that reach a replica with `max_queue` waiting ones are rejected (None: never),
    so are prompts that can never have room. `swap` moves what is preempted to `host_blocks` of host memory and back, at
    `swap_s` a block, and recomputes where they are full.

    With `async_scheduling` a step is scheduled while the one before it runs, before that one's tokens are known: who is
    done keeps its blocks a step longer, and who arrives waits for a step that is scheduled already.

    `prefill_replicas` above 0 serve prompts alone, `replicas` then decode alone; the cache of a prompt takes
    `transfer_s` a token to reach the other side.
    """

    num_blocks: int
    groups: tuple[CacheGroup, ...] = field(default_factory=lambda: (CacheGroup(),))
    context_tokens: int = 8192
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    batching: Batching = "continuous"
    allocation: Allocation = "paged"
    reserve: Literal["longest", "power", "exact"] = "longest"
    pieces: Literal["first-fit", "buddy"] = "first-fit"
    async_scheduling: bool = False
    chunked_prefill: bool = True
    prefix_caching: bool = True
    partial_reuse: bool = False
    window_retention_tokens: int | None = 0
    long_prefill_tokens: int = 0
    watermark_fraction: float = 0.0
    reserve_prompt: bool = True
    max_queue: int | None = None
    preemption: Preemption = "recompute"
    host_blocks: int = 0
    swap_s: float = 0.0
    replicas: int = 1
    routing: Routing = "round-robin"
    prefill_replicas: int = 0
    transfer_s: float = 0.0
    steps: StepTimes = field(default_factory=EqualSteps)
    max_points: int = 2000
    max_steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """What the cache held, as parts of its room, averaged over the steps in which a replica had work.

    They sum to one. `tokens` is what is there to be read by requests that run; `internal` the empty end of the last
    block; `reserved` what is kept for tokens to come; `external` room between contiguous pieces that no waiting request
    fits in; `cached` blocks of finished requests that a prefix cache may still find; `free` the rest. Blocks that
    several requests share count once, and what sharing saves is `shared` on top: what the same requests would take
    beyond it without.
    """

    tokens: float
    internal: float
    reserved: float
    external: float
    cached: float
    free: float
    shared: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Totals over all replicas.

    `computed_prompt_tokens` are those that passes computed, recomputed ones included (`recomputed_tokens` of them,
    answers that had to be read again too); `cached_tokens` were found in a prefix cache.
    """

    requests: int
    finished: int
    rejected: int
    unfinished: int
    steps: int
    preemptions: int
    swaps: int
    prompt_tokens: int
    output_tokens: int
    computed_prompt_tokens: int
    recomputed_tokens: int
    cached_tokens: int
    copied_blocks: int
    most_running: int
    most_waiting: int
    most_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Of one time, in seconds, over the requests that finished."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    longest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The state after steps of one replica (or the sum over all), thinned to `max_points` evenly over the steps.

    `tokens` are those stored for running requests, `used_blocks` blocks that requests hold (each once), `cached_blocks`
    free ones that a prefix cache may still find.
    """

    time_s: array[float]
    used_blocks: array[int]
    cached_blocks: array[int]
    tokens: array[int]
    running: array[int]
    waiting: array[int]
    preemptions: array[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """What came of it. Columns have one value a request, in the traffic's order; -1 for what never happened.

    `outcomes` index `OUTCOMES`. `arrived_s` is when the request reached the engine (after the one that it follows),
    `first_token_s` and `finished_s` on the same clock. With a unit of steps, seconds are steps.
    """

    settings: SimulationSettings
    counts: Counts
    waste: Waste
    ttft: Percentiles | None
    tpot: Percentiles | None
    end_to_end: Percentiles | None
    queued: Percentiles | None
    duration_s: float
    busy_s: float
    output_tokens_per_s: float
    requests_per_s: float
    series: Series
    replica_series: tuple[Series, ...]
    outcomes: array[int]
    arrived_s: array[float]
    scheduled_s: array[float]
    first_token_s: array[float]
    finished_s: array[float]
    preempted: array[int]
    cached_tokens: array[int]
    replica_of: array[int]
    notes: tuple[str, ...] = ()
