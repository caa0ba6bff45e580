"""An engine's own options: typed, and refused with one clear line."""

import pytest

from memplan.engines.options import EngineOptions
from memplan.errors import UsageError
from memplan.units import GIB


def options(**given: object) -> EngineOptions:
    return EngineOptions("Engine", given, known=("page_size",))


def test_names_may_be_written_as_the_command_line_writes_them() -> None:
    assert EngineOptions("Engine", {"--page-size": 64}).count("page_size") == 64


def test_values_are_read_as_what_is_asked_for() -> None:
    given = options(count=8, text="2k", part=0.5, on=True, word="FP8", size="2GiB", gib=1.5)
    assert given.count("count") == 8
    assert given.count("text") == 2000
    assert given.fraction("part") == 0.5
    assert given.flag("on") is True
    assert given.word("word", among=("fp8", "auto")) == "fp8"
    assert given.size("size") == 2 * GIB
    assert given.size("gib") == 1.5 * GIB
    assert given.unused() == ()


def test_the_first_name_that_is_given_counts() -> None:
    given = options(tp=2, tensor_parallel_size=4)
    assert given.count("tp_size", "tensor_parallel_size", "tp") == 4
    assert given.has("tp")
    assert not given.has("pp")


def test_what_is_not_given_is_none() -> None:
    given = options(page_size=None)
    assert given.count("page_size") is None
    assert given.flag("on") is None
    assert given.word("word") is None
    assert given.size("size") is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("count", 0),
        ("count", 1.5),
        ("count", True),
        ("fraction", 0),
        ("fraction", 2),
        ("fraction", "half"),
        ("flag", 1),
        ("word", 3),
        ("size", -1),
    ],
)
def test_a_bad_value_gives_one_line_that_names_the_option(kind: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        getattr(options(key=value), kind)("key")
    assert f"Engine option key is `{value}`" in str(caught.value)
    assert caught.value.hint
    assert "\n" not in f"{caught.value}{caught.value.hint}"


def test_a_slip_of_the_pen_is_refused_and_another_name_is_kept() -> None:
    with pytest.raises(UsageError) as caught:
        options(pagesize=64).unused()
    assert caught.value.hint == "did you mean page_size?"
    assert options(schedule_policy="lpm").unused() == ("schedule_policy",)
