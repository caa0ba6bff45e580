"""Secrets that logs and configs hold, taken out before anything is repeated."""

from __future__ import annotations

import re

_HIDDEN = "[hidden]"
_NAMES = (
    r"(?:api[_-]?keys?|(?:hf|auth|access|secret|api|bearer|hub|wandb)?[_-]?token|secrets?(?:[_-]\w{1,20})?|"
    r"passwo?r?d|passwd|private[_-]?key|credentials?)"
)
_PATTERNS = (
    (re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{8,}"), _HIDDEN),
    (re.compile(r"\b(?:sk|pk|rk|nvapi|glpat|xox[abprs])-[A-Za-z0-9_-]{8,}"), _HIDDEN),
    (re.compile(r"\bgh[opsur]_[A-Za-z0-9]{8,}|\bgithub_pat_\w{8,}"), _HIDDEN),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), _HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,}(?:\.[\w-]+){0,2}"), _HIDDEN),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {_HIDDEN}"),
    (re.compile(r"(?i)(://)[^\s/@]{1,400}@"), rf"\1{_HIDDEN}@"),
    (
        re.compile(rf"(?i)(--?[\w-]{{0,40}}{_NAMES}[ =]\s{{0,4}})(['\"]?)(?!\[hidden)[^\s'\",;\]}}]{{4,}}"),
        rf"\1\2{_HIDDEN}",
    ),
    (
        re.compile(
            rf"(?i)((?:\b|_){_NAMES}['\"]?\s{{0,4}}[=:]\s{{0,4}})(\[?['\"]?)(?!\[?hidden|(?:None|null|\d{{1,12}})\b)[^\s'\",;\]}}]{{4,}}"
        ),
        rf"\1\2{_HIDDEN}",
    ),
)


def redact(text: str) -> str:
    """Return `text` without what looks like a token, a key, a password or a login in an address."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def shown(text: str, *, limit: int = 240) -> str:
    """Return one line of what was read, without secrets and control characters, cut at `limit`."""
    line = "".join(char if char.isprintable() else " " for char in redact(text)).strip()
    return line if len(line) <= limit else line[: limit - 3] + "..."
