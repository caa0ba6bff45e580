"""`--what-if`: other settings under the same traffic, as options for the question and the scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memplan.cli.options import DEVICE_OPTIONS, LLAMA_CPP_OPTIONS, SERVING_OPTIONS, SIMULATE_OPTIONS, Given, Option
from memplan.domain.budget import MemoryBudget
from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass, replace

_MOST = 64
# What a deployment is made of; the traffic stays as it is.
_LEFT_OUT = frozenset({"config", "set", "mean_length", "concurrency", "what_if", "max_ttft", "max_tpot"})
_ALLOWED: Mapping[str, Option] = {
    option.name: option
    for option in (*DEVICE_OPTIONS, *SERVING_OPTIONS, *LLAMA_CPP_OPTIONS, *SIMULATE_OPTIONS)
    if option.name not in _LEFT_OUT and option.panel != "Traffic"
}
_NAMES = {"replicas": "dp"}
# No engine has an option for these: they are here to be compared, not to be deployed.
ONLY_COMPARED = frozenset({"batching", "allocation", "step_times"})


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """One change, as it was written, and the options that it sets. `is_usual`: nobody named it."""

    name: str
    options: dict[str, Any]
    is_usual: bool = False


def what_ifs(given: Given, base: MemoryBudget) -> tuple[WhatIf, ...]:
    """Return every change that was asked for. `usual` stands for those that are most often asked about.

    Raises: UsageError for one that does not read.
    """
    found: list[WhatIf] = []
    for text in given.get("what_if", ()):
        found += _usual(given, base) if text.strip().lower() == "usual" else list(_read(text))
    if len(found) > _MOST:
        raise UsageError(f"{len(found)} what-ifs are more than {_MOST}", hint="simulate fewer at once")
    return tuple(found)


def _usual(given: Given, base: MemoryBudget) -> list[WhatIf]:
    """Block sizes, batch, cache type, context, prefix caching and static batching, without what is so already."""
    texts = [f"block-size={size}" for size in (8, 16, 32) if size != base.kv.block_size]
    seqs = base.settings.get("max_num_seqs")
    if isinstance(seqs, int) and seqs > 1:
        texts += [f"max-num-seqs={seqs // 2}", f"max-num-seqs={seqs * 2}"]
    if not str(base.settings.get("kv_cache_dtype", "")).startswith("fp8"):
        texts.append("kv-dtype=fp8")
    context = base.settings.get("max_model_len")
    if isinstance(context, int) and context > 1024:
        texts.append(f"context={context // 2}")
    texts.append("prefix-caching=off" if base.settings.get("enable_prefix_caching") else "prefix-caching=on")
    if given.get("batching", "continuous") == "continuous":
        texts.append("batching=static")
    return [replace(each, is_usual=True) for text in texts for each in _read(text)]


def _read(text: str) -> Iterator[WhatIf]:
    """`NAME=A,B` is one what-if for each value; `NAME=A+OTHER=B` one with both."""
    parts = [part.partition("=")[::2] for part in text.split("+")]
    values = [_values(name.strip(), value, text) for name, value in parts]
    if len(parts) == 1:
        (name, options) = values[0]
        for written, value in options:
            yield WhatIf(name=f"{_flag(name)}={written}", options={name: value})
        return
    if any(len(options) != 1 for _, options in values):
        raise UsageError(f"several values beside a +: `{text:.60}`", hint="write one --what-if for each")
    yield WhatIf(
        name=" + ".join(f"{_flag(name)}={options[0][0]}" for name, options in values),
        options={name: options[0][1] for name, options in values},
    )


def _values(name: str, text: str, whole: str) -> tuple[str, Sequence[tuple[str, Any]]]:
    key = name.lstrip("-").replace("-", "_").lower()
    key = _NAMES.get(key, key)
    option = _ALLOWED.get(key)
    written = [part.strip() for part in text.split(",") if part.strip()]
    if option is None:
        known = sorted(each.replace("_", "-") for each in _ALLOWED)
        hint = did_you_mean(name, known) or "write it as --what-if kv-dtype=fp8, max-num-seqs=64,128, or usual"
        raise UsageError(f"not a what-if: `{whole:.60}`", hint=hint)
    if not written:
        raise UsageError(f"a what-if without a value: `{whole:.60}`", hint=f"write {_flag(key)}=VALUE")
    return key, [(part, _typed(option, part, whole)) for part in written]


def _typed(option: Option, text: str, whole: str) -> Any:
    if option.kind is bool:
        value = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}.get(text.lower())
        if value is None:
            raise UsageError(f"not on or off: `{whole:.60}`", hint=f"write {_flag(option.name)}=off")
        return value
    try:
        return option.kind(text)
    except ValueError:
        raise UsageError(f"not a number: `{whole:.60}`", hint=f"write {_flag(option.name)}=64") from None


def _flag(name: str) -> str:
    return name.replace("_", "-")
