"""What stops long work from outside: an interrupt, too little memory, a full disk; and what is said of it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from memplan.errors import DoesNotFit, MemplanError, Unfinished

if TYPE_CHECKING:
    from memplan.quantize.workspace import Workspace

_MEMORY, _DISK = "out of memory", "the disk is full"
_ROOM = {_MEMORY: "with more memory free", _DISK: "with more room"}


@contextmanager
def resumable(workspace: Workspace, num_blocks: int) -> Iterator[None]:
    """Raises: Unfinished, which says how to go on, for what stops work and leaves finished blocks as they are."""
    try:
        yield
    except MemplanError:
        raise
    except (KeyboardInterrupt, Exception) as error:
        why = "stopped" if isinstance(error, KeyboardInterrupt) else lacking(error)
        if why is None:
            raise
        room = f", {_ROOM[why]}," if why in _ROOM else ""
        raise Unfinished(
            f"{why} after {len(workspace.blocks)} of {num_blocks} blocks; they are kept in {workspace.folder}",
            hint=f"the same command with --resume{room} goes on",
        ) from None


@contextmanager
def in_one_go(doing: str) -> Iterator[None]:
    """Work that keeps nothing when it stops. Raises: DoesNotFit where memory or room on the disk ran out."""
    try:
        yield
    except MemplanError:
        raise
    except Exception as error:
        why = lacking(error)
        if why is None:
            raise
        raise DoesNotFit(f"{why} while {doing}; nothing is kept", hint=f"the same command {_ROOM[why]}") from None


def lacking(error: Exception) -> str | None:
    """What an error says there was too little of; None for other errors."""
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, OSError):
        return _DISK if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    if isinstance(error, RuntimeError):
        from memplan.quantize.torch_memory import is_short_of_memory

        return _MEMORY if is_short_of_memory(error) else None
    return None
