"""A profile over several processes: memplan starts them by torchrun and reads what each leaves, or this process is one
that torchrun or `accelerate launch` has started already, and the first of them collects what the others found.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from memplan.cli.profile_files import read_profile
from memplan.cli.rank import plain, share_of
from memplan.domain.timeline import MemoryTimeline
from memplan.errors import MemplanError, MissingExtra, SourceError, UnsupportedModel, UsageError
from memplan.profile.request import ProfileRequest

_KINDS: dict[int, type[MemplanError]] = {2: UsageError, 3: SourceError, 4: UnsupportedModel, 5: MissingExtra}


def profile_ranks(request: ProfileRequest) -> list[MemoryTimeline]:
    """Run a request on `num_ranks` processes and return each one's profile, by rank.

    Raises: MemplanError as one process alone would; UnsupportedModel where a process dies.
    """
    if launched_ranks() > 1:
        return as_launched_rank(request)
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


def launched_ranks() -> int:
    """How many processes were started of which this is one; 0 where this one was started alone."""
    named = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return int(os.environ["WORLD_SIZE"]) if named else 0


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """Let one of several processes say what all of them would say: notes, and why nothing can be run."""
    if launched_ranks() < 2 or os.environ["RANK"] == "0":
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        except MemplanError as error:
            raise SystemExit(error.exit_code) from None


def check_launch(requests: Sequence[ProfileRequest]) -> None:
    """Refuse what the processes that were started cannot run together. Raises: UsageError."""
    started = launched_ranks()
    if started < 2:
        return
    request = requests[0]
    if request.device == "simulated":
        raise UsageError(
            f"{started} processes were started, and a simulated rank needs one",
            hint="leave out the launcher, or give --device cpu or cuda",
        )
    if request.num_ranks != started:
        asked = f"--{request.sharing} {request.num_ranks}" if request.sharing != "none" else "no --ddp, --fsdp or --tp"
        raise UsageError(f"{started} processes were started, and {asked} was given", hint=f"give --fsdp {started}")
    if len(requests) > 1:
        raise UsageError("a launcher runs one profile", hint="name one batch, one length and one attention kernel")


def as_launched_rank(request: ProfileRequest) -> list[MemoryTimeline]:
    """Run this process's share and return the profiles of all, by rank; ends every process but the first.

    Raises: MemplanError that says which rank it is of.
    """
    from memplan.profile.sharing import among_ranks, gathered
    from memplan.report.profile_json import profiles_json

    rank = int(os.environ["RANK"])
    try:
        with among_ranks(request):
            found = gathered(profiles_json([share_of(request, rank)]))
    except MemplanError as error:
        raise type(error)(f"rank {rank}: {error.message}", hint=error.hint) from error
    if rank != 0:
        raise SystemExit(0)
    with tempfile.TemporaryDirectory(prefix="memplan-ranks-") as name:
        made = []
        for number, text in enumerate(found):
            path = Path(name) / f"rank-{number}.json"
            path.write_text(text, "utf-8")
            made.append(read_profile(path))
        return made


def _last(text: str) -> str:
    """The last line of an error's own words in what a process printed."""
    lines = [line.strip() for line in text.splitlines() if "Error" in line and "ChildFailedError" not in line]
    return lines[-1][:200] if lines else "it left no message"
