"""The caching allocator's settings, as PYTORCH_CUDA_ALLOC_CONF writes them."""

from __future__ import annotations

from memplan.budget.allocator import LARGE_SEGMENT_BYTES, OWN_SEGMENT_BYTES
from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass
from memplan.units import MIB

# One entry for each power of two from 1 MiB to 32 GiB; the first also serves smaller requests, the last larger ones.
NUM_INTERVALS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorSettings:
    """What can be set, with PyTorch's own defaults.

    Blocks of `max_split_bytes` or more are neither split nor given to smaller requests (None: no limit); they serve
    requests up to `non_split_rounding_bytes` smaller than they are. `roundup_divisions` is empty, or has NUM_INTERVALS
    numbers of steps that a power of two is cut into. Cached segments are collected above `gc_threshold` of what the
    process may hold, which is `memory_fraction` of the device; PyTorch collects only where that is less than 1.
    """

    expandable_segments: bool = False
    max_split_bytes: int | None = None
    non_split_rounding_bytes: int = LARGE_SEGMENT_BYTES
    roundup_divisions: tuple[int, ...] = ()
    gc_threshold: float = 0.0
    memory_fraction: float | None = None
    large_segment_bytes: int = LARGE_SEGMENT_BYTES

    def describe(self) -> str:
        """Write what differs from the defaults, as the environment variable would have it."""
        parts = []
        if self.expandable_segments:
            parts.append("expandable_segments:True")
        if self.max_split_bytes is not None:
            parts.append(f"max_split_size_mb:{self.max_split_bytes // MIB}")
        if self.non_split_rounding_bytes != LARGE_SEGMENT_BYTES:
            parts.append(f"max_non_split_rounding_mb:{self.non_split_rounding_bytes // MIB}")
        if any(self.roundup_divisions):
            parts.append(f"roundup_power2_divisions:{_write_divisions(self.roundup_divisions)}")
        if self.gc_threshold:
            parts.append(f"garbage_collection_threshold:{self.gc_threshold:g}")
        if self.memory_fraction is not None:
            parts.append(f"per_process_memory_fraction:{self.memory_fraction:g}")
        if self.large_segment_bytes != LARGE_SEGMENT_BYTES:
            parts.append(f"large_segment_size_mb:{self.large_segment_bytes // MIB}")
        return ",".join(parts)


# Settings of pinned host memory, locks and graph capture: they change no size on the device.
_WITHOUT_EFFECT = (
    "pinned_use_background_threads",
    "pinned_use_cuda_host_register",
    "pinned_num_register_threads",
    "pinned_reserve_segment_size_mb",
    "pinned_max_round_threshold_mb",
    "pinned_max_cached_size_mb",
    "pinned_free_catch_all",
    "release_lock_on_cudamalloc",
    "graph_capture_record_stream_reuse",
    "throw_on_cudamalloc_oom",
)
_KNOWN = (
    "expandable_segments",
    "max_split_size_mb",
    "max_non_split_rounding_mb",
    "roundup_power2_divisions",
    "garbage_collection_threshold",
    "per_process_memory_fraction",
    "large_segment_size_mb",
    "backend",
    *_WITHOUT_EFFECT,
)


def parse_settings(text: str) -> AllocatorSettings:
    """Return the settings that `text` names, such as `expandable_segments:True,max_split_size_mb:128`.

    An empty text is PyTorch's defaults; a setting that changes no size on the device is accepted and left out.

    Raises: UsageError for an unknown setting, a value that PyTorch refuses, or the backend cudaMallocAsync, which is
    another allocator.
    """
    values: dict[str, str] = {}
    for part in _parts(text):
        name, colon, value = part.partition(":")
        if name not in _KNOWN:
            hint = did_you_mean(name, list(_KNOWN)) or "see PYTORCH_CUDA_ALLOC_CONF in PyTorch's notes on CUDA"
            raise UsageError(f"unknown allocator setting: `{name:.60}`", hint=hint)
        if not colon or not value:
            raise UsageError(f"allocator setting without a value: `{part:.60}`", hint=f"write {name}:VALUE")
        values[name] = value
    if values.get("backend", "native") != "native":
        raise UsageError(
            f"another allocator: `backend:{values['backend']:.40}`", hint="only backend:native is simulated"
        )
    large = _megabytes(values, "large_segment_size_mb", above=OWN_SEGMENT_BYTES // MIB) or LARGE_SEGMENT_BYTES
    least = large // MIB - 1
    return AllocatorSettings(
        expandable_segments=_truth(values, "expandable_segments"),
        max_split_bytes=_megabytes(values, "max_split_size_mb", above=least),
        non_split_rounding_bytes=_megabytes(values, "max_non_split_rounding_mb", above=least) or LARGE_SEGMENT_BYTES,
        roundup_divisions=_divisions(values.get("roundup_power2_divisions", "")),
        gc_threshold=_share(values, "garbage_collection_threshold") or 0.0,
        memory_fraction=_share(values, "per_process_memory_fraction"),
        large_segment_bytes=large,
    )


def _parts(text: str) -> list[str]:
    """Split at commas outside of brackets; white space does not count."""
    parts, depth, start = [], 0, 0
    text = "".join(text.split())
    for index, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return [part for part in parts if part]


def _truth(values: dict[str, str], name: str) -> bool:
    value = values.get(name, "False")
    if value not in ("True", "False"):
        raise UsageError(f"not True or False: `{name}:{value:.40}`", hint="PyTorch wants the capital letter")
    return value == "True"


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise UsageError(f"not a whole number: `{name}:{value:.40}`", hint="give the digits alone, such as 128")
    return int(value)


def _megabytes(values: dict[str, str], name: str, *, above: int) -> int | None:
    if name not in values:
        return None
    number = _number(name, values[name])
    if number <= above:
        raise UsageError(f"too small: `{name}:{number}`", hint=f"PyTorch takes more than {above}")
    return number * MIB


def _share(values: dict[str, str], name: str) -> float | None:
    if name not in values:
        return None
    try:
        share = float(values[name])
    except ValueError:
        share = -1.0
    top_counts = name == "per_process_memory_fraction"
    if not (0 < share < 1 or (top_counts and share == 1)):
        raise UsageError(f"not a share: `{name}:{values[name]:.40}`", hint="give a number between 0 and 1, such as 0.8")
    return share


def _divisions(text: str) -> tuple[int, ...]:
    """Read `4`, or `[64:8,256:4,>:2]` with powers of two in MiB on the left; between named ones nothing is cut."""
    name = "roundup_power2_divisions"
    if not text:
        return ()
    if not text.startswith("["):
        return (max(_power_of_two(name, text), 1),) * NUM_INTERVALS
    steps = [0] * NUM_INTERVALS
    last = -1
    for number, entry in enumerate(text[1:].removesuffix("]").split(",")):
        size, colon, cut = entry.partition(":")
        if not colon:
            raise UsageError(f"not SIZE:DIVISIONS: `{entry:.40}`", hint=f"write {name}:[64:8,256:4,>:2]")
        divisions = _power_of_two(name, cut)
        if size == ">":
            steps[last + 1 :] = [divisions] * (NUM_INTERVALS - last - 1)
            continue
        last = min(max(_power_of_two(name, size), 1).bit_length() - 1, NUM_INTERVALS - 1)
        steps[last] = divisions
        if number == 0:
            steps[:last] = [divisions] * last
    return tuple(steps)


def _power_of_two(name: str, text: str) -> int:
    number = _number(name, text)
    if number & (number - 1):
        raise UsageError(f"not a power of two: `{text:.40}` in {name}", hint="give 1, 2, 4, 8 and so on")
    return number


def _write_divisions(steps: tuple[int, ...]) -> str:
    if len(set(steps)) == 1:
        return str(steps[0])
    return "[" + ",".join(f"{1 << power}:{cut}" for power, cut in enumerate(steps)) + "]"
