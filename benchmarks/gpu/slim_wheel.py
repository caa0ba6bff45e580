"""Make a vLLM wheel small enough to carry to a machine with no package index: the code for one GPU architecture only.

    python benchmarks/gpu/slim_wheel.py vllm-0.22.0-*.whl --architecture 90 --output vllm-sm90.tar.xz [--skip NAME...]

The wheel's libraries hold machine code for eight architectures or so. In each bundle of them only the code that the
one GPU would choose is kept: its own, else the newest intermediate code (PTX) that its driver can translate. The rest
is overwritten with zeros, which compress to nothing; sizes and addresses stay as they are, so the libraries load as
before. Unpack the archive anywhere on PYTHONPATH. `--skip` leaves out libraries whole, such as `_vllm_fa2_C` on a GPU
that uses the third generation of FlashAttention.

Source: the layout of fat binaries, read off the files themselves: bundles begin with the number 0xBA55ED50, a header
length and a body length; each piece in a body has a kind (1 PTX, 2 machine code), its own two lengths and an
architecture number.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BUNDLE = 0xBA55ED50
PTX, MACHINE_CODE = 1, 2
_UNWANTED = (".jpg", ".png", "swagger-ui-bundle.js", "/vllm-rs", "/RECORD")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Code for one architecture inside a bundle: where its body lies in the file, and how long it is."""

    kind: int
    architecture: int
    start: int
    length: int


def bundles(library: bytes) -> Iterator[list[Piece]]:
    """Return the pieces of each bundle of a library, in the file's order."""
    marker = struct.pack("<I", BUNDLE)
    position = library.find(marker)
    while position >= 0:
        _, version, header_length, body_length = struct.unpack_from("<IHHQ", library, position)
        end = position + header_length + body_length
        if version == 1 and header_length == 16 and end <= len(library):
            yield list(_pieces(library, position + header_length, end))
            position = library.find(marker, end)
        else:  # the number turned up inside other data
            position = library.find(marker, position + 4)


def _pieces(library: bytes, position: int, end: int) -> Iterator[Piece]:
    while position + 32 <= end:
        kind, _, header_length, length = struct.unpack_from("<HHIQ", library, position)
        (architecture,) = struct.unpack_from("<I", library, position + 28)
        yield Piece(kind=kind, architecture=architecture, start=position + header_length, length=length)
        position += header_length + length


def kept(pieces: Sequence[Piece], architecture: int) -> list[Piece]:
    """Return what a GPU of this architecture (90 for compute capability 9.0) would choose from a bundle."""
    # Machine code runs on later minor versions of the same major one, PTX on everything newer.
    native = [
        piece
        for piece in pieces
        if piece.kind == MACHINE_CODE and piece.architecture // 10 == architecture // 10
        if piece.architecture <= architecture
    ]
    usable = native or [piece for piece in pieces if piece.kind == PTX and piece.architecture <= architecture]
    newest = max((piece.architecture for piece in usable), default=None)
    return [piece for piece in usable if piece.architecture == newest]


def slim(library: bytes, architecture: int) -> bytes:
    """Return a library in which the code for other architectures is zeros; its length is the same."""
    result = bytearray(library)
    for pieces in bundles(library):
        keep = kept(pieces, architecture)
        for piece in pieces:
            if piece not in keep:
                result[piece.start : piece.start + piece.length] = bytes(piece.length)
    return bytes(result)


def pack(wheel: Path, output: Path, architecture: int, skip: Sequence[str]) -> list[tuple[str, int]]:
    """Write the slimmed archive; returns each library's name and the bytes of its code that is left."""
    left = []
    with zipfile.ZipFile(wheel) as source, tarfile.open(output, "w:xz", preset=6) as target:
        for info in source.infolist():
            name = info.filename
            if name.endswith(_UNWANTED) or any(part in name for part in skip):
                continue
            data = source.read(info)
            if name.endswith(".so"):
                data = slim(data, architecture)
                left.append((name, len(data) - data.count(0)))
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755 if name.endswith(".so") else 0o644
            target.addfile(entry, io.BytesIO(data))
    return left


def main() -> int:
    """Slim the wheel that is named and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--architecture", type=int, default=90, help="90 for H100 and H200, 80 for A100, 100 for B200")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--skip", nargs="*", default=[])
    options = parser.parse_args()
    for name, left_bytes in pack(options.wheel, options.output, options.architecture, options.skip):
        print(f"{left_bytes / 2**20:8.1f} MiB  {name}")
    print(f"{options.output.stat().st_size / 2**20:8.1f} MiB  {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
