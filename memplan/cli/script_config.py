"""Reading a Python script that loads a model: vLLM's `LLM(...)`, or transformers' `from_pretrained` and `generate`.

The script is parsed and never run. Only what stands there as a literal, or is the name of one, is taken.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memplan.errors import UsageError

_TO_TRANSFORMERS = {"torch_dtype": "dtype", "use_kernels": "kernels"}
_CACHE_CONFIG = {
    "backend": "cache_backend",
    "nbits": "cache_nbits",
    "q_group_size": "cache_group_size",
    "residual_length": "cache_residual_length",
}
_GENERATE = ("max_new_tokens", "num_beams", "num_return_sequences", "prefill_chunk_size", "cache_implementation")


def script_options(text: str, path: Path) -> tuple[str, dict[str, Any]]:
    """Return the engine that a script is for, and its options under that engine's names.

    Raises: UsageError for a script that does not parse, or loads no model that way.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path} is not a Python script: {error}") from None
    names = dict(_assigned(tree))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in calls:
        if _called(call) == "LLM":
            options = _options(call, names, first="model")
            return "vllm", {**options, "offline_batch": True}
    for call in calls:
        if _called(call) == "from_pretrained" and "Model" in ast.unparse(call.func):
            return "transformers", _transformers(_options(call, names, first="model"), calls, names)
    raise UsageError(
        f"{path} loads no model", hint="give a script with vLLM's LLM(...), or Auto....from_pretrained(...)"
    )


def script_calls(text: str, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the last name of everything that a script calls, with the arguments that are known without running it.

    Raises: UsageError for a script that does not parse.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path} is not a Python script: {error}") from None
    names = dict(_assigned(tree))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(_called(call), _options(call, names, first="first")) for call in calls]


def _transformers(options: dict[str, Any], calls: list[ast.Call], names: dict[str, ast.expr]) -> dict[str, Any]:
    found = {_TO_TRANSFORMERS.get(name, name): value for name, value in options.items()}
    quantization = found.pop("quantization_config", None)
    if isinstance(quantization, dict) and (scheme := _scheme(quantization)):
        found["quant"] = scheme
    limits = found.pop("max_memory", None)
    if isinstance(limits, dict):
        found |= {"cpu_memory": limits["cpu"]} if "cpu" in limits else {}
        sizes = [
            f"{size}B" if isinstance(size, int) else str(size) for device, size in limits.items() if device != "cpu"
        ]
        found |= {"max_memory": "/".join(sizes)} if sizes else {}
    prompt = None
    for call in calls:
        own = _options(call, names, first="inputs")
        if _called(call) == "generate":
            found |= {name: own[name] for name in _GENERATE if name in own}
            found |= {"cache_implementation": "none"} if own.get("use_cache") is False else {}
            parts = own.get("cache_config")
            if isinstance(parts, dict):
                found |= {_CACHE_CONFIG[key]: part for key, part in parts.items() if key in _CACHE_CONFIG}
        elif own.get("truncation") is True and isinstance(own.get("max_length"), int):
            prompt = own["max_length"]
    if prompt is not None:
        found["max_length"] = prompt + int(found.get("max_new_tokens", 1))
    return found


def _scheme(quantization: dict[str, Any]) -> str | None:
    """The weight scheme that a BitsAndBytesConfig asks for."""
    if quantization.get("load_in_8bit") is True:
        return "bnb-int8"
    if quantization.get("load_in_4bit") is not True:
        return None
    kind = quantization.get("bnb_4bit_quant_type", "fp4")
    return f"bnb-{kind}{'-dq' if quantization.get('bnb_4bit_use_double_quant') is True else ''}"


def _assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """The names that the script gives a value at its top, with the expression."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def _called(call: ast.Call) -> str:
    """The last name of what is called: `from_pretrained` of `AutoModel.from_pretrained`."""
    return ast.unparse(call.func).rpartition(".")[2]


def _options(call: ast.Call, names: dict[str, ast.expr], *, first: str) -> dict[str, Any]:
    """The arguments of a call that are known without running anything; the first one without a name is `first`."""
    nodes = {first: call.args[0]} if call.args else {}
    nodes |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    values = {name: _value(node, names) for name, node in nodes.items()}
    return {name: value for name, value in values.items() if value is not None}


def _value(node: ast.expr, names: dict[str, ast.expr]) -> Any:
    if isinstance(node, ast.Name):
        node = names.get(node.id, node)
    if isinstance(node, ast.Attribute):
        return node.attr  # torch.bfloat16
    if isinstance(node, ast.Call):
        return _options(node, {}, first="")
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
