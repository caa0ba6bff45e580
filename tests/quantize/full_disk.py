"""A disk that fills while the command works: `unshare -Urm python full_disk.py FOLDER MODEL TEXTS`.

A disk of its own, 64 MiB of memory, is mounted on FOLDER. As soon as a block is finished there, all that is free is
taken, and what becomes free after it. Then there is room again and the command goes on. Printed as JSON: exit codes,
what was said, the files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

_PIECE_BYTES = 1 << 16


def main(folder: Path, model: str, texts: str) -> None:
    """Fill the disk under a run, make room, go on."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    command = [sys.executable, "-m", "memplan", "quantize", model, "--calibration", texts, *sys.argv[4:]]
    work, filler, errors = folder / "out.partial", folder / "filler", folder.with_name("errors.txt")
    with errors.open("w") as stream:
        started = subprocess.Popen([*command, "--output", str(folder / "out")], stdout=stream, stderr=stream)
    while started.poll() is None and not list(work.glob("block-*.safetensors")):
        time.sleep(0.001)
    while started.poll() is None:
        fill(filler)
        time.sleep(0.001)
    said = errors.read_text()
    kept = len(list(work.glob("block-*.safetensors")))
    filler.unlink()
    resumed = subprocess.run([*command, "--output", str(folder / "out"), "--resume"], capture_output=True, text=True)
    found = {
        "codes": [started.returncode, resumed.returncode],
        "said": [said, resumed.stderr],
        "kept": kept,
        "left": sorted(path.name for path in folder.iterdir()),
        "files": {path.name: digest(path) for path in (folder / "out").iterdir()},
    }
    print(json.dumps(found))


def fill(path: Path) -> None:
    """Take all that is free now, to the last byte."""
    with path.open("ab", buffering=0) as file:
        for size in (_PIECE_BYTES, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def digest(path: Path) -> str:
    """A hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
