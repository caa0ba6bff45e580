"""Puts YAML files before the SGLang of this interpreter: prepare_server_args, as its server calls it. Runs under an
interpreter that has SGLang; reads a JSON list of files on stdin, writes one JSON object a line.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    """Answer every file of stdin."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from sglang.srt.server_args import ServerArgs
    from sglang.version import __version__

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    for item in json.load(sys.stdin):
        answer = {"path": item["path"], "version": __version__, "errors": check(item, parser)}
        out.write(json.dumps(answer) + "\n")
        out.flush()


def check(item: dict[str, Any], parser: argparse.ArgumentParser) -> list[str]:
    """Everything that is wrong with one file."""
    import yaml
    from sglang.srt.server_args import prepare_server_args

    with open(item["path"], encoding="utf-8") as file:
        config = yaml.safe_load(file)
    actions = parser._option_string_actions
    errors = [f"{key}: no such option" for key in config if f"--{key}" not in actions]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            found = prepare_server_args(["--config", item["path"]])
    except SystemExit:
        return [*errors, said.getvalue().strip().splitlines()[-1]]
    except Exception as error:
        return [*errors, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
    for key, value in config.items():
        if f"--{key}" in actions and not isinstance(value, list):
            got = getattr(found, actions[f"--{key}"].dest, value)
            if got is not None and str(got) != str(value):
                errors.append(f"{key}: {value!r} arrived as {got!r}")
    return errors


main()
