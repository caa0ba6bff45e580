"""Gates: what must hold for a start-up, and how sure that is."""

from memplan.engines.gates import Gate, shortfall_bytes, spread_line, worst_verdict


def gate(margin: int, spread: int = 10) -> Gate:
    return Gate(margin_bytes=margin, spread_bytes=spread, reason="")


def test_a_gate_is_met_missed_or_too_close_to_say() -> None:
    assert [gate(margin).verdict for margin in (20, 10, 5, -5, -10, -11)] == [
        "fits",
        "fits",
        "tight",
        "tight",
        "tight",
        "does_not_fit",
    ]


def test_the_worst_gate_decides() -> None:
    assert worst_verdict([gate(100), gate(5)]) == "tight"
    assert worst_verdict([gate(5), gate(-50), gate(100)]) == "does_not_fit"
    assert worst_verdict([gate(100)]) == "fits"


def test_the_shortfall_is_that_of_the_gate_that_is_missed_most() -> None:
    assert shortfall_bytes([gate(5), gate(-50), gate(-20)]) == 50
    assert shortfall_bytes([gate(5)]) == 0


def test_a_line_reaches_its_spread_to_both_sides_and_never_below_nothing() -> None:
    line = spread_line("name", "weights", 100, 30, "derived", "formula", "source")
    assert (line.low_bytes, line.size_bytes, line.high_bytes) == (70, 100, 130)
    assert spread_line("name", "weights", 10, 30, "derived", "formula", "source").low_bytes == 0
    assert spread_line("moved away", "weights", -10, 5, "derived", "formula", "source").low_bytes == -15
