"""Which line of whose code runs: the innermost one that is neither torch's nor one that a profile goes through."""

from __future__ import annotations

import os
from types import CodeType, FrameType

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(__file__) + os.sep
# Parts of the profile that models call through without knowing.
_PASSED = ("recorder.py", "kernels.py", "values.py", "program.py", "step_watch.py", "module_names.py")
_PASSING = (_TORCH, *(_OURS + name for name in _PASSED), "<")


class CodeLines:
    """Finds lines, and remembers what it has found of a function and of a line."""

    def __init__(self) -> None:
        self._places: dict[tuple[CodeType, int], str] = {}
        self._is_passed: dict[CodeType, bool] = {}

    def of(self, frame: FrameType | None) -> str:
        """The line as `path:line function`, from `frame` outwards; empty where that is the profile's own."""
        is_passed = self._is_passed
        while frame is not None:
            code = frame.f_code
            known = is_passed.get(code)
            if known is None:
                known = is_passed[code] = code.co_filename.startswith(_PASSING)
            if not known:
                if code.co_filename.startswith(_OURS):
                    return ""
                key = (code, frame.f_lasti)
                place = self._places.get(key)
                if place is None:
                    place = self._places[key] = f"{short_path(code.co_filename)}:{frame.f_lineno} {code.co_name}"
                return place
            frame = frame.f_back
        return ""


def short_path(path: str) -> str:
    """A path from the package on that it is installed in, or as it is."""
    return path.rpartition(f"site-packages{os.sep}")[2] or path
