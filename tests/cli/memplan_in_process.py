"""Running memplan inside the test's own process: the streams and the exit code of a command, without a start-up."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from memplan.cli.app import main


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Memplan:
    """Runs commands with state, caches and the working directory below `home`, and a hub that cannot be reached."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._capture = capture
        for name, folder in (
            ("HOME", "."),
            ("XDG_STATE_HOME", "state"),
            ("XDG_CACHE_HOME", "cache"),
            ("HF_HOME", "hf"),
        ):
            patch.setenv(name, str(home / folder))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        patch.chdir(home)

    def __call__(self, *arguments: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        streams = self._capture.readouterr()
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, streams.out, streams.err)
