"""Checks which releases of vLLM have the options of catalog/engine_options/vllm.yaml against vLLM's own sources.

    python benchmarks/engines/vllm_option_spans.py GIT_REPOSITORY

The repository needs the tags of releases. Prints every option with the first and the last tag that declares it; exits 1
when the table says a release has an option that it does not declare, or the other way round.
"""

from __future__ import annotations

import re
import subprocess
import sys

from memplan.catalog.option_tables import load_option_table
from memplan.catalog.rules import parse_release

_RELEASE = re.compile(r"v(\d+\.\d+\.\d+)")
_SOURCE = "vllm/engine/arg_utils.py"


def git(repository: str, *arguments: str) -> str:
    """The output of one git command."""
    return subprocess.run(["git", "-C", repository, *arguments], capture_output=True, text=True, check=True).stdout


def main(repository: str) -> int:
    """Compare the table with every tag from its oldest release on."""
    tags = [match for tag in git(repository, "tag").split() if (match := _RELEASE.fullmatch(tag))]
    found = sorted((parse_release(tag[1]), tag[1], tag[0]) for tag in tags if parse_release(tag[1]) >= (0, 8, 0))
    seen: dict[str, list[str]] = {}
    wrong = 0
    for _, version, tag in found:
        source = git(repository, "show", f"{tag}:{_SOURCE}")
        table = load_option_table("vllm", version)
        for option in table.spans:
            declared = bool(re.search(rf"[\"']--{option}[\"']", source)) or option == "model"
            if declared:
                seen.setdefault(option, []).append(version)
            if declared != table.has(option):
                wrong += 1
                print(f"{version}: {option} is {'declared' if declared else 'not declared'}, the table says otherwise")
    for option, versions in seen.items():
        print(f"{option}: {versions[0]} to {versions[-1]}")
    print(f"{len(found)} releases, {len(seen)} options, {wrong} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
