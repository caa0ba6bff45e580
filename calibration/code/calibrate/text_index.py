"""Full-text search over a few thousand notes: an inverted index, ranked by BM25, with phrases.

    index = Index()
    index.add("monday", "the plumber comes on Monday about the leak")
    for hit in index.search('leak "on monday"'):
        print(hit.name, round(hit.score, 2), hit.snippet)
"""

import heapq
import math
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass

_WORD = re.compile(r"[^\W_]+", re.UNICODE)
_QUERY = re.compile(r'"([^"]*)"|(\S+)')

# The usual values: how soon more of the same word stops counting, and how much long notes pay.
_SATURATION = 1.2
_LENGTH = 0.75


def fold(word: str) -> str:
    """Lower case without accents: `Café` is found by `cafe`."""
    apart = unicodedata.normalize("NFKD", word.casefold())
    return "".join(char for char in apart if not unicodedata.combining(char))


def words(text: str) -> list[tuple[str, int]]:
    """The folded words of a text, each with the place where it starts."""
    return [(fold(match.group()), match.start()) for match in _WORD.finditer(text)]


@dataclass(frozen=True)
class Hit:
    """One note that was found."""

    name: str
    score: float
    snippet: str


class Index:
    """Notes by name, and for each word where in which note it stands."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._lengths: dict[str, int] = {}
        self._places: dict[str, dict[str, list[int]]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, name: str, text: str) -> None:
        """Add a note, or replace the one of that name."""
        if name in self._texts:
            self.remove(name)
        found = words(text)
        self._texts[name] = text
        self._lengths[name] = len(found)
        for position, (word, _) in enumerate(found):
            self._places[word].setdefault(name, []).append(position)

    def remove(self, name: str) -> None:
        """Forget a note. Raises KeyError when there is none of that name."""
        text = self._texts.pop(name)
        del self._lengths[name]
        for word in {word for word, _ in words(text)}:
            del self._places[word][name]
            if not self._places[word]:
                del self._places[word]

    def search(self, query: str, limit: int = 10) -> list[Hit]:
        """Notes with all phrases and at least one word of a query, best first."""
        phrases = [[word for word, _ in words(match[0])] for match in _QUERY.findall(query) if match[0]]
        wanted = Counter(word for match in _QUERY.findall(query) for word, _ in words(match[0] or match[1]))
        scores: dict[str, float] = defaultdict(float)
        for word, weight in wanted.items():
            for name, count in self._counts(word).items():
                scores[name] += weight * self._rarity(word) * self._frequency(name, count)
        for phrase in phrases:
            holders = self._with_phrase(phrase)
            scores = {name: score for name, score in scores.items() if name in holders}
        best = heapq.nlargest(limit, scores.items(), key=lambda item: (item[1], item[0]))
        return [Hit(name, score, self._snippet(name, wanted)) for name, score in best]

    def _counts(self, word: str) -> dict[str, int]:
        return {name: len(places) for name, places in self._places.get(word, {}).items()}

    def _rarity(self, word: str) -> float:
        holders = len(self._places.get(word, {}))
        return math.log(1 + (len(self) - holders + 0.5) / (holders + 0.5))

    def _frequency(self, name: str, count: int) -> float:
        average = sum(self._lengths.values()) / len(self)
        penalty = 1 - _LENGTH + _LENGTH * self._lengths[name] / average
        return count * (_SATURATION + 1) / (count + _SATURATION * penalty)

    def _with_phrase(self, phrase: list[str]) -> set[str]:
        if not phrase:
            return set(self._texts)
        holders = set(self._places.get(phrase[0], {}))
        for word in phrase[1:]:
            holders &= set(self._places.get(word, {}))
        return {name for name in holders if self._stands_in(name, phrase)}

    def _stands_in(self, name: str, phrase: list[str]) -> bool:
        starts = set(self._places[phrase[0]][name])
        for offset, word in enumerate(phrase[1:], start=1):
            starts &= {place - offset for place in self._places[word][name]}
        return bool(starts)

    def _snippet(self, name: str, wanted: Counter, around: int = 40) -> str:
        text = self._texts[name]
        start = next((at for word, at in words(text) if word in wanted), 0)
        begin, end = max(0, start - around), min(len(text), start + around)
        cut = " ".join(text[begin:end].split())
        return ("…" if begin else "") + cut + ("…" if end < len(text) else "")
