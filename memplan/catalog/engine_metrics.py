"""What an engine exports to Prometheus at a release: the names that alerts, dashboards and autoscalers ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from memplan.catalog.rules import parse_release
from memplan.catalog.tables import load_table
from memplan.errors import UsageError
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetrics:
    """The metrics of one engine at one release. `names` maps what a metric means to its name; what the release does not
    export is not in it. `first_token`, `inter_token`, `queue_time` and `whole_request` are histograms in seconds,
    `kv_usage` is a part of 1, `preemptions` and the tokens are counters. `turned_on_by` is what the engine must be
    started with to export them, None for nothing.
    """

    engine: str
    version: str
    path: str
    model_label: str | None
    turned_on_by: str | None
    source: str
    names: Mapping[str, str]

    def has(self, *meanings: str) -> bool:
        """Whether the release exports all of them."""
        return all(meaning in self.names for meaning in meanings)

    def __getitem__(self, meaning: str) -> str:
        return self.names[meaning]


def engine_metrics(engine: str, version: str, *, generation: object = "v1") -> EngineMetrics:
    """Return the metrics of `engine` at `version`; a release newer than the table has the newest names.

    `generation` is vLLM's: a start that falls back to V0 exports V0's names.
    Raises: UsageError for an engine without metrics, or a release older than the table.
    """
    table = load_table(Path("engine_metrics.yaml"))
    if engine not in table:
        raise UsageError(
            f"{engine} exports no metrics to Prometheus", hint=f"the engines that do: {', '.join(sorted(table))}"
        )
    entry = table[engine]
    release = parse_release(version)
    if release < parse_release(str(entry["oldest"])):
        raise UsageError(f"the metrics of {engine} {version} are not known", hint=f"they are from {entry['oldest']} on")
    names = {}
    for meaning, steps in entry["names"].items():
        held = [name for since, name in steps.items() if parse_release(str(since)) <= release]
        if held and held[-1]:
            names[meaning] = str(held[-1])
    old = names.pop("kv_usage_v0", None)
    if generation == "v0" and old:
        names["kv_usage"] = old
    return EngineMetrics(
        engine=engine,
        version=version,
        path=str(entry["path"]),
        model_label=entry["model_label"],
        turned_on_by=entry["turned_on_by"],
        source=str(entry["source"]),
        names=names,
    )
