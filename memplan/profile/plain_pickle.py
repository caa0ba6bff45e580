"""Reads a pickle that is made of plain containers only, and refuses every other before anything of it is built.

A pickle is a program. PyTorch's snapshots need of it only lists, dictionaries, tuples, text, numbers, True, False and
None; so the bytes are scanned first for instructions outside of that, which is done by a regular expression that knows
the length of each instruction and so never mistakes text for one. What passes is then loaded by the standard library,
which is still given no way to import anything.

Limits: the size of the file; how many containers it makes for its size, since one byte can ask for an object of sixty;
and the numbers that it gives to what it means to repeat, since a large one makes the reader allocate a table.
"""

from __future__ import annotations

import gc
import io
import pickle
import re
from pathlib import Path
from typing import NoReturn

from memplan.errors import CorruptFile, SourceNotFound
from memplan.units import GIB, format_gib

_LIMIT_BYTES = GIB
# A snapshot's smallest entry, with its seven keys already known, takes more than forty bytes for one dictionary.
_BYTES_PER_CONTAINER = 6
_SMALL_FILE = 4096

_CONTAINERS = (b"}", b"]", b"\x85", b"\x86", b"\x87")
# Whole numbers. Those of addresses have six bytes, those of times seven.
_LENGTHS = (6, 7, 5, *(length for length in range(17) if length not in (5, 6, 7)))
_INTEGER = rb"(?:K.|M..|J.{4}|\x8a(?:%b))" % b"|".join(
    rb"%b.{%d}" % (re.escape(bytes([length])), length) for length in _LENGTHS
)
# Instructions whose length is known from their first bytes: the mark, lists, dictionaries, None, True and False,
# repeats of something numbered below 256 or by four bytes, fractions, and the frames that newer files are cut into.
# Tuples are of one to three numbers alone: of tuples in tuples a key could be made that is too deep to be hashed.
_RUN = re.compile(
    rb"(?:[(})\]aeusN\x88\x89\x94]|h.|j.{4}|"
    rb"%b(?:\x85|%b(?:[\x85\x86]|%b{1,14}[\x85-\x87]?)?)?|"
    rb"G.{8}|\x95.{8}){1,400}" % (_INTEGER, _INTEGER, _INTEGER),
    re.DOTALL,
)


def read_plain(path: Path, *, limit_bytes: int = _LIMIT_BYTES) -> object:
    """Return what a pickle of plain containers holds.

    Raises: SourceNotFound when there is no such file; CorruptFile for one that is too large, is no pickle, is cut off,
    or asks for anything but plain containers.
    """
    try:
        size = path.stat().st_size
        if size > limit_bytes:
            raise CorruptFile(
                f"too large for a snapshot: `{path}` has {format_gib(size)}",
                hint="record fewer entries: torch.cuda.memory._record_memory_history(max_entries=100000)",
            )
        data = path.read_bytes()
    except OSError as error:
        raise SourceNotFound(f"cannot read `{path}`: {(error.strerror or str(error)).lower()}") from None
    try:
        return load_plain(data)
    except CorruptFile as error:
        raise CorruptFile(f"{error.message}: `{path}`", hint=error.hint) from None


def load_plain(data: bytes) -> object:
    """The same for bytes. Raises: CorruptFile."""
    check_plain(data)
    # Millions of containers at once, none of them garbage: looking for some would take longer than loading.
    was_on = gc.isenabled()
    gc.disable()
    try:
        return _NothingToImport(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CorruptFile(f"damaged pickle ({str(error)[:80] or type(error).__name__})") from None
    finally:
        if was_on:
            gc.enable()


class _NothingToImport(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"asks for {module_name[:40]}.{global_name[:40]}")

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("refers to something outside of the file")


def check_plain(data: bytes) -> None:
    """Raise CorruptFile unless the bytes are one pickle that builds nothing but plain containers."""
    if len(data) < 3 or data[0] != 0x80 or not 2 <= data[1] <= 5:
        raise CorruptFile("not a pickle", hint="give a file that torch.cuda.memory._dump_snapshot wrote")
    made = sum(data.count(container) for container in _CONTAINERS)
    if made * _BYTES_PER_CONTAINER > max(len(data), _SMALL_FILE):
        raise CorruptFile("not a snapshot: almost nothing but containers")
    position, numbered, size = 2, 0, len(data)
    while position < size:
        run = _RUN.match(data, position)
        if run is not None:
            position = run.end()
            continue
        opcode = data[position]
        if opcode == 0x2E:  # the end
            return
        if opcode == 0x58:  # text with its length in four bytes
            position += 5 + int.from_bytes(data[position + 1 : position + 5], "little")
        elif opcode == 0x8C:  # text with its length in one byte
            position += 2 + int.from_bytes(data[position + 1 : position + 2], "little")
        elif opcode in (0x71, 0x72):  # give what was built last a number: one byte of it, or four
            width = 1 if opcode == 0x71 else 4
            number = int.from_bytes(data[position + 1 : position + 1 + width], "little")
            if number > numbered:
                raise CorruptFile("damaged pickle (a number out of turn)")
            numbered = max(numbered, number + 1)
            position += 1 + width
        else:
            raise CorruptFile(
                "not plain data: the pickle wants to build objects",
                hint="only what torch.cuda.memory._dump_snapshot writes is read",
            )
    raise CorruptFile("cut off: the pickle has no end")
