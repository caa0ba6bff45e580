"""Reading what a person runs already: an engine's YAML or JSON config, or a file with its command line.

The file is data: nothing in it is executed, no variable is looked up. Options that memory does not depend on are kept
aside and named.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memplan.cli.options import Given
from memplan.cli.small_file import read_small_text
from memplan.engines.registry import parse_engine
from memplan.engines.spelling import is_off_unless_given, read_options, takes_false
from memplan.errors import UsageError

_MAX_OPTIONS = 2000
_YAML = (".yaml", ".yml")
# Words of a command line that start an engine, and the verb that must follow.
_PROGRAMS = (
    (re.compile(r"(?:.*/)?vllm"), "serve", "vllm"),
    (re.compile(r"vllm\.entrypoints\..*|vllm/vllm-openai.*"), "", "vllm"),
    (re.compile(r"sglang\.launch_server|sglang"), "", "sglang"),
    (re.compile(r"(?:.*/)?trtllm-serve"), "", "tensorrt-llm"),
    (re.compile(r"(?:.*/)?llama-(?:server|cli|bench)"), "", "llama.cpp"),
)
# A key that only one engine's config has.
_TELLING = {
    "mem-fraction-static": "sglang",
    "model-path": "sglang",
    "free-gpu-memory-fraction": "tensorrt-llm",
    "kv-cache-config.free-gpu-memory-fraction": "tensorrt-llm",
    "max-batch-size": "tensorrt-llm",
    "n-gpu-layers": "llama.cpp",
    "ngl": "llama.cpp",
}
# What vLLM calls it to quantize plain weights while they load, and the scheme that it comes to.
_ONLINE = {"fp8": "fp8", "bitsandbytes": "bnb-nf4"}


def read_engine_config(path: Path, engine: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the options in a config or command-line file under memplan's names, and notes on what was left aside.

    `engine` is what `--engine` said, such as vllm@0.10.2; without it the file tells the engine.
    Raises: UsageError for a file that cannot be read, is no config, or has a value that does not read.
    """
    text = read_small_text(path, holds="give an engine's config or its command line")
    named, pairs = _pairs(text, path)
    name, version = parse_engine(engine.split(",")[0]) if engine else (named or _engine_of(pairs), None)
    notes = [f"{path.name}: read as a config of {name}"]
    if path.suffix.lower() in _YAML:
        pairs, dropped = _without_false(name, version, pairs)
        notes += [f"{path.name}: {line}" for line in dropped]
    common, own = read_options(name, pairs, str(path))
    if name == "vllm":
        common = {**_vllm_extras(own, path), **common}
    found: dict[str, Any] = {**common, "set": [f"{key}={_word(value)}" for key, value in own.items()]}
    if not engine:
        found["engine"] = f"{name}@{version}" if (version := _image_version(text)) else name
    return found, tuple(notes)


def _without_false(engine: str, version: str | None, pairs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Leave out the flags of a YAML file that the engine's release does not turn off by `false`, and say of which it
    matters.
    """
    if engine != "vllm" or False not in pairs.values():
        return pairs, []
    from memplan.catalog.rules import load_rules

    rules = load_rules(engine, version)
    dropped = {name for name, value in pairs.items() if value is False and not takes_false(engine, name, rules.release)}
    lines = [
        f"vLLM {rules.version} takes `{name}: false` as if it were not there"
        + (f"; it reads `{_dashed(name)}: false`" if takes_false(engine, _dashed(name), rules.release) else "")
        for name in pairs
        if name in dropped and not is_off_unless_given(engine, name)
    ]
    return {name: value for name, value in pairs.items() if name not in dropped}, lines


def merged(given: Given, found: Mapping[str, Any]) -> Given:
    """Options of the command line win over those of the file; engine options of both are kept."""
    both = [*found.get("set", ()), *given.get("set", ())]
    return {**found, **given, **({"set": both} if both else {})}


def with_own_names(given: Given, engine: str) -> Given:
    """Take `--set` under an engine's own name for an option that memplan has: max_num_seqs=3 is `--max-num-seqs 3`.

    Raises: UsageError for a value that does not read.
    """
    pairs = dict(pair.partition("=")[::2] for pair in given.get("set", ()) if "=" in pair)
    common, own = read_options(
        engine, {key.strip().lstrip("-"): value.strip() for key, value in pairs.items()}, "--set"
    )
    if not common and "max_model_len" not in own:
        return given
    odd = [pair for pair in given["set"] if "=" not in pair]  # refused later, with a hint
    return {**given, **common, "set": [*(f"{key}={value}" for key, value in own.items()), *odd]}


def _pairs(text: str, path: Path) -> tuple[str | None, dict[str, Any]]:
    """The engine that the file names, if it does, and its options."""
    if path.suffix.lower() == ".json":
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise UsageError(f"{path} is not a JSON object")
        return None, dict(_flat(content, path))
    if path.suffix.lower() in _YAML:
        from memplan.catalog.tables import read_yaml

        return None, dict(_flat(read_yaml(text, str(path)), path))
    if path.suffix.lower() == ".py":
        from memplan.cli.script_config import script_options

        return script_options(text, path)
    return _command_line(text, path)


def _flat(content: Mapping[Any, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """Nested keys joined by dots. The number of keys is bounded: an alias can name the same mapping again and again."""
    stack: list[tuple[str, Any]] = [(str(key), value) for key, value in content.items()]
    for count in range(_MAX_OPTIONS + 1):
        if not stack:
            return
        if count == _MAX_OPTIONS:
            raise UsageError(f"{path} has more than {_MAX_OPTIONS} options", hint="give an engine's config")
        name, value = stack.pop()
        if isinstance(value, Mapping) and not name.endswith(("limit-mm-per-prompt", "limit_mm_per_prompt")):
            stack += [(f"{name}.{key}", item) for key, item in value.items()]
        elif value is not None or name == "cuda_graph_config":
            yield name, value


def _command_line(text: str, path: Path) -> tuple[str | None, dict[str, Any]]:
    """The options of the first command in a shell file that starts a known engine, or of a line of options alone."""
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise UsageError(f"{path} is not a command line: {error}", hint="give one command, as it is typed") from None
    engine, words = _after_program(words)
    if engine is None and not any(word.startswith("-") for word in words):
        raise UsageError(f"{path} holds no options", hint="give an engine's YAML, or a file with its command line")
    pairs: dict[str, Any] = {}
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if not word.startswith("-") or _is_number(word):
            continue
        name, separator, value = word.lstrip("-").partition("=")
        if separator:
            pairs[name] = _plain(value)
        elif index < len(words) and (not words[index].startswith("-") or _is_number(words[index])):
            pairs[name] = _plain(words[index])
            index += 1
        else:
            pairs[name] = True
    if engine and words and not words[0].startswith("-"):
        pairs.setdefault("model", words[0])
    return engine, pairs


def _after_program(words: list[str]) -> tuple[str | None, list[str]]:
    """The engine that is started, and the words behind it; the model comes first where it has no option."""
    for index, word in enumerate(words):
        for pattern, verb, engine in _PROGRAMS:
            if not pattern.fullmatch(word):
                continue
            rest = words[index + 1 :]
            if verb and rest[:1] != [verb]:
                continue
            rest = rest[1:] if verb else rest
            ends = next((at for at, each in enumerate(rest) if each in (";", "&&", "||", "|", "&", ">")), len(rest))
            rest = rest[:ends]
            return engine, rest
    return None, words


def _image_version(text: str) -> str | None:
    """The release in an image's tag, such as vllm/vllm-openai:v0.10.2."""
    tag = re.search(r"(?:vllm/vllm-openai|lmsysorg/sglang):v(\d+\.\d+\.\d+)", text)
    return tag[1] if tag else None


def _engine_of(pairs: Mapping[str, Any]) -> str:
    for name in pairs:
        if engine := _TELLING.get(_dashed(name)):
            return engine
    return "vllm"


def _vllm_extras(own: dict[str, Any], path: Path) -> dict[str, Any]:
    """What vLLM folds into one option: speculative decoding, LoRA, weights quantized while they load."""
    extras: dict[str, Any] = {}
    speculative = own.pop("speculative_config", None)
    if isinstance(speculative, str):
        try:
            speculative = json.loads(speculative)
        except ValueError:
            raise UsageError(f"{path}: speculative-config is not JSON: `{speculative}`") from None
    nested = {name.partition(".")[2]: own.pop(name) for name in list(own) if name.startswith("speculative_config.")}
    speculative = speculative if isinstance(speculative, Mapping) else nested
    if speculative:
        method = str(speculative.get("method", ""))
        draft = speculative.get("model") or ("mtp" if "mtp" in method else None)
        if draft and method != "ngram":
            extras["draft_model"] = "mtp" if "mtp" in method else str(draft)
        if isinstance(speculative.get("num_speculative_tokens"), int):
            extras["num_speculative_tokens"] = speculative["num_speculative_tokens"]
    if own.pop("enable_lora", False) in (True, "true"):
        extras.setdefault("max_loras", 1)
    if scheme := _ONLINE.get(str(own.get("quantization"))):
        extras["online_quant"] = scheme
        if own.pop("quantization") == own.get("load_format"):
            own.pop("load_format")
    return extras


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _word(value: Any) -> str:
    return str(value) if isinstance(value, (str, int, float)) else json.dumps(value, default=str)


def _is_number(word: str) -> bool:
    return bool(re.fullmatch(r"-?\d+(?:\.\d+)?", word))


def _plain(text: str) -> Any:
    return {"true": True, "false": False}.get(text.lower(), text)
