"""Drafts for speculative decoding: which are known for a model, and how often what they propose is accepted, as
published in drafts.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from memplan.catalog.tables import load_table
from memplan.domain.model import ModelSpec
from memplan.domain.plan import Speculation

OWN = "mtp"


def known_drafts(spec: ModelSpec) -> tuple[str, ...]:
    """The drafts to try for a model: its own predictors, and smaller models that share its tokenizer, by hub id."""
    own = (OWN,) if spec.mtp else ()
    pairs: Mapping[str, list[str]] = _table()["pairs"]
    return (*own, *(draft for draft, targets in pairs.items() if spec.name in targets))


def speculations(
    name: str, draft: ModelSpec, target: ModelSpec, *, num_tokens: int | None, acceptance: float | None
) -> tuple[Speculation, ...]:
    """A draft at every number of tokens worth trying, or at the one that was asked for."""
    kind = "own" if name.lower() == OWN else "model"
    rate, source = acceptance, "--draft-acceptance"
    if rate is None:
        entry = _own(target) if kind == "own" else _smaller(draft, target)
        rate, source = float(entry["acceptance"]), str(entry["source"])
        source = f"assumed: {source}" if entry.get("assumed") else source
    counts: list[int] = [num_tokens] if num_tokens else _table()["tokens"][kind]
    return tuple(
        Speculation(
            name=name,
            spec=draft,
            num_tokens=count,
            acceptance=rate,
            source=source,
            engines=_table()["engines"][kind],
        )
        for count in counts
    )


@cache
def _table() -> Mapping[str, Any]:
    return load_table(Path("drafts.yaml"))


def _own(target: ModelSpec) -> Mapping[str, Any]:
    entries: Mapping[str, Mapping[str, Any]] = _table()["own"]
    return entries.get(target.model_type) or entries["other"]


def _smaller(draft: ModelSpec, target: ModelSpec) -> Mapping[str, Any]:
    part = draft.parameters / max(1, target.parameters)
    rows: list[Mapping[str, Any]] = _table()["model"]
    return next(row for row in rows if part >= row["part"])
