"""The requests in vLLM's own log, as its releases write them.

A request's line has its prompt (to 0.1x in the line itself, later in a debug line of its own), its limits and, in older
releases, the prompt's tokens; a response's line is there with --enable-log-outputs. Where no response was logged, the
answer is taken to be as long as `max_tokens` let it be.
Source: vllm engine/async_llm_engine.py (0.2 to 0.5), entrypoints/logger.py (0.9, 0.11), request_logger.py (0.32).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from memplan.cli.trace_lines import Lines, estimated_tokens
from memplan.simulate.traces import TracedRequest

_STAMP = re.compile(r"(?:INFO|DEBUG|WARNING|ERROR)\s+(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)")
_RECEIVED = re.compile(r"Received request (\S{1,200}?): ")
_DETAILS = re.compile(r"Request (\S{1,200}?) details: ")
_GENERATED = re.compile(r"Generated response (\S{1,200}?)(?: \((streaming complete|streaming delta)\))?( details)?: ")
_PARAMS = re.compile(r", (?:sampling )?params: |^params: ")
_MAX_TOKENS = re.compile(r"max_(?:completion_)?tokens=(\d{1,9})")
_IDS = re.compile(r"(?:prompt|output)[_ ]token[_ ]ids: \[([\d, .]*)\]")
_YEAR_S = 366 * 86400.0


def is_log_line(line: str) -> bool:
    """Whether a line is one of vLLM's log."""
    return bool(_STAMP.search(line[:200]) or _RECEIVED.search(line[:400]))


class _Found:
    """One request, as its lines tell it."""

    __slots__ = ("arrival_s", "limit", "output", "prompt")

    def __init__(self, arrival_s: float | None) -> None:
        self.arrival_s = arrival_s
        self.prompt: int | None = None
        self.output: int | None = None
        self.limit: int | None = None


class EngineLog:
    """Requests as they are found, line by line."""

    def __init__(self, lines: Lines) -> None:
        self.found: dict[str, _Found] = {}
        self._lines = lines
        self._waiting: dict[str, int] = {}  # prompts of debug lines, which come before their request
        self._last_s = 0.0
        self._years_s = 0.0

    def read(self, line: str) -> None:
        """Take in one line; what is no request's is passed over."""
        if match := _RECEIVED.search(line):
            self._received(match[1], line[match.end() :], line)
        elif match := _DETAILS.search(line):
            self._waiting[match[1]] = self._prompt_tokens(line[match.end() :]) or 0
        elif match := _GENERATED.search(line):
            self._generated(match, line[match.end() :])

    def requests(self) -> Iterator[TracedRequest]:
        """The requests in the order in which they came. What no line tells is None."""
        for found in self.found.values():
            if found.output is None and found.limit is not None:
                self._lines.capped += 1
            output = found.output if found.output is not None else found.limit
            if found.prompt == 0 or output == 0:
                self._lines.skipped += 1
                continue
            yield TracedRequest(arrival_s=found.arrival_s, prompt_tokens=found.prompt, output_tokens=output)

    def _received(self, name: str, rest: str, line: str) -> None:
        self._lines.is_layout("vLLM's log")
        found = self.found.setdefault(name, _Found(self._time(line)))
        # The prompt may hold anything; what is behind the last mention of the parameters is the engine's own.
        marks = list(_PARAMS.finditer(rest))
        at = marks[-1].start() if marks else 0
        tail = rest[at:]
        limit = _MAX_TOKENS.search(tail)
        found.limit = int(limit[1]) if limit else None
        found.prompt = _counted(tail)
        if found.prompt is None and rest.startswith("prompt: "):
            found.prompt = self._text_tokens(rest[len("prompt: ") : at])
        if found.prompt is None:
            found.prompt = self._waiting.pop(name, None)

    def _prompt_tokens(self, rest: str) -> int | None:
        counted = _counted(rest)
        if counted is not None or not rest.startswith("prompt: "):
            return counted
        return self._text_tokens(rest[len("prompt: ") :].rpartition(", prompt_token_ids:")[0])

    def _generated(self, match: re.Match[str], rest: str) -> None:
        found = self.found.get(match[1])
        if found is None or match[2] == "streaming delta":
            return
        counted = _counted(rest)
        if counted is not None:
            found.output = counted
        elif not match[3] and found.output is None and rest.startswith("output: "):
            found.output = self._text_tokens(rest[len("output: ") :].rpartition(", finish_reason:")[0])

    def _text_tokens(self, quoted: str) -> int | None:
        text = quoted.strip()
        if text in ("", "None"):
            return None
        self._lines.estimated += 1
        return estimated_tokens(text[1:-1].replace("\\n", "\n"))

    def _time(self, line: str) -> float | None:
        """Seconds since the year's start; the log has no year, so a step back by months is the next one."""
        stamp = _STAMP.search(line[:200])
        if stamp is None:
            return None
        month, day, hour, minute, second = (int(part) for part in stamp.groups())
        try:
            now = (datetime(2024, month, day, hour, minute, second) - datetime(2024, 1, 1)).total_seconds()
        except ValueError:
            return None
        if now + self._years_s < self._last_s - _YEAR_S / 2:
            self._years_s += _YEAR_S
        self._last_s = max(self._last_s, now + self._years_s)
        return now + self._years_s


def _counted(text: str) -> int | None:
    """How many tokens a list of their numbers has; None where the log left it out."""
    ids = _IDS.search(text)
    if ids is None:
        return None
    return ids[1].count(",") + 1 if ids[1].strip() else 0
