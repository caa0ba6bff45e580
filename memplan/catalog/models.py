"""Models by name: the entries of models/*.yaml, with the facts that rebuild a config.

A name is a hub id, the part of one after the slash, an alias, or a bare family name (`llama-70b`), which means the
newest well-known release of that family and size. Ids of published quantized checkpoints lead to the model that they
were made from. Case, blanks and underscores do not matter. Only the entry that is asked for is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import cast

from memplan.catalog.slices import Slices, read_slices
from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass, field, replace

# How a name can be meant, the surest first: a hub id, an alias, a bare family name, an id without its organisation,
# the id of a published quantized checkpoint.
_RANKS = ("key", "aliases", "bare", "tail", "quantized")
# Organisations that publish copies of others' models under the same name, and bitsandbytes versions of them.
_MIRRORED = re.compile(
    r"(?:unsloth|NousResearch|LLM-Research|modelscope|AI-ModelScope)/(?P<model>.+?)(?P<bnb>(?:-unsloth)?-bnb-4bit)?",
    re.IGNORECASE,
)
MODELS_FOLDER = Path(__file__).with_name("models")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """A model that the catalogue knows.

    `name` is its hub id. `config` holds the keys of its Hugging Face config that decide its weights and cache, and
    `parameters` counts what they come to: tied weights once, no multi-token-prediction layers, no quantization scales.
    `quantized` names published checkpoints by weight scheme. `published_id` and `scheme` are set when the name that was
    asked for is one of those. `resolved_note` says what a bare family name was taken as.
    """

    name: str
    parameters: int
    config: dict[str, object]
    source: str
    aliases: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    released: str = ""
    license: str | None = None
    gated: bool = False
    quantized: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    published_id: str | None = None
    scheme: str | None = None
    resolved_note: str = ""

    @property
    def organisation(self) -> str:
        """The part of the hub id before the slash."""
        return self.name.split("/")[0]


def find_model(name: str) -> CatalogModel | None:
    """Return the model that `name` means, or None when the catalogue does not know it."""
    asked = name.strip()
    found = _lookup(asked)
    if found is None and (mirrored := _MIRRORED.fullmatch(asked)):
        found = _lookup(mirrored["model"])
        if found is not None and found.scheme is None:
            note = f"{asked}: taken as a copy of {found.name}"
            found = replace(found, published_id=asked, resolved_note=note)
            if mirrored["bnb"]:
                found = replace(found, scheme="bnb-nf4", config=_unquantized(found.config))
    return found


def list_models() -> tuple[CatalogModel, ...]:
    """Return every model, in the order of the files."""
    return tuple(_read(slices, key) for slices in _files() for key in slices.entry_keys())


def search_models(text: str) -> tuple[CatalogModel, ...]:
    """Return the models whose hub id, names, family, licence or quantized checkpoints have every word of `text`."""
    words = text.lower().split()
    return tuple(model for model in list_models() if all(_mentions(model, word) for word in words))


def suggest_models(name: str) -> str | None:
    """Return a hint that names the known models nearest to `name`, or None when none is near."""
    known = [known for slices in _files() for _, _, known in slices.names()]
    spellings = {tail.lower() for known_name in known for tail in (known_name, known_name.split("/")[-1])}
    return did_you_mean(name.strip().split("/")[-1], sorted(spellings)) or did_you_mean(name.strip(), sorted(spellings))


def unfold(value: object) -> object:
    """Return a config value with its shorthand written out.

    `{cycle: [a, a, b], length: 48}` is a list that repeats, `{runs: [[3, a], [45, b]]}` one that is given by runs, and
    a key such as `layers.<0-2,5>.mlp` stands for one key per number.
    """
    if isinstance(value, list):
        return [unfold(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"cycle", "length"}:
        cycle, length = cast("list[object]", value["cycle"]), cast("int", value["length"])
        return [unfold(cycle[index % len(cycle)]) for index in range(length)]
    if value.keys() == {"runs"}:
        return [unfold(item) for count, item in cast("list[tuple[int, object]]", value["runs"]) for _ in range(count)]
    return {name: unfold(item) for key, item in value.items() for name in _numbered(key)}


def _numbered(key: str) -> Iterator[str]:
    """Yield the keys that one key stands for."""
    match = re.fullmatch(r"([^<]*)<([\d,-]+)>(.*)", key)
    if match is None:
        yield key
        return
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield from _numbered(f"{match[1]}{number}{match[3]}")


def _lookup(asked: str) -> CatalogModel | None:
    plain = re.sub(r"[\s_:]+", "-", asked)
    best: tuple[int, Slices, str] | None = None
    for slices in _files():
        if named := slices.find_name(plain):
            rank = _RANKS.index(named[1])
            if best is None or rank < best[0]:
                best = (rank, slices, named[0])
            if rank == 0:
                break
    return _read(best[1], best[2], how=_RANKS[best[0]], asked=asked) if best else None


def _files() -> Iterator[Slices]:
    return (read_slices(path) for path in _paths())


@lru_cache(maxsize=1)
def _paths() -> tuple[Path, ...]:
    return tuple(sorted(MODELS_FOLDER.glob("*.yaml")))


def _read(slices: Slices, key: str, *, how: str = "key", asked: str = "") -> CatalogModel:
    entry = _entry(slices, key)
    facts = _facts(slices, entry)
    config = cast("dict[str, object]", unfold(facts["config"]))
    quantized = _quantized(entry)
    scheme = _scheme_of(quantized, asked) if how == "quantized" else None
    return CatalogModel(
        name=key,
        parameters=cast("int", facts["parameters"]),
        config=_unquantized(config) if scheme else config,
        source=str(entry["source"]),
        aliases=tuple(cast("list[str]", entry.get("aliases", []))),
        bare=tuple(cast("list[str]", entry.get("bare", []))),
        released=str(entry.get("released", "")),
        license=cast("str | None", entry.get("license")),
        gated=bool(entry.get("gated", False)),
        quantized=quantized,
        published_id=scheme and next(known for known in quantized[scheme] if _same(known, asked)),
        scheme=scheme,
        resolved_note=_taken_as(asked, key, str(entry.get("released", ""))) if how == "bare" else "",
    )


def _entry(slices: Slices, key: str) -> Mapping[str, object]:
    entry = slices.entry(key)
    if entry is None:
        raise UsageError(f"{slices.origin} has no entry `{key}`")
    return entry


def _facts(slices: Slices, entry: Mapping[str, object]) -> Mapping[str, object]:
    """Return the entry that holds the config and the count: the model itself, or the one that it is `like`.

    A model may be like another and differ in some keys of the config, which it then gives under `differs`.
    """
    if "like" not in entry:
        return entry
    like = str(entry["like"])
    for other in (slices, *_files()):
        if like in other.entry_keys():
            base = _facts(other, _entry(other, like))
            differs = cast("dict[str, object]", entry.get("differs", {}))
            config = {**cast("dict[str, object]", base["config"]), **differs}
            return {"parameters": entry.get("parameters", base["parameters"]), "config": config}
    raise UsageError(f"{slices.origin} refers to `{like}`, which no file has")


def _unquantized(config: Mapping[str, object]) -> dict[str, object]:
    """Return a config without the quantization of its own checkpoint, for one that was made in another scheme."""
    kept = {key: value for key, value in config.items() if key not in ("quantization_config", "quantization")}
    return {key: _unquantized(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _quantized(entry: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    named = cast("dict[str, str | list[str]]", entry.get("quantized") or {})
    return {scheme: (ids,) if isinstance(ids, str) else tuple(ids) for scheme, ids in named.items()}


def _scheme_of(quantized: Mapping[str, tuple[str, ...]], asked: str) -> str | None:
    return next((scheme for scheme, ids in quantized.items() if any(_same(known, asked) for known in ids)), None)


def _same(known: str, asked: str) -> bool:
    known, asked = (re.sub(r"[\s_:]+", "-", text.lower()) for text in (known, asked))
    return asked in (known, known.split("/")[-1])


def _taken_as(asked: str, key: str, released: str) -> str:
    return f"{asked}: taken as {key}, the newest well-known release of that name{f' ({released})' if released else ''}"


def _mentions(model: CatalogModel, word: str) -> bool:
    texts = [model.name, *model.aliases, *model.bare, model.license or "", str(model.config.get("model_type", ""))]
    texts += [known for ids in model.quantized.values() for known in ids]
    return any(word in text.lower() for text in texts)
