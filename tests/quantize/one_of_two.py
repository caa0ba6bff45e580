"""One process of a quantization by several: `RANK=0 WORLD_SIZE=2 ... python one_of_two.py MODEL OUTPUT`."""

from __future__ import annotations

import sys
from pathlib import Path

from small_models import windows

from memplan.quantize.output import accept, write_checkpoint
from memplan.quantize.pipeline import Quantization
from memplan.quantize.ranks import joined
from memplan.quantize.request import quantize_request
from memplan.quantize.workspace import Workspace


def main(source: Path, output: Path, method: str) -> None:
    """Quantize with the others; the first process writes."""
    with joined("cpu") as ranks:
        work = Quantization(quantize_request(method, group_size=32), source, windows(3, 4, 32), ranks=ranks)
        workspace = Workspace(output, work.identity(), rank=ranks.rank)
        if ranks.is_first:
            workspace.open(resume=False, force=False)
        ranks.wait()
        workspace.join()
        work.run(workspace)
        if ranks.is_first:
            accept(workspace, write_checkpoint(work, workspace), output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
