"""Every error that memplan raises on purpose, with the exit code it ends in.

    MemplanError                70  never raised itself
    ├── DoesNotFit               1  answered: it does not fit
    ├── UsageError               2  a bad option, value, unit or file
    │   └── CorruptFile          2  a model file that is damaged or lies about itself
    ├── SourceError              3  a model source that cannot be read
    │   ├── SourceNotFound       3  no such alias, file or repository
    │   ├── GatedModel           3  the repository wants a licence or a token
    │   └── Offline              3  the network is needed and cannot be reached, or must not be used
    ├── UnsupportedModel         4  a family or key that is not understood
    ├── MissingExtra             5  an optional package or a device that is not there
    ├── QualityMissed            6  a result that is worse than was allowed
    └── Unfinished               7  work that stopped part-way and can be gone on with

An error is one line that says what was wrong, with the value, and a hint that says how to mend it. `cli` prints both
and exits with the code; anything else that escapes is a bug of ours (exit 70).
"""

from __future__ import annotations


class MemplanError(Exception):
    """The root of memplan's own errors: a message, and a hint on how to mend it."""

    exit_code = 70
    usual_hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint


class DoesNotFit(MemplanError):
    """The question was answered, and the answer is that it does not fit."""

    exit_code = 1


class UsageError(MemplanError):
    """An option, a value or a combination that cannot be used."""

    exit_code = 2


class CorruptFile(UsageError):
    """A file that is truncated, damaged or whose header contradicts its content."""


class SourceError(MemplanError):
    """A model source that cannot be read."""

    exit_code = 3


class SourceNotFound(SourceError):
    """Nothing by that name: no alias, no file, no repository."""


class GatedModel(SourceError):
    """The repository exists, but wants an accepted licence or a token."""


class Offline(SourceError):
    """The network is needed, and is not reachable or was ruled out by the user."""


class UnsupportedModel(MemplanError):
    """A model whose family, or a key of whose config, is not understood."""

    exit_code = 4
    usual_hint = "with the profile extra, --introspect torch asks transformers instead"


class MissingExtra(MemplanError):
    """An optional package that is not installed, or a device that is not there."""

    exit_code = 5


class QualityMissed(MemplanError):
    """A result that lost more quality than was allowed."""

    exit_code = 6


class Unfinished(MemplanError):
    """Work that stopped part-way; what is finished is kept."""

    exit_code = 7


def did_you_mean(word: str, known: list[str], *, limit: int = 3) -> str | None:
    """Return a hint that names the known words nearest to `word`, or None when none is near."""
    import difflib

    near = difflib.get_close_matches(word.lower(), known, n=limit, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else None
