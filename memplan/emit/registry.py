"""The formats by name: a literal table, so that only the format that is asked for is imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from memplan.domain.emission import Emission, EmitSubject
from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass

Emitter = Callable[[EmitSubject], Emission]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format: where its emitter is, the engines that it is for (the first is taken when none was named; none
    means any), and what it is.
    """

    emitter: str
    about: str
    engines: tuple[str, ...] = ()


FORMATS: Mapping[str, Format] = {
    "vllm": Format(
        emitter="memplan.emit.vllm_yaml:emit",
        engines=("vllm",),
        about="YAML for `vllm serve --config`, vLLM 0.8 and newer",
    ),
}
# What an engine's setup is written as when no format was named.
DEFAULT_FORMATS: Mapping[str, str] = {"vllm": "vllm"}


def find_format(name: str | None, engine: str) -> tuple[str, Format]:
    """Return the format of that name, the engine's own one for None.

    Raises: UsageError for an unknown name, or an engine that nothing is written for.
    """
    known = name or DEFAULT_FORMATS.get(engine)
    if known is None:
        raise UsageError(
            f"no config is written for {engine}", hint="name a --format; memplan emit-config --format list"
        )
    known = known.lower().replace("_", "-")
    if known not in FORMATS:
        near = did_you_mean(known, list(FORMATS))
        raise UsageError(f"unknown format: `{name}`", hint=near or "see memplan emit-config --format list")
    return known, FORMATS[known]


def load_emitter(found: Format) -> Emitter:
    """Import and return the emitter of a format."""
    module, attribute = found.emitter.split(":")
    emitter: Emitter = getattr(importlib.import_module(module), attribute)
    return emitter
