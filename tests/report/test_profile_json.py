"""Profiles as JSON: what is written follows the schema and is read back as it was; what is no profile is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import made_timelines
import pytest

from memplan.domain.timeline import MemoryTimeline
from memplan.errors import CorruptFile
from memplan.report.profile_json import profile_object, profiles_json
from memplan.report.profile_reading import timeline_of

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
PROFILE = jsonschema.Draft202012Validator(json.loads((SCHEMAS / "memplan.profile.json").read_text()))
PROFILES = jsonschema.Draft202012Validator(json.loads((SCHEMAS / "memplan.profiles.json").read_text()))
MADE = {
    "serving": made_timelines.serving(),
    "out of memory": made_timelines.out_of_memory(),
    "training": made_timelines.training(iterations=3, grows_bytes=1 << 28),
    "bare": made_timelines.bare(),
    "hostile": made_timelines.hostile(),
}


@pytest.mark.parametrize("timeline", MADE.values(), ids=MADE)
def test_a_profile_follows_its_schema_and_is_read_back_as_it_was(timeline: MemoryTimeline) -> None:
    content = json.loads(profiles_json([timeline]))
    PROFILE.validate(content)
    assert timeline_of(content, "a.json") == timeline
    assert content["peak"]["allocated_bytes"] == max(phase["peak"]["allocated_bytes"] for phase in content["phases"])


def test_several_profiles_are_a_list_under_a_schema_of_their_own() -> None:
    content = json.loads(profiles_json(list(MADE.values())))
    assert content["schema"] == "memplan.profiles/1"
    PROFILES.validate(content)
    with pytest.raises(CorruptFile, match="several profiles"):
        timeline_of(content, "a.json")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": "memplan.estimate/1"}, "not a profile"),
        ({"phases": []}, "phases has none"),
        ({"phases": [1]}, r"phases\[0\] is no object"),
        ({"samples": {}}, "samples is no list"),
        ({"warnings": [1]}, "warnings is no list of texts"),
        ({"rank": -1}, "rank is `-1`"),
        ({"device": {"kind": "tpu"}}, "kind is `tpu`, not one of"),
        ({"model": {"name": 7, "architecture": ""}}, "name is `7`, not a text"),
    ],
)
def test_what_is_no_profile_is_refused_with_the_key_that_is_wrong(change: dict[str, Any], complaint: str) -> None:
    content = {**json.loads(json.dumps(profile_object(MADE["serving"]))), **change}
    with pytest.raises(CorruptFile, match=complaint):
        timeline_of(content, "a.json")


def test_no_part_of_a_profile_can_be_wrong_without_a_clear_word() -> None:
    """Every value of the file is replaced by what it cannot be, one after the other."""
    content = json.loads(json.dumps(profile_object(MADE["out of memory"])))
    content["phases"], content["samples"] = content["phases"][1:2], content["samples"][:1]
    paths = list(places(content))
    assert len(paths) > 100
    for path in paths:
        if path[0] in ("settings", "versions", "peak"):
            continue
        broken = copy.deepcopy(content)
        at: Any = broken
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = [{"no": "such"}] if isinstance(at[path[-1]], (int, float)) else -1.5
        with pytest.raises(CorruptFile):
            timeline_of(broken, "a.json")


def places(content: Any, above: tuple[Any, ...] = ()) -> Any:
    """The path of every value of nested objects and lists."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield (*above, key)
        yield from places(value, (*above, key))


def test_the_schema_of_several_holds_the_schema_of_one() -> None:
    one = dict(PROFILE.schema)
    assert PROFILES.schema["$defs"] == {
        **one["$defs"],
        "profile": {key: value for key, value in one.items() if key not in ("$schema", "$defs")},
    }
