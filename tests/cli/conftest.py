"""What the tests of commands share."""

from pathlib import Path

import pytest
from memplan_in_process import Memplan


@pytest.fixture
def memplan_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Memplan:
    """A memplan that runs in this process, in a directory of its own."""
    return Memplan(tmp_path, monkeypatch, capfd)
