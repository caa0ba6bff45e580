"""The sweep as data: reads points.yaml into points, and says what is wrong with it.

A point is one engine start: a model (a catalogue name, with fewer layers or other keys where that is enough), engine
arguments in vLLM's spelling, and what the probe measures inside the worker. This module knows the file's form, not how
points are run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

POINTS_FILE = Path(__file__).with_name("points.yaml")
LADDER_TOKENS = (256, 512, 1024, 2048, 4096, 8192, 16384)
LADDER_SEQUENCES = (4, 16, 64, 128, 256, 512, 1024)
_MODEL_KEYS = {"catalogue", "layers", "set", "remove", "quantization", "processor", "note"}
_POINT_KEYS = {"id", "model", "separates", "engine", "env", "ladder", "trace", "request", "seconds"}


class BadPoints(ValueError):
    """points.yaml says something that cannot be run; the message names the entry."""


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A catalogue model, made smaller: `layers` of it, keys `set` in or `removed` from its config.

    Nested keys are written with dots. `quantization` is the `quantization_config` of a checkpoint in another scheme and
    `scheme` the name that memplan has for it; `processor` names the kind of image processor files to write beside it.
    """

    name: str
    catalogue: str
    layers: int | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    quantization: Mapping[str, Any] | None = None
    processor: str | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One engine start and why it is worth its time.

    `seconds` is a first guess at how long it takes. `ladder` measures the forward pass and the sampler at several sizes
    in the same process, `trace` names what is alive at the peak, `request` sends requests afterwards.
    """

    id: str
    model: ModelChoice
    separates: str
    engine: Mapping[str, Any]
    env: Mapping[str, str]
    seconds: int
    ladder: bool = False
    trace: bool = False
    request: Mapping[str, Any] | None = None


def read_points(path: Path = POINTS_FILE, *, device: str = "cuda") -> tuple[Point, ...]:
    """Return the points for `device` ("cuda", or "cpu" for the few that try the machinery out), in their order.

    Raises: BadPoints.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadPoints(f"cannot read {path.name}: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != "memplan.gpu-points/1":
        raise BadPoints(f"{path.name} is not of schema memplan.gpu-points/1")
    models = {name: _model(name, entry) for name, entry in data["models"].items()}
    section = "points" if device == "cuda" else "cpu_points"
    defaults = data["defaults"][device]
    points = tuple(_point(entry, models, defaults) for entry in data[section])
    names = [point.id for point in points]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise BadPoints(f"these ids are used more than once: {', '.join(repeated)}")
    return points


def _model(name: str, entry: Mapping[str, Any]) -> ModelChoice:
    if unknown := set(entry) - _MODEL_KEYS:
        raise BadPoints(f"model {name} has keys that mean nothing: {', '.join(sorted(unknown))}")
    if "catalogue" not in entry:
        raise BadPoints(f"model {name} does not say which catalogue model it is")
    return ModelChoice(
        name=name,
        catalogue=entry["catalogue"],
        layers=entry.get("layers"),
        set=entry.get("set") or {},
        remove=tuple(entry.get("remove") or ()),
        quantization=entry.get("quantization"),
        processor=entry.get("processor"),
    )


def _point(entry: Mapping[str, Any], models: Mapping[str, ModelChoice], defaults: Mapping[str, Any]) -> Point:
    name = entry.get("id", "?")
    if unknown := set(entry) - _POINT_KEYS:
        raise BadPoints(f"point {name} has keys that mean nothing: {', '.join(sorted(unknown))}")
    if missing := {"id", "model", "separates"} - set(entry):
        raise BadPoints(f"point {name} lacks {', '.join(sorted(missing))}")
    if entry["model"] not in models:
        raise BadPoints(f"point {name} names a model that is not listed: {entry['model']}")
    return Point(
        id=str(name),
        model=models[entry["model"]],
        separates=entry["separates"],
        engine={**defaults["engine"], **(entry.get("engine") or {})},
        env={key: str(value) for key, value in {**defaults["env"], **(entry.get("env") or {})}.items()},
        seconds=int(entry.get("seconds", defaults["seconds"])),
        ladder=bool(entry.get("ladder")),
        trace=bool(entry.get("trace")),
        request=entry.get("request"),
    )
