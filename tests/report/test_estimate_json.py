"""JSON in the contract: real outputs of many models under every engine follow the schema, and the sums are right."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import made_budgets
import pytest
import recorded_estimates
from hypothesis import given

from memplan.catalog.gpus import find_gpu
from memplan.domain.budget import MemoryBudget
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.engines.registry import ENGINES
from memplan.errors import MemplanError
from memplan.pipeline import Question, answer, load_model
from memplan.report.json_report import budget_object, estimate_json, holders_json

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
MODELS = (
    "llama-3.1-8b",
    "llama-3.3-70b",
    "qwen3-32b",
    "mixtral-8x7b",
    "gpt-oss-20b",
    "gemma-3-27b",
    "phi-4",
    "deepseek-v3",
    "qwen2.5-vl-7b",
    "bert-base-uncased",
)
GROUPS = ("weights", "activation_peak", "cuda_graph", "non_torch", "kv_cache", "outside_budget")
CONTRACT = {
    "": "schema model gpu engine settings per_gpu host lines kv_cache verdict shortfall_bytes remedies",
    "model": "name architecture parameters active_parameters weights_source",
    "gpu": "name count memory_bytes",
    "engine": "name version",
    "per_gpu": "weights_bytes activation_peak_bytes cuda_graph_bytes non_torch_bytes kv_cache_bytes"
    " outside_budget_bytes used_bytes",
    "host": "memory_bytes",
    "kv_cache": "bytes_per_token capacity_tokens blocks block_size max_concurrency max_context_tokens"
    " needed_bytes needed_tokens",
}


def schema(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    return content


ESTIMATE = jsonschema.Draft202012Validator(schema("memplan.estimate"))
ESTIMATES = jsonschema.Draft202012Validator(schema("memplan.estimates"))


def check_estimate(content: dict[str, Any]) -> None:
    """The schema, the keys of the contract, and the sums."""
    ESTIMATE.validate(content)
    for place, keys in CONTRACT.items():
        assert set(keys.split()) <= set(content[place] if place else content)
    lines = content["lines"]
    assert content["per_gpu"]["used_bytes"] == sum(line["bytes"] for line in lines)
    for group in GROUPS:
        assert content["per_gpu"][f"{group}_bytes"] == sum(line["bytes"] for line in lines if line["group"] == group)
    for line in lines:
        assert {"name", "bytes", "low_bytes", "high_bytes", "provenance", "formula", "source"} <= set(line)
        assert line["low_bytes"] <= line["bytes"] <= line["high_bytes"]


@pytest.mark.parametrize("engine", ENGINES)
def test_real_estimates_follow_the_schema_under_every_engine(engine: str) -> None:
    answered = 0
    for name in MODELS:
        spec = load_model(name, revision=None, offline=True, introspect="auto")
        for gpu, ranks in (("a100-80g", 1), ("rtx-4090", 2)):
            settings = ServingSettings(
                layout=ParallelLayout(tensor=ranks),
                workload=Workload(context_tokens=min(4096, spec.max_context_tokens), concurrency=2, mean_tokens=100),
            )
            question = Question(
                spec=spec,
                base_spec=spec,
                gpu=find_gpu(gpu),
                settings=settings,
                engine=engine,
                version=None,
                with_remedies=name == "llama-3.1-8b",
            )
            try:
                budget = answer(question)
            except MemplanError:
                continue
            answered += 1
            check_estimate(json.loads(estimate_json([budget])))
    assert answered >= len(MODELS)


@pytest.mark.parametrize("name", recorded_estimates.names())
def test_a_recorded_estimate_follows_the_schema_and_loses_nothing_on_the_way(name: str) -> None:
    content = recorded_estimates.read_object(name)
    check_estimate(content)
    assert json.loads(estimate_json([recorded_estimates.budget_of(content)])) == content


@given(budget=made_budgets.any_budget())
def test_any_budget_adds_up_and_is_valid_json(budget: MemoryBudget) -> None:
    content = json.loads(estimate_json([budget]))
    assert content["per_gpu"]["used_bytes"] == sum(line["bytes"] for line in content["lines"])
    ESTIMATE.validate(content)


@pytest.mark.parametrize(
    "budget",
    [made_budgets.fitting(), made_budgets.too_large(), made_budgets.tight(), made_budgets.encoder()],
    ids=["fitting", "too large", "tight", "encoder"],
)
def test_a_made_budget_follows_the_schema(budget: MemoryBudget) -> None:
    check_estimate(json.loads(estimate_json([budget])))


def test_what_is_not_known_has_no_key() -> None:
    bare = replace(made_budgets.encoder(), weights_scheme="")
    content = budget_object(bare)
    assert not {"context_map", "kv_waste", "cheapest_remedy"} & set(content)
    assert "price_usd_per_hour" not in content["gpu"]  # type: ignore[operator]
    assert "weights_scheme" not in content["model"]  # type: ignore[operator]


def test_the_cheapest_change_is_named_where_one_mends_the_budget() -> None:
    assert budget_object(made_budgets.too_large())["cheapest_remedy"] == {
        "change": "--quant awq-int4-g128",
        "saves_bytes": 30 << 30,
        "verdict": "fits",
        "note": "check quality first",
    }
    assert "cheapest_remedy" not in budget_object(made_budgets.fitting())


def test_extras_of_an_engine_stand_at_the_top_and_never_replace_a_key_of_the_contract() -> None:
    budget = replace(made_budgets.fitting(), extra={"gpu_layers": 12, "verdict": "tight", "lines": []})
    content = json.loads(estimate_json([budget]))
    assert content["gpu_layers"] == 12
    assert content["verdict"] == "fits"
    assert len(content["lines"]) == len(budget.lines)
    ESTIMATE.validate(content)


def test_numbers_that_json_has_no_word_for_are_null() -> None:
    budget = made_budgets.fitting()
    endless = replace(budget, kv=replace(budget.kv, max_concurrency=math.inf), extra={"ratio": math.nan})
    content = json.loads(estimate_json([endless]), parse_constant=pytest.fail)
    assert content["kv_cache"]["max_concurrency"] is None
    assert content["ratio"] is None


def test_several_estimates_and_holders_follow_their_schema() -> None:
    for text in (estimate_json(made_budgets.several()), holders_json(made_budgets.holders())):
        content = json.loads(text)
        ESTIMATES.validate(content)
        assert len(content["estimates"]) == 3
    empty = json.loads(holders_json(replace(made_budgets.holders(), budgets=())))
    ESTIMATES.validate(empty)
    assert empty["needs"]["weights_bytes"] == 15 << 30


def test_a_wrong_key_or_type_is_refused_by_the_schema() -> None:
    content = json.loads(estimate_json([made_budgets.fitting()]))
    content["per_gpu"]["weights_gb"] = 1
    assert not ESTIMATE.is_valid(content)
    content = json.loads(estimate_json([made_budgets.fitting()]))
    content["lines"][0]["bytes"] = 1.5
    assert not ESTIMATE.is_valid(content)


def test_the_schema_of_several_holds_the_schema_of_one() -> None:
    one = schema("memplan.estimate")
    one.pop("$schema")
    assert schema("memplan.estimates")["$defs"]["estimate"] == one
    ESTIMATE.check_schema(ESTIMATE.schema)
    ESTIMATES.check_schema(ESTIMATES.schema)


def test_every_property_of_the_schema_that_holds_bytes_is_an_integer() -> None:
    found = 0

    def walk(node: Any) -> None:
        nonlocal found
        if isinstance(node, dict):
            for name, value in (node.get("properties") or {}).items():
                if name.endswith("bytes"):
                    assert value["type"] == "integer", name
                    found += 1
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(ESTIMATE.schema)
    assert found > 15
