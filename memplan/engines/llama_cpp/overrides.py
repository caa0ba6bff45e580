"""`--override-tensor`: weights that a pattern of their names puts on another device, as `blk\\.[0-9]+\\.ffn_.*=CPU`.

Source: common/arg.cpp (parse_tensor_buffer_overrides) and llama_model_loader of llama.cpp; the first pattern that is
found in a tensor's name decides.
"""

from __future__ import annotations

import re
from functools import lru_cache

from memplan.errors import UsageError
from memplan.records import dataclass

_MAX_CHARACTERS = 2000
_NUMBERED = re.compile(r"[A-Za-z]+(\d+)")


@dataclass(frozen=True, slots=True)
class Override:
    """A pattern, and the device it names; the host is the number of GPUs."""

    pattern: str
    target: str
    device: int

    def __str__(self) -> str:
        return f"{self.pattern}={self.target}"

    def matches(self, name: str) -> bool:
        """Whether the pattern is found in a tensor's whole name."""
        return _is_found(self.pattern, name)


@lru_cache(maxsize=1 << 16)
def _is_found(pattern: str, name: str) -> bool:
    return re.search(pattern, name) is not None


def read_overrides(text: str | None, num_gpus: int) -> tuple[Override, ...]:
    """Return the overrides of one option, in their order.

    Raises: UsageError for a pattern or a device that does not read.
    """
    if not text:
        return ()
    if len(text) > _MAX_CHARACTERS:
        raise UsageError(f"override_tensor of {len(text)} characters", hint=f"use at most {_MAX_CHARACTERS}")
    return tuple(_override(part, num_gpus) for part in _parts(text))


def _parts(text: str) -> list[str]:
    """The pairs between commas; a comma inside a pattern's braces or brackets belongs to it."""
    parts: list[str] = []
    for piece in text.split(","):
        if parts and "=" not in parts[-1]:
            parts[-1] += f",{piece}"
        else:
            parts.append(piece)
    return [part for part in parts if part.strip()]


def _override(part: str, num_gpus: int) -> Override:
    pattern, separator, target = part.strip().rpartition("=")
    if not separator or not pattern:
        raise UsageError(f"not an override_tensor: `{part}`", hint="write PATTERN=DEVICE, such as exps=CPU")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"not a pattern: `{pattern}` ({error})", hint="a dot is written `\\.`, as in blk\\.1\\.ffn_.*=CPU"
        ) from None
    return Override(pattern, target, _device(target, num_gpus))


def _device(target: str, num_gpus: int) -> int:
    if target.upper() == "CPU" or target.endswith("_Host"):
        return num_gpus
    numbered = _NUMBERED.fullmatch(target)
    if numbered and int(numbered[1]) < num_gpus:
        return int(numbered[1])
    raise UsageError(f"override_tensor names no device of this start: `{target}`", hint="use CPU, or CUDA0 and on")
