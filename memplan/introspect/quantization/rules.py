"""Which modules a quantization config means: lists of names, wildcards and regular expressions, compiled once.

Names in a config are those of the tool that wrote it, which need not be those of the published tensors: wrappers put
`model.`, `language_model.` or both in front. So names are compared without those prefixes, and a fused projection
(`qkv_proj`, `gate_up_proj`) is compared under the names of its parts as well, and the parts under the fused name.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping

from memplan.errors import UnsupportedModel

_PREFIXES = ("model.", "language_model.")
_WILD = re.compile(r"[*?\[\]()|\\^$+{}]")
_NUMBER = re.compile(r"\d")
_MAX_PATTERN = 500
_MAX_LIST = 200_000
_MAX_REGEXES = 2_000
# An unbounded repeat inside a group that is itself repeated, or many of them in a row, can take exponential time.
_NESTED_REPEAT = re.compile(r"[*+}]\)[*+{]")
_WIDE_REPEAT = re.compile(r"(?:\.|\\[wWsSDd]|\[[^\]]*\]|\))[*+]")
_MAX_WIDE_REPEATS = 6

_PARTS: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
}
_FUSED: Mapping[str, str] = {part: fused for fused, parts in _PARTS.items() for part in parts}
_EXPERT_PARTS: Mapping[str, tuple[str, ...]] = {
    "gate_up_proj": ("gate_proj", "up_proj", "w1", "w3"),
    "down_proj": ("down_proj", "w2"),
}


def short_name(name: str) -> str:
    """Return a module's name without the prefixes that wrappers put in front of the language model."""
    while name.startswith(_PREFIXES):
        name = name.removeprefix("model.").removeprefix("language_model.")
    return name


class Module:
    """One module of the model, under every name that a config may call it by.

    `full` is the published name with 0 for an expert's number; `others` are the names of its parts, or of the fused
    projection that it is a part of.
    """

    __slots__ = ("full", "leaf", "others", "short")

    def __init__(self, full: str) -> None:
        self.full = full.replace(".*", ".0")
        self.short = short_name(self.full)
        stem, _, self.leaf = self.short.rpartition(".")
        self.others: tuple[str, ...] = ()
        if self.leaf in _EXPERT_PARTS and stem.endswith("experts"):
            self.others = tuple(f"{stem}.0.{part}" for part in _EXPERT_PARTS[self.leaf])
        elif self.leaf in _PARTS:
            self.others = tuple(f"{stem}.{part}" for part in _PARTS[self.leaf])
        elif self.leaf in _FUSED:
            self.others = (f"{stem}.{_FUSED[self.leaf]}",)


class Rules:
    """A set of patterns, any of which a module may match.

    `listed` are module paths, each meaning itself and everything below it, wherever it stands in a name; one with
    wildcards in it is a regular expression from the start of a name to the end of one of its parts, as in
    transformers. `globbed` are shell patterns over whole names. `matched` and `searched` are regular expressions, at
    the start of a name and anywhere in it. `contained` are plain substrings.

    Raises: UnsupportedModel for a pattern that is no text, too long, not a regular expression, or could take for
    ever.
    """

    def __init__(
        self,
        *,
        listed: Iterable[object] = (),
        globbed: Iterable[object] = (),
        matched: Iterable[object] = (),
        searched: Iterable[object] = (),
        contained: Iterable[object] = (),
        what: str = "quantization_config",
    ) -> None:
        self._exact: set[str] = set()
        self._inner: list[str] = []
        self._prefix_list: list[str] = []
        self._contained = tuple(_texts(contained, what))
        self._regexes: list[re.Pattern[str]] = []
        self._anchored: list[re.Pattern[str]] = []
        self._text: list[str] = [*self._contained]
        for pattern in _texts(listed, what):
            self._add_path(pattern, what)
        for pattern in _texts(globbed, what):
            self._add_glob(pattern, what)
        for pattern in _texts(matched, what):
            self._add_regex(pattern, what)
        for pattern in _texts(searched, what):
            self._add_regex(pattern if pattern.startswith(".*") else f".*(?:{pattern})", what)
        self._prefixes = tuple(self._prefix_list)
        joined = "\n".join(self._text)
        self.names_numbers = _NUMBER.search(joined) is not None
        self._mentioned = {leaf for leaf in (*_PARTS, *_FUSED, "w1", "w2", "w3", "down_proj") if leaf in joined}
        self.is_empty = not self._text

    def matches(self, module: Module) -> bool:
        """Whether any pattern means this module."""
        if self.is_empty:
            return False
        if self._means(module.short, module.full):
            return True
        return any(other.rpartition(".")[2] in self._mentioned and self._means(other, other) for other in module.others)

    def _means(self, short: str, full: str) -> bool:
        if self._exact and _ancestor_in(short, self._exact):
            return True
        if self._inner:
            dotted = f".{full}."
            if any(part in dotted for part in self._inner):
                return True
        if self._prefixes and short.startswith(self._prefixes):
            return True
        if any(text in full or text in short for text in self._contained):
            return True
        if any(regex.match(full) for regex in self._regexes):
            return True
        return any(regex.match(name) for regex in self._anchored for name in spellings(full, short))

    def _add_path(self, pattern: str, what: str) -> None:
        if _WILD.search(pattern):
            self._add_regex(rf"(?:{pattern})(?:(?<=\.)|(?=\.)|$)", what, shown=pattern)
            return
        self._text.append(pattern)
        short = short_name(pattern)
        if _NUMBER.search(pattern):
            self._exact.add(short)
        else:
            self._inner.append(f".{short}.")

    def _add_glob(self, pattern: str, what: str) -> None:
        if not _WILD.search(pattern):
            self._add_path(pattern, what)
        elif pattern.endswith("*") and not _WILD.search(pattern[:-1]):
            self._text.append(pattern)
            self._prefix_list.append(short_name(pattern[:-1]))
        else:
            self._add_regex(fnmatch.translate(pattern), what, shown=pattern)

    def _add_regex(self, pattern: str, what: str, *, shown: str = "") -> None:
        shown = shown or pattern
        self._text.append(shown)
        too_wide = _NESTED_REPEAT.search(shown) or len(_WIDE_REPEAT.findall(shown)) > _MAX_WIDE_REPEATS
        too_many = len(self._regexes) + len(self._anchored) >= _MAX_REGEXES
        if too_wide or too_many or shown.count("*") > 2 * _MAX_WIDE_REPEATS:
            raise UnsupportedModel(f"{what} has a pattern that is too costly to match: `{shown[:80]}`")
        try:
            compiled = re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise UnsupportedModel(f"{what} has a pattern that is no regular expression: `{shown[:80]}`") from error
        floats = shown.startswith((".*", "*", "(.*"))
        (self._regexes if floats else self._anchored).append(compiled)


def spellings(full: str, short: str) -> tuple[str, ...]:
    """The names that a pattern anchored at the start may have been written for."""
    return (full, short, f"model.{short}", f"language_model.model.{short}", f"model.language_model.{short}")


def ancestors(name: str) -> Iterable[str]:
    """A dotted name, its parent, and so on up."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _ancestor_in(name: str, names: set[str]) -> bool:
    end = len(name)
    while end > 0:
        if name[:end] in names:
            return True
        end = name.rfind(".", 0, end)
    return False


def _texts(patterns: Iterable[object], what: str) -> Iterable[str]:
    for number, pattern in enumerate(patterns):
        if not isinstance(pattern, str) or not pattern or len(pattern) > _MAX_PATTERN:
            raise UnsupportedModel(f"{what} lists something that is no module name: `{str(pattern)[:60]}`")
        if number >= _MAX_LIST:
            raise UnsupportedModel(f"{what} lists more than {_MAX_LIST:,} modules")
        yield pattern


NOTHING = Rules()
