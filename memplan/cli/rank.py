"""One process of a profile over several: started by torchrun, it runs its share and leaves its profile in a folder.

python -m memplan.cli.rank REQUEST.json FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from memplan.domain.dtypes import DType
from memplan.domain.timeline import MemoryTimeline
from memplan.errors import MemplanError
from memplan.profile.request import ProfileRequest
from memplan.records import replace

_LISTS = ("phases", "lora_targets", "compute_capability")
_DTYPES = ("dtype", "mixed_precision", "reduced_in")


def main(request_path: Path, folder: Path) -> int:
    """Write the profile of this rank, or why there is none, and return an exit code."""
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
    from memplan.cli.profile_completed import completed
    from memplan.cli.profile_request import AskedProfiles
    from memplan.profile.run import profile_model

    timeline, log = profile_model(request)
    timeline = replace(timeline, rank=rank, num_ranks=request.num_ranks)
    return completed(timeline, log, request, AskedProfiles(requests=(request,), gpu=None, spec=None))


def plain(request: ProfileRequest) -> dict[str, Any]:
    """A request as JSON has it."""
    content = {name: getattr(request, name) for name in request.__dataclass_fields__}
    return {**content, **{name: content[name] and content[name].value for name in _DTYPES}}


def request_from(content: dict[str, Any]) -> ProfileRequest:
    """The request that `plain` was given."""
    lists = {name: tuple(content[name]) for name in _LISTS}
    dtypes = {name: content[name] and DType(content[name]) for name in _DTYPES}
    return ProfileRequest(**{**content, **lists, **dtypes})


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
