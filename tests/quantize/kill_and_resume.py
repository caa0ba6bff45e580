"""Kill a quantization at random moments and go on with it: `python kill_and_resume.py MODEL FOLDER COUNT`.

Every run is a fork of this process, which has torch loaded and nothing running; so a kill is a real one (SIGKILL) and
costs no start of Python. Prints one line per kill: how many blocks were finished, and whether the bytes are the same.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from small_models import windows

from memplan.quantize.output import accept, write_checkpoint
from memplan.quantize.pipeline import Quantization
from memplan.quantize.request import quantize_request
from memplan.quantize.workspace import Workspace

REQUEST = quantize_request("gptq", group_size=32, symmetric=True)


def quantize(source: Path, output: Path, *, resume: bool) -> None:
    """From the start, or on from where a run was killed."""
    work = Quantization(REQUEST, source, windows(2, 2, 16))
    workspace = Workspace(output, work.identity())
    if resume and workspace.was_accepted(len(work.skeleton.blocks)):
        workspace.clear()
        return
    workspace.open(resume=resume and workspace.folder.exists(), force=False)
    work.run(workspace)
    accept(workspace, write_checkpoint(work, workspace), output)


def in_a_fork(source: Path, output: Path, *, resume: bool, kill_after_s: float | None = None) -> int:
    """Run in a child, perhaps kill it, and return how it ended: 0, or the number of the signal."""
    child = os.fork()
    if child == 0:
        try:
            quantize(source, output, resume=resume)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def digest(folder: Path) -> str:
    """A hash of all files of a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def main(source: Path, folder: Path, count: int) -> None:
    """Kill and resume `count` times, each time from the start; a run that ends before it is killed does not count."""
    torch.set_num_threads(1)
    quantize(source, folder / "warm", resume=False)  # in this process: forks then have all that is imported on the way
    start = time.monotonic()
    if in_a_fork(source, folder / "whole", resume=False):
        sys.exit("the run that is not killed fails")
    duration_s = time.monotonic() - start
    wanted = digest(folder / "whole")
    moments = random.Random(0)
    number = killed = 0
    while killed < count and number < 5 * count:
        output = folder / f"killed-{number}"
        moment_s = moments.uniform(0.0, 1.1) * duration_s
        ended = in_a_fork(source, output, resume=False, kill_after_s=moment_s)
        if ended == 0:
            duration_s = min(duration_s, moment_s)  # the machine is faster than it was
        killed += ended == -signal.SIGKILL
        partial = output.with_name(output.name + ".partial")
        blocks = len(list(partial.glob("block-*.safetensors")))
        is_whole = output.exists() and not partial.exists()  # killed, if at all, when all was done
        if not is_whole and in_a_fork(source, output, resume=True):
            sys.exit(f"kill {number}: cannot be gone on with")
        print(f"{number} {ended} {blocks} {digest(output) == wanted and not partial.exists()}", flush=True)
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
