"""docs/servable.md against the catalogue's tables: written anew by `python benchmarks/render_docs.py`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from servable_tables import tables

from memplan.catalog.servable import ENGINES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "servable.md").read_text(encoding="utf-8")
IN_PAGE = re.findall(r"<!-- servable: (\S+) (\w+) -->\n(.*?)\n?<!-- end -->", PAGE, re.DOTALL)


@pytest.mark.parametrize(("engine", "what", "table"), IN_PAGE, ids=[f"{engine}-{what}" for engine, what, _ in IN_PAGE])
def test_a_table_is_what_the_catalogue_says(engine: str, what: str, table: str) -> None:
    assert table == tables(engine, what), "write it anew with: python benchmarks/render_docs.py"


def test_every_engine_has_its_tables() -> None:
    shown = {(engine, what) for engine, what, _ in IN_PAGE}
    assert {(engine, what) for engine in ENGINES for what in ("weights", "kv", "sources")} <= shown
