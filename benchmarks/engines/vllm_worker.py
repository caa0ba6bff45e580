"""Puts YAML files before the vLLM of this interpreter: its parser, its EngineArgs and, where a model's config is at
hand, its engine config. Runs under an interpreter that has vLLM; reads a JSON list of files on stdin, writes one
JSON object a line.

A key that vLLM dropped, took for something else or read as an abbreviation is an error, although vLLM says nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
from typing import Any

os.environ.update(VLLM_TARGET_DEVICE="cpu", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", VLLM_LOGGING_LEVEL="ERROR")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is asked of the hub: configs are at hand

_NOT_HERE = ("failed to be inspected", "Invalid repository ID or local directory")
_not_inspected: set[str] = set()


def main() -> None:
    """Answer every file of stdin."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable(logging.WARNING)
    import vllm

    for item in json.load(sys.stdin):
        errors = check(item)
        # What is missing here, not in the file: a model's own code, or the config of a draft.
        shallow = [line for line in errors if any(words in line for words in _NOT_HERE)]
        left = [line for line in errors if line not in shallow]
        answer = {"path": item["path"], "version": vllm.__version__, "errors": left, "is_shallow": bool(shallow)}
        out.write(json.dumps(answer) + "\n")
        out.flush()


def check(item: dict[str, Any]) -> list[str]:
    """Everything that is wrong with one file."""
    import yaml

    with open(item["path"], encoding="utf-8") as file:
        config = yaml.safe_load(file)
    parser, serve, command = parsers()
    errors = [line for key, value in config.items() if (line := key_error(key, value, serve))]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found = parser.parse_args(["serve", "--config", item["path"]])
            if found.model_tag is not None and found.model_tag != config["model"]:
                errors.append(f"a value was taken for the model's name: {found.model_tag}")
            command.validate(found)
    except SystemExit:
        return [*errors, said.getvalue().strip().splitlines()[-1]]
    errors += [line for key, value in config.items() if (line := value_error(key, value, found, serve))]
    return errors + engine_errors(found, item["model_dir"])


def parsers() -> Any:
    """vLLM's own parser, the one of `serve` below it, and the command."""
    import vllm.entrypoints.cli.serve as serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    main_parser = FlexibleArgumentParser(prog="vllm")
    command = serve.ServeSubcommand()
    return main_parser, command.subparser_init(main_parser.add_subparsers(required=False, dest="subparser")), command


def key_error(key: str, value: Any, serve: Any) -> str | None:
    """What is wrong with a key as it stands: vLLM would not say."""
    action = serve._option_string_actions.get(f"--{key}")
    if action is None:
        return f"{key}: no such option"
    if value is None or value is False:
        return f"{key}: {value} is dropped or read as a word"
    if action.nargs == 0 and value is not True:
        return f"{key}: a flag with the value {value!r}"
    return None


def value_error(key: str, value: Any, found: Any, serve: Any) -> str | None:
    """Whether the value that arrived is another one."""
    action = serve._option_string_actions.get(f"--{key}")
    if action is None:
        return None
    got = getattr(found, action.dest)
    wanted = False if key.startswith("no-") and value is True else value
    if isinstance(wanted, dict):
        got = got if isinstance(got, dict) else getattr(got, "__dict__", {})
        same = all(str(got.get(name)) == str(item) or name in got for name, item in wanted.items())
    else:
        same = got == wanted or str(got) == str(wanted)
    return None if same else f"{key}: {value!r} arrived as {got!r}"


def engine_errors(found: Any, model_dir: str | None) -> list[str]:
    """What creating the engine's config says. Without the model's own config only the arguments are built."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    if model_dir in _not_inspected:
        return [_NOT_HERE[0]]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if model_dir:
                found.model, found.tokenizer, found.skip_tokenizer_init = model_dir, None, True
            arguments = AsyncEngineArgs.from_cli_args(found)
            if model_dir:
                arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except Exception as error:
        if _NOT_HERE[0] in str(error) and model_dir:
            _not_inspected.add(model_dir)  # each try imports vLLM anew
        return [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
    return []


main()
