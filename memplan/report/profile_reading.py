"""Profiles read back from their JSON, so that two runs can be compared and a page drawn again.

Every value is checked: a file comes from anywhere. Keys that are not known are left aside, so that a later release may
add some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast, get_args

from memplan.domain.timeline import (
    CATEGORIES,
    Capture,
    CaptureBreak,
    Category,
    Compared,
    Device,
    Finding,
    Level,
    LiveTensor,
    MemoryTimeline,
    ModuleShare,
    Obstacle,
    OutOfMemory,
    Phase,
    PhaseMemory,
    Roof,
    Sample,
    Work,
)
from memplan.errors import CorruptFile
from memplan.report.profile_json import SCHEMA

_Read = TypeVar("_Read")
_PHASES: tuple[Phase, ...] = get_args(Phase)
_SEVERITIES = ("note", "warning", "error")


class _Object:
    """A JSON object that is read by keys, with the path of what is wrong in every complaint."""

    __slots__ = ("_content", "_path")

    def __init__(self, content: object, path: str) -> None:
        if not isinstance(content, Mapping):
            raise _wrong(path, "is no object")
        self._content, self._path = content, path

    def __getitem__(self, name: str) -> Any:
        if name not in self._content:
            raise _wrong(f"{self._path}{name}", "is missing")
        return self._content[name]

    def size(self, name: str) -> int:
        found = self[name]
        if not isinstance(found, int) or isinstance(found, bool) or found < 0:
            raise _wrong(f"{self._path}{name}", f"is `{found!s:.40}`, not a whole number")
        return found

    def size_or_none(self, name: str) -> int | None:
        return None if self[name] is None else self.size(name)

    def number(self, name: str) -> float:
        found = self[name]
        if not isinstance(found, (int, float)) or isinstance(found, bool) or found < 0:
            raise _wrong(f"{self._path}{name}", f"is `{found!s:.40}`, not a number")
        return float(found)

    def flag(self, name: str) -> bool:
        found = self[name]
        if not isinstance(found, bool):
            raise _wrong(f"{self._path}{name}", f"is `{found!s:.40}`, not true or false")
        return found

    def text(self, name: str) -> str:
        found = self[name]
        if not isinstance(found, str):
            raise _wrong(f"{self._path}{name}", f"is `{found!s:.40}`, not a text")
        return found

    def word(self, name: str, among: tuple[str, ...]) -> Any:
        found = self.text(name)
        if found not in among:
            raise _wrong(f"{self._path}{name}", f"is `{found:.40}`, not one of {', '.join(among)}")
        return found

    def object(self, name: str) -> _Object:
        return _Object(self[name], f"{self._path}{name}.")

    def each(self, name: str, read: Callable[[_Object], _Read]) -> tuple[_Read, ...]:
        found = self[name]
        if not isinstance(found, list):
            raise _wrong(f"{self._path}{name}", "is no list")
        return tuple(read(_Object(one, f"{self._path}{name}[{number}].")) for number, one in enumerate(found))

    def texts(self, name: str) -> tuple[str, ...]:
        found = self[name]
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise _wrong(f"{self._path}{name}", "is no list of texts")
        return tuple(found)

    def sizes(self, name: str, among: tuple[str, ...] | None = None) -> dict[str, int]:
        inner = self.object(name)
        for key in inner._content:
            if among is not None and key not in among:
                raise _wrong(f"{self._path}{name}", f"has an unknown key `{key!s:.40}`")
        return {str(key): inner.size(key) for key in inner._content}

    def maybe(self, name: str, read: Callable[[_Object], _Read]) -> _Read | None:
        return None if self[name] is None else read(self.object(name))

    def every(self, name: str, read: Callable[[_Object], _Read]) -> dict[str, _Read]:
        inner = self.object(name)
        return {str(key): read(inner.object(key)) for key in inner._content}

    def plain(self, name: str) -> dict[str, Any]:
        return dict(self.object(name)._content)


def _wrong(path: str, what: str) -> CorruptFile:
    return CorruptFile(f"no profile: {path.rstrip('.')} {what}", hint="write one with memplan profile --json")


def timeline_of(content: Mapping[str, object], origin: str) -> MemoryTimeline:
    """Return the profile that `memplan profile --json` wrote. Raises: CorruptFile, which names `origin` and the key."""
    found = _Object(content, f"{origin}: ")
    schema = found.text("schema")
    if schema == "memplan.profiles/1":
        raise CorruptFile(f"several profiles in one file: {origin}", hint="write each profile to a file of its own")
    if schema != SCHEMA:
        raise CorruptFile(f"not a profile: {origin} is `{schema:.60}`", hint="write one with memplan profile --json")
    model, device = found.object("model"), found.object("device")
    phases = found.each("phases", _phase)
    if not phases:
        raise _wrong(f"{origin}: phases", "has none")
    return MemoryTimeline(
        model_name=model.text("name"),
        architecture=model.text("architecture"),
        device=cast("Device", device.word("kind", get_args(Device))),
        device_name=device.text("name"),
        settings=found.plain("settings"),
        phases=phases,
        samples=found.each("samples", _sample),
        at_peak=found.each("at_peak", _share),
        rank=found.size("rank"),
        num_ranks=found.size("num_ranks"),
        capacity_bytes=device.size_or_none("capacity_bytes"),
        outside_bytes=device.size_or_none("outside_bytes"),
        out_of_memory=found.maybe("out_of_memory", _out_of_memory),
        capture=found.maybe("capture", _capture) if "capture" in content else None,
        interrupted=found.flag("interrupted"),
        roof=device.maybe("roof", _roof),
        findings=found.each("findings", _finding),
        compared=found.each("compared", _compared),
        warnings=found.texts("warnings"),
        versions={name: str(value) for name, value in found.plain("versions").items()},
    )


def _phase(found: _Object) -> PhaseMemory:
    return PhaseMemory(
        phase=cast("Phase", found.word("phase", _PHASES)),
        before=_level(found.object("before")),
        peak=_level(found.object("peak")),
        after=_level(found.object("after")),
        peak_reserved_bytes=found.size("peak_reserved_bytes"),
        by_category=_categories(found),
        by_module=found.sizes("by_module"),
        largest=found.each("largest", _tensor),
        work=found.maybe("work", _work),
        work_by_module=found.every("work_by_module", _work),
        iteration=found.size("iteration"),
        num_allocations=found.size("num_allocations"),
        left_bytes=found.size("left_bytes"),
    )


def _categories(found: _Object) -> dict[Category, int]:
    return cast("dict[Category, int]", found.sizes("by_category", CATEGORIES))


def _level(found: _Object) -> Level:
    return Level(
        allocated_bytes=found.size("allocated_bytes"),
        reserved_bytes=found.size("reserved_bytes"),
        inactive_split_bytes=found.size("inactive_split_bytes"),
        requested_bytes=found.size("requested_bytes"),
    )


def _tensor(found: _Object) -> LiveTensor:
    shape = found["shape"]
    if not isinstance(shape, list) or not all(isinstance(side, int) for side in shape):
        raise _wrong("shape of a tensor", "is no list of whole numbers")
    return LiveTensor(
        size_bytes=found.size("bytes"),
        category=cast("Category", found.word("category", CATEGORIES)),
        module=found.text("module"),
        operator=found.text("operator"),
        where=found.text("where"),
        shape=tuple(shape),
        dtype=found.text("dtype"),
        count=found.size("count"),
    )


def _work(found: _Object) -> Work:
    seconds = None if found["seconds"] is None else found.number("seconds")
    return Work(flops=found.size("flops"), moved_bytes=found.size("moved_bytes"), seconds=seconds)


def _roof(found: _Object) -> Roof:
    roof = Roof(flops_per_s=found.number("flops_per_s"), moved_bytes_per_s=found.number("moved_bytes_per_s"))
    if not roof.flops_per_s or not roof.moved_bytes_per_s:
        raise _wrong("roof of the device", "is zero")
    return roof


def _share(found: _Object) -> ModuleShare:
    return ModuleShare(
        category=cast("Category", found.word("category", CATEGORIES)),
        module=found.text("module"),
        operator=found.text("operator"),
        size_bytes=found.size("bytes"),
        count=found.size("count"),
    )


def _sample(found: _Object) -> Sample:
    return Sample(
        step=found.size("step"),
        phase=cast("Phase", found.word("phase", _PHASES)),
        allocated_bytes=found.size("allocated_bytes"),
        reserved_bytes=found.size("reserved_bytes"),
        by_category=_categories(found),
    )


def _out_of_memory(found: _Object) -> OutOfMemory:
    return OutOfMemory(
        phase=cast("Phase", found.word("phase", _PHASES)),
        wanted_bytes=found.size("wanted_bytes"),
        free_bytes=found.size("free_bytes"),
        capacity_bytes=found.size("capacity_bytes"),
        allocated_bytes=found.size("allocated_bytes"),
        reserved_bytes=found.size("reserved_bytes"),
        tensor=found.maybe("tensor", _tensor),
    )


def _capture(found: _Object) -> Capture:
    return Capture(
        breaks=found.each("breaks", _break),
        pool_bytes=found.size_or_none("pool_bytes"),
        live_bytes=found.size_or_none("live_bytes"),
    )


def _break(found: _Object) -> CaptureBreak:
    return CaptureBreak(
        obstacle=cast("Obstacle", found.word("obstacle", get_args(Obstacle))),
        operator=found.text("operator"),
        module=found.text("module"),
        where=found.text("where"),
        count=found.size("count"),
    )


def _finding(found: _Object) -> Finding:
    return Finding(
        code=found.text("code"),
        title=found.text("title"),
        evidence=found.text("evidence"),
        mend=found.text("mend"),
        saves_bytes=found.size_or_none("saves_bytes"),
        severity=found.word("severity", _SEVERITIES),
    )


def _compared(found: _Object) -> Compared:
    return Compared(
        phase=cast("Phase", found.word("phase", _PHASES)),
        term=found.text("term"),
        measured_bytes=found.size("measured_bytes"),
        estimated_bytes=found.size("estimated_bytes"),
        low_bytes=found.size("low_bytes"),
        high_bytes=found.size("high_bytes"),
    )
