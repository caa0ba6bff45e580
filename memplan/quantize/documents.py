"""One document of a text set: a text or a conversation, read from a record however it names its columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import memplan
from memplan.errors import UsageError
from memplan.records import dataclass, replace

Part = Literal["calibrate", "validate"]

_TEXT_KEYS = ("text", "content", "article", "document")
_MESSAGE_KEYS = ("messages", "conversations", "conversation")
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document: a text, or a conversation of (role, content) for a chat template. `origin` says where it is from.

    `domain` is what its perplexity is reported under.
    """

    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    domain: str = "general"
    origin: str = ""

    @property
    def plain(self) -> str:
        """The document as text, a conversation without any template."""
        return self.text or "\n\n".join(f"{role}: {content}" for role, content in self.messages)


def calibration_folder() -> Path:
    """The folder of the built-in texts and the specs: inside an installed package, beside it in a checkout."""
    package = Path(memplan.__file__).resolve().parent
    inside = package / "calibration"
    return inside if inside.is_dir() else package.parent / "calibration"


def document_of(record: Mapping[str, object], *, domain: str, origin: str, column: str | None = None) -> Document:
    """Return the document in a record: the text or the messages under `column`, or under a usual name.

    Raises: UsageError for a record that has neither.
    """
    domain = str(record.get("domain") or domain)
    document = Document(domain=domain, origin=origin)
    for key in (column,) if column else (*_TEXT_KEYS, *_MESSAGE_KEYS):
        value = record.get(key)
        if isinstance(value, str):
            return replace(document, text=value)
        if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
            return replace(document, messages=tuple(_turn(cast("Mapping[str, object]", turn)) for turn in value))
    has = ", ".join(sorted(map(str, record))[:_NAMES_SHOWN])
    raise UsageError(f"{origin} has no text: its keys are {has}", hint='write {"text": "..."} or {"messages": [...]}')


def _turn(turn: Mapping[str, object]) -> tuple[str, str]:
    """One message, also as ShareGPT writes it (`from`, `value`)."""
    role = str(turn.get("role") or turn.get("from") or "user")
    role = {"human": "user", "gpt": "assistant", "system": "system"}.get(role, role)
    return role, str(turn.get("content") or turn.get("value") or "")
