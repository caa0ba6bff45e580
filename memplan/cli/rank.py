"""One process of a profile over several: started by torchrun, it runs its share and leaves its profile in a folder.

python -m memplan.cli.rank REQUEST.json FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from memplan.domain.timeline import MemoryTimeline
from memplan.errors import MemplanError
from memplan.profile.request import ProfileRequest
from memplan.records import replace


def main(request_path: Path, folder: Path) -> int:
    """Write the profile of this rank, or why there is none, and return an exit code."""
    from memplan.cli.profile_ranks import request_from
    from memplan.profile.sharing import among_ranks
    from memplan.report.profile_json import profiles_json

    request = request_from(json.loads(request_path.read_text("utf-8")))
    rank = int(os.environ["RANK"])
    try:
        with among_ranks(request):
            timeline = share_of(request, rank)
    except MemplanError as error:
        said = {"message": error.message, "hint": error.hint, "code": error.exit_code}
        (folder / f"error-{rank}.json").write_text(json.dumps(said), "utf-8")
        return error.exit_code
    (folder / f"rank-{rank}.json").write_text(profiles_json([timeline]), "utf-8")
    return 0


def share_of(request: ProfileRequest, rank: int) -> MemoryTimeline:
    """Run what a rank runs, among the others, and return its profile. Raises: MemplanError."""
    from memplan.cli.profile_request import AskedProfiles
    from memplan.cli.profile_run import completed
    from memplan.profile.run import profile_model

    timeline, log = profile_model(request)
    timeline = replace(timeline, rank=rank, num_ranks=request.num_ranks)
    return completed(timeline, log, request, AskedProfiles(requests=(request,), gpu=None, spec=None))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
