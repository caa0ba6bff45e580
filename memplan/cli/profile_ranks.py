"""A profile over several processes of this machine: torchrun starts them, their profiles are read and joined."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from memplan.cli.profile_files import read_profile
from memplan.domain.dtypes import DType
from memplan.domain.timeline import MemoryTimeline
from memplan.errors import MemplanError, MissingExtra, SourceError, UnsupportedModel, UsageError
from memplan.profile.request import ProfileRequest

_LISTS = ("phases", "lora_targets", "compute_capability")
_KINDS: dict[int, type[MemplanError]] = {2: UsageError, 3: SourceError, 4: UnsupportedModel, 5: MissingExtra}


def profile_ranks(request: ProfileRequest) -> list[MemoryTimeline]:
    """Run a request on `num_ranks` processes and return each one's profile, by rank.

    Raises: MemplanError as one process alone would; UnsupportedModel where a process dies.
    """
    with tempfile.TemporaryDirectory(prefix="memplan-ranks-") as name:
        folder = Path(name)
        path = folder / "request.json"
        path.write_text(json.dumps(plain(request)), "utf-8")
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launch += [f"--nproc-per-node={request.num_ranks}", "-m", "memplan.cli.rank", str(path), str(folder)]
        done = subprocess.run(launch, capture_output=True, text=True, check=False, env={**os.environ, **_QUIET})
        for error in sorted(folder.glob("error-*.json")):
            said = json.loads(error.read_text("utf-8"))
            raise _KINDS.get(said["code"], UnsupportedModel)(said["message"], hint=said["hint"])
        found = [folder / f"rank-{rank}.json" for rank in range(request.num_ranks)]
        if done.returncode != 0 or not all(each.exists() for each in found):
            raise UnsupportedModel(f"a process of {request.num_ranks} died: {_last(done.stderr)}")
        return [read_profile(each) for each in found]


# One thread each, as torchrun would set it with a warning.
_QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def plain(request: ProfileRequest) -> dict[str, Any]:
    """A request as JSON has it."""
    content = {name: getattr(request, name) for name in request.__dataclass_fields__}
    return {**content, "dtype": None if request.dtype is None else request.dtype.value}


def request_from(content: dict[str, Any]) -> ProfileRequest:
    """The request that `plain` was given."""
    lists = {name: tuple(content[name]) for name in _LISTS}
    dtype = None if content["dtype"] is None else DType(content["dtype"])
    return ProfileRequest(**{**content, **lists, "dtype": dtype})


def _last(text: str) -> str:
    """The last line of an error's own words in what a process printed."""
    lines = [line.strip() for line in text.splitlines() if "Error" in line and "ChildFailedError" not in line]
    return lines[-1][:200] if lines else "it left no message"
