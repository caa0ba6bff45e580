"""What one line of a trace says: columns by the names of public traces, usage of an endpoint, conversations.

Source: the heads of Azure/AzurePublicDataset (LLM inference traces of 2023 and 2024), HPMLL/BurstGPT and
kvcache-ai/Mooncake; the `usage` object of OpenAI's chat completions and batches; ShareGPT's `conversations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from math import isfinite
from typing import Any

from memplan.cli.request_files import LENGTH_COLUMNS
from memplan.simulate.traces import TracedRequest
from memplan.units import ceil_div

_TIMES = (
    *("timestamp", "arrival_time", "arrived_at", "arrival_timestamp", "arrival_s", "arrival", "created", "created_at"),
    *("request_time", "start_time", "time", "ts"),
)
_SESSIONS = ("session_id", "session id", "session", "conversation_id", "chat_id", "thread_id")
_DIALOGUES = ("conversations", "conversation", "messages")
_PROMPT_TEXTS, _OUTPUT_TEXTS = (
    ("prompt", "instruction", "input", "question"),
    ("completion", "output", "response", "answer"),
)
_ANSWERS = frozenset({"gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot"})
# Bytes of UTF-8 that a token has: English is near 4 (a rule of thumb of OpenAI's), an ideograph of 3 near one token.
BYTES_PER_TOKEN = 4
_MOST_TOKENS = 100_000_000
_MOST_TURNS = 10_000


class BadLine(Exception):
    """A line that cannot be read as a request, and why."""


class Lines:
    """What is learnt of a file while it is read: its layout, what was estimated, what was left out."""

    def __init__(self) -> None:
        self.layout = ""
        self.estimated = 0
        self.skipped = 0
        self.capped = 0
        self.reason = ""
        self._sessions: dict[str, int] = {}
        self._prefixes: dict[int, int] = {}

    def session(self, name: object) -> int:
        """A number for a session's name."""
        return self._sessions.setdefault(f"{name:.200}" if isinstance(name, str) else str(name), len(self._sessions))

    def new_session(self) -> int:
        """A session of a conversation that has no name."""
        return self._sessions.setdefault(f"\0{len(self._sessions)}", len(self._sessions))

    def is_layout(self, name: str) -> None:
        """Keep the layout of the first line."""
        self.layout = self.layout or name

    def why_none(self) -> str:
        """Why a file without a request has none."""
        return self.reason or (f": all {self.skipped:,} have no tokens" if self.skipped else "")

    def notes(self, name: str) -> tuple[str, ...]:
        """What there is to say of the file, in words."""
        found = [f"{name}: read as {self.layout}"]
        if self.estimated:
            found.append(
                f"{name}: {self.estimated:,} lengths are estimated from text, a token for {BYTES_PER_TOKEN} bytes"
            )
        if self.capped:
            found.append(f"{name}: {self.capped:,} answers are taken to be as long as max_tokens let them be")
        if self.skipped:
            found.append(f"{name}: {self.skipped:,} requests without a prompt or an answer are left out")
        return tuple(found)


def of_object(entry: Mapping[str, Any], lines: Lines) -> list[TracedRequest]:
    """The requests of one JSON object. Raises: BadLine."""
    found = {str(name).lower(): value for name, value in entry.items()}
    for name in _DIALOGUES:
        if isinstance(found.get(name), list) and "usage" not in found:
            return _of_dialogue(found, found[name], lines)
    usage = _usage(found)
    if usage is not None:
        lines.is_layout("an endpoint's log with usage")
        outer = {key: value for key, value in found.items() if key in (*_TIMES, *_SESSIONS)}
        return of_columns({**usage, **outer}, lines)
    if "hash_ids" in found:
        return _of_mooncake(found, lines)
    if _first_of(found, LENGTH_COLUMNS["prompt"]) is None:
        texts = _texts(found)
        if texts is not None:
            lines.is_layout("prompts and answers")
            lines.estimated += 2
            prompt, output = (estimated_tokens(text) for text in texts)
            return _one(_time(found), prompt, output, _session(found, lines), lines)
    return of_columns(found, lines)


def of_columns(entry: Mapping[str, Any], lines: Lines) -> list[TracedRequest]:
    """The request of one line of a table, its names in small letters. Raises: BadLine."""
    prompt, output = (_first_of(entry, LENGTH_COLUMNS[side]) for side in ("prompt", "output"))
    if prompt is None and output is None:
        names = ", ".join(f"`{name:.30}`" for name in list(entry)[:8])
        raise BadLine(f"no column of prompt or output lengths among {names or 'none'}")
    lines.is_layout(_layout_of(entry))
    return _one(_time(entry), _tokens(entry, prompt), _tokens(entry, output), _session(entry, lines), lines)


def estimated_tokens(text: str) -> int:
    """The tokens that a text has, from its length alone."""
    return ceil_div(len(text.encode("utf-8", "surrogatepass")), BYTES_PER_TOKEN)


def _one(
    arrival_s: float | None,
    prompt: int | None,
    output: int | None,
    session: int | None,
    lines: Lines,
    prefix: tuple[int, ...] = (),
) -> list[TracedRequest]:
    if prompt == 0 or output == 0:
        lines.skipped += 1
        return []
    return [
        TracedRequest(
            arrival_s=arrival_s, prompt_tokens=prompt, output_tokens=output, session=session, prefix_ids=prefix
        )
    ]


def _layout_of(entry: Mapping[str, Any]) -> str:
    if "contexttokens" in entry:
        return "Azure's columns"
    if "request tokens" in entry:
        return "BurstGPT's columns"
    return "columns of lengths"


def _of_mooncake(found: Mapping[str, Any], lines: Lines) -> list[TracedRequest]:
    """Blocks of 512 tokens with an identity: what a prompt shares with others. Its times are milliseconds."""
    lines.is_layout("Mooncake's columns")
    ids = found["hash_ids"]
    if not isinstance(ids, list) or not all(isinstance(each, (int, str)) for each in ids):
        raise BadLine("hash_ids is no list of numbers")
    prompt, output = (_tokens(found, _first_of(found, LENGTH_COLUMNS[side])) for side in ("prompt", "output"))
    arrival = _time(found)
    prefix = tuple(each if isinstance(each, int) else hash(each) for each in ids)
    return _one(arrival / 1000 if arrival is not None else None, prompt, output, None, lines, prefix)


def _of_dialogue(found: Mapping[str, Any], turns: list[Any], lines: Lines) -> list[TracedRequest]:
    """Every answer of a conversation is a request whose prompt is all that was said before it."""
    lines.is_layout("conversations")
    name = _first_of(found, (*_SESSIONS, "id"))
    session = lines.session(found[name]) if name is not None else lines.new_session()
    arrival_s, said, requests = _time(found), 0, []
    for turn in turns[:_MOST_TURNS]:
        if not isinstance(turn, Mapping):
            raise BadLine("a turn of a conversation is no object")
        who = str(turn.get("from", turn.get("role", turn.get("user", "")))).lower()
        tokens = _turn_tokens(turn, lines)
        if who in _ANSWERS and said:
            requests += _one(arrival_s, said, tokens, session, lines)
        said += tokens
    if not requests:
        lines.skipped += 1
    return requests


def _turn_tokens(turn: Mapping[str, Any], lines: Lines) -> int:
    counted = _first_of(turn, ("tokens", "num_tokens", "token_count"))
    if counted is not None:
        return _tokens(turn, counted) or 0
    text = turn.get("value", turn.get("content", turn.get("text", "")))
    if isinstance(text, list):  # parts of a message, of which only text is counted
        text = " ".join(str(part.get("text", "")) for part in text if isinstance(part, Mapping))
    lines.estimated += 1
    return estimated_tokens(text if isinstance(text, str) else "")


def _usage(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The object with token counts, at the top, or below `response` or `body`."""
    at: Any = found
    for name in ("", "response", "body"):
        at = at.get(name, at) if name and isinstance(at, Mapping) else at
        if isinstance(at, Mapping) and isinstance(at.get("usage"), Mapping):
            return {str(key).lower(): value for key, value in at["usage"].items()}
    return None


def _texts(found: Mapping[str, Any]) -> tuple[str, str] | None:
    sides = []
    for names in (_PROMPT_TEXTS, _OUTPUT_TEXTS):
        said = [found[name] for name in names if isinstance(found.get(name), str)]
        if not said:
            return None
        sides.append("\n".join(said))
    return sides[0], sides[1]


def _first_of(entry: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if entry.get(name) not in (None, "")), None)


def _session(entry: Mapping[str, Any], lines: Lines) -> int | None:
    name = _first_of(entry, _SESSIONS)
    return None if name is None else lines.session(entry[name])


def _tokens(entry: Mapping[str, Any], name: str | None) -> int | None:
    """A count of tokens; None where there is no such column. Raises: BadLine when it does not read."""
    if name is None:
        return None
    number = _number(entry[name])
    if number is None or not 0 <= number <= _MOST_TOKENS or number != int(number):
        raise BadLine(f"{name} is no number of tokens: `{entry[name]!s:.40}`")
    return int(number)


def _time(entry: Mapping[str, Any]) -> float | None:
    """Seconds since whenever; None without a column of times. Raises: BadLine when it does not read."""
    name = _first_of(entry, _TIMES)
    if name is None:
        return None
    value = entry[name]
    number = _number(value)
    if number is None and isinstance(value, str):
        number = _of_date(value.strip())
    if number is None or not isfinite(number) or abs(number) > 1e19:
        raise BadLine(f"{name} is no time: `{value!s:.40}`")
    # seconds since 1970 stay below 1e11: larger ones are milli-, micro- and nanoseconds
    for above, divisor in ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3)):
        if abs(number) > above:
            return number / divisor
    return number


def _of_date(text: str) -> float | None:
    """ISO 8601, with any number of digits behind the second."""
    head, point, rest = text.replace(" ", "T", 1).partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    zone = rest[len(digits) :] if point else ""
    try:
        at = datetime.fromisoformat((head + zone).replace("Z", "+00:00"))
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=timezone.utc)
    return at.timestamp() + (float(f"0.{digits}") if digits else 0.0)


def _number(cell: object) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, (int, float, str)):
        return None
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return None
    return number if isfinite(number) else None
