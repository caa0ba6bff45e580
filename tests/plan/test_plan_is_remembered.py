"""What a plan leaves behind gives its budget again, and its JSON is as the schema says, whatever it is made of."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from memplan.cli.plan import as_options
from memplan.cli.plan_request import plan_request
from memplan.cli.questions import ask
from memplan.pipeline import answer, load_model
from memplan.plan.search import search
from memplan.report.plan_html import html_plan
from memplan.report.plan_json import plan_json
from memplan.report.plan_markdown import markdown_plan

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs" / "schemas" / "memplan.plan.json").read_text())
CASES = {
    "spread lengths": (
        "llama-8b",
        {"gpu": "l40sx1", "context": "16384", "prompt_tokens": "mean:1200,p95:4000", "output_tokens": "50..900"},
        {"request_rate": 4.0},
    ),
    "drafts": ("deepseek-v3", {"gpu": "h200x8", "goal": "latency", "context": "8192"}, {"kv_dtype": "auto"}),
    "a draft model": (
        "llama-70b",
        {"gpu": "h100x4", "context": "8192", "concurrency": "4", "draft_model": "llama-3.2-1b", "quant": "none"},
        {},
    ),
    "weights in host memory": (
        "llama-70b",
        {"gpu": "rtx-4090x1", "context": "2048", "concurrency": "1", "quant": "none", "kv_dtype": "auto"},
        {"offline_batch": True},
    ),
    "a machine without a GPU": (
        "qwen3-8b",
        {"gpu": "cpu:32g", "goal": "single-gpu", "context": "8192", "engine": "llama.cpp"},
        {"prompt_tokens": "512", "output_tokens": "512"},
    ),
    "pools": (
        "llama-70b",
        {"gpu": "h100x8", "context": "16384", "concurrency": "8", "quant": "fp8", "disaggregated": True},
        {"prompt_tokens": "12000", "output_tokens": "400"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_plan_leaves_behind_gives_its_budget_again(case: str) -> None:
    name, options, more = CASES[case]
    given = {"engine": "vllm", **options, **more}
    spec = load_model(name, revision=None, offline=True, introspect="auto")
    found = search(spec, plan_request(given, spec), with_nearest=False)
    winner = found.winner
    assert winner is not None
    kept = {key: value for key, value in given.items() if key == "offline_batch"}
    asked = ask({"model": name, "offline": True, "quiet": True, **kept, **as_options(winner)})
    (again,) = (answer(question) for question in asked.questions())
    assert again == winner.budget
    assert again.verdict == "fits"
    jsonschema.validate(json.loads(plan_json(found)), SCHEMA)
    assert winner.gpu.name in markdown_plan(found)
    assert "<svg" in html_plan(found)
