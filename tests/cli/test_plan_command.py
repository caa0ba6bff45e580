"""`memplan plan` from the command line: its formats, its exit codes, what it leaves behind, what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
from memplan_in_process import Memplan

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
QUICK = ("llama-8b", "--gpu", "l40s", "--context", "8192", "--concurrency", "8", "--engine", "vllm")


def schema(name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads((SCHEMAS / f"memplan.{name}.json").read_text())
    return content


def test_the_page_names_winner_runner_up_and_what_was_ruled_out(memplan_here: Memplan) -> None:
    done = memplan_here("plan", *QUICK)
    assert done.returncode == 0
    assert "WINNER: 1 x l40s, vllm" in done.stdout
    assert "runner-up:" in done.stdout
    assert "against the winner:" in done.stdout
    assert re.search(r"\d+ candidates: \d+ budgets computed", done.stdout)


def test_quiet_is_the_winner_alone(memplan_here: Memplan) -> None:
    done = memplan_here("plan", *QUICK, "--quiet")
    assert done.stdout.startswith("1 x l40s, vllm")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("more", [(), ("--max-ttft", "1ms")])
def test_json_follows_its_schema_with_and_without_a_plan(memplan_here: Memplan, more: tuple[str, ...]) -> None:
    done = memplan_here("plan", *QUICK, "--json", *more)
    content = json.loads(done.stdout)
    jsonschema.validate(content, schema("plan"))
    assert done.returncode == int(bool(more))
    assert (content["winner"] is None) == bool(more)
    if content["winner"]:
        jsonschema.validate(content["winner"]["budget"], schema("estimate"))
        assert content["front"][0]["gpu"] == content["winner"]["gpu"]
        assert content["winner"]["speed_lines"]
    else:
        assert content["binding"] == ["ttft"]


def test_the_page_of_html_fetches_nothing_and_has_a_plot(memplan_here: Memplan) -> None:
    page = memplan_here("plan", *QUICK, "--html").stdout
    assert page.startswith("<!doctype html>")
    assert "<circle" in page
    assert not re.search(r"<script|https?://|src=|@import|url\(", page)


def test_markdown_has_the_front_as_a_table(memplan_here: Memplan) -> None:
    text = memplan_here("plan", *QUICK, "--markdown").stdout
    assert "| GPUs | engine | layout |" in text
    assert "**Winner: 1 x l40s" in text


def test_an_estimate_after_a_plan_is_of_its_winner(memplan_here: Memplan) -> None:
    planned = json.loads(memplan_here("plan", *QUICK, "--json").stdout)["winner"]
    done = memplan_here("estimate", "--json")
    again = json.loads(done.stdout)
    assert done.returncode == 0
    assert "the last command here" in done.stderr
    assert again["kv_cache"] == planned["budget"]["kv_cache"]
    assert again["lines"] == planned["budget"]["lines"]
    assert again["settings"] == planned["budget"]["settings"]


def test_a_plan_after_a_plan_searches_anew(memplan_here: Memplan) -> None:
    memplan_here("plan", *QUICK)
    done = memplan_here("plan", "--gpu", "h100", "--goal", "latency", "--json", "--engine", "vllm")
    content = json.loads(done.stdout)
    assert content["winner"]["layout"]["tensor"] > 1
    assert content["request"]["concurrency"] == 8


def test_without_a_plan_it_says_what_binds_and_the_nearest_that_exists(memplan_here: Memplan) -> None:
    done = memplan_here(
        "plan", "llama-70b", "--gpu", "l40sx1", "--context", "32768", "--concurrency", "8", "--engine", "vllm"
    )
    assert done.returncode == 1
    assert "NO PLAN keeps every limit" in done.stdout
    assert "what binds: memory" in done.stdout
    assert re.search(r"nearest, with --gpu l40sx\d+", done.stdout)


def test_the_nearest_plan_exists_when_its_change_is_made(memplan_here: Memplan) -> None:
    load = ("llama-8b", "--gpu", "l4x1", "--context", "8192", "--concurrency", "4", "--engine", "vllm")
    near = json.loads(memplan_here("plan", *load, "--max-ttft", "100ms", "--json").stdout)["nearest"]
    (change,) = (entry["change"] for entry in near if entry["limit"] == "ttft")
    assert memplan_here("plan", *load, *change.split(), "--quiet").returncode == 0


def test_budget_takes_any_priced_gpu_and_keeps_to_it(memplan_here: Memplan) -> None:
    done = memplan_here("plan", "llama-8b", "--budget", "2/h", "--context", "8192", "--concurrency", "4", "--json")
    content = json.loads(done.stdout)
    assert len(content["request"]["gpus"]) > 10
    assert all(plan["usd_per_hour"] <= 2 and plan["price_source"] for plan in content["front"])


def test_a_plan_that_was_found_is_what_emit_config_writes(memplan_here: Memplan) -> None:
    winner = json.loads(memplan_here("plan", *QUICK, "--json").stdout)["winner"]
    done = memplan_here("emit-config")
    assert done.returncode == 0
    assert f"max-num-seqs: {winner['max_num_seqs']}" in done.stdout
    assert "max-model-len: 8192" in done.stdout


def test_the_command_in_an_emitted_file_writes_it_again(memplan_here: Memplan) -> None:
    memplan_here("plan", *QUICK, "--goal", "latency", "--budget", "9/h")
    first = memplan_here("emit-config").stdout
    made_by = re.search(r"# Made by: (memplan (?:.|\n# )+?)\n\n", first)
    assert made_by
    words = made_by[1].replace("\n# ", " ").split()
    assert "--budget" not in words
    assert "--goal" not in words
    assert memplan_here(*words[1:]).stdout == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--goal", "fast"), "unknown goal: `fast`"),
        (("--budget", "10 eggs"), "not a budget: `10 eggs`"),
        (("--max-ttft", "soon"), "not a time for --max-ttft: `soon`"),
        (("--max-tpot", "200"), "not a time for --max-tpot: `200`"),
        (("--max-perplexity-increase", "2"), "not a rise of perplexity: `2`"),
        (("--precision", "12"), "not a width of weights: `12`"),
        (("--request-rate", "0"), "--request-rate out of range: 0"),
        (("--request-rate", "2", "--concurrency", "4"), "exclude each other"),
        (("--prompt-tokens", "9000", "--output-tokens", "100", "--context", "8192"), "are more than --context"),
        (("--context", "1m"), "is more than"),
        (("--shared-prefix", "9k", "--prompt-tokens", "1k", "--output-tokens", "1k"), "longer than the prompt"),
        (("--engine", "vlm"), "unknown engine: `vlm`"),
        (("--gpu", "h1000"), "unknown GPU: `h1000`"),
        (("--json", "--html"), "exclude each other"),
        (("--max-ttft", "0s"), "--max-ttft out of range: `0s`"),
        (("--max-tpot", "50"), "not a time for --max-tpot: `50`"),
        (("--budget", "0"), "not a budget: `0`"),
        (("--max-perplexity-increase", "-1%"), "not a rise of perplexity: `-1%`"),
        (("--concurrency", "0"), "--concurrency out of range: `0`"),
        (("--prompt-tokens", "1200 tokens"), "not a --prompt-tokens: `1200 tokens`"),
        (("--prompt-tokens", "mean:1200"), "--prompt-tokens states 1 of the two numbers"),
        (("--output-tokens", "none.csv"), "cannot read none.csv"),
        (("--engine", "vllm@newest"), "not a version: `newest`"),
        (("--quant", "int7"), "unknown quantization scheme: `int7`"),
        (("--kv-dtype", "fp7"), "unknown type of cache: `fp7`"),
        (("--gpu", "h100x2", "--tp", "4"), "4 ranks on 2 x h100"),
        (("--draft-model", "qwen3-0.6b"), "has another vocabulary"),
        (("--draft-model", "mtp"), "has no multi-token-prediction layers"),
        (("--num-speculative-tokens", "3"), "--num-speculative-tokens without a draft"),
        (("--draft-model", "llama-3.2-1b", "--draft-acceptance", "70"), "--draft-acceptance out of range: 70"),
    ],
)
def test_a_bad_value_is_one_clear_line(memplan_here: Memplan, options: tuple[str, ...], message: str) -> None:
    gpu = () if "--gpu" in options else ("--gpu", "l40s")
    done = memplan_here("plan", "llama-8b", *gpu, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_newer_than_is_known_is_planned_for_and_warned_of(memplan_here: Memplan) -> None:
    done = memplan_here("plan", "llama-8b", "--gpu", "l40sx1", "--context", "8K", "--engine", "vllm@99.1")
    assert done.returncode == 0
    assert "WINNER: 1 x l40s, vllm 99.1" in done.stdout
    assert "vLLM 99.1 is outside the known releases; the nearest rules are used" in done.stdout


def test_a_layout_that_is_given_is_the_only_one(memplan_here: Memplan) -> None:
    done = memplan_here("plan", "llama-8b", "--gpu", "h100x4", "--tp", "2", "--context", "8K", "--json")
    assert {(plan["layout"]["tensor"], plan["gpu"]["count"]) for plan in json.loads(done.stdout)["front"]} == {(2, 2)}
    done = memplan_here("plan", "llama-8b", "--gpu", "h100x4", "--tp", "3", "--engine", "vllm")
    assert done.returncode == 1
    assert "what binds: " in done.stdout


def test_what_a_plan_is_made_of_is_on_its_page(memplan_here: Memplan) -> None:
    load = ("llama-70b", "--gpu", "h100x8", "--quant", "fp8", "--context", "16K", "--prompt-tokens", "12000")
    pools = memplan_here("plan", *load, "--output-tokens", "400", "--request-rate", "1", "--max-tpot", "15ms").stdout
    assert re.search(r"pools     the prefill pool works \d+% of the time", pools)
    assert re.search(r"\d x TP \d for prefill and \d x TP \d for decode", pools)
    assert "is the pool that prefills" in pools.replace("\n      ", " ")
    drafts = memplan_here("plan", "llama-70b", "--gpu", "h100x4", "--context", "8K", "--goal", "latency").stdout
    assert re.search(r"drafts    \d tokens a step from meta-llama/Llama-3.2-1B-Instruct, 70% of", drafts)


def test_a_plan_with_a_draft_is_what_emit_config_writes(memplan_here: Memplan) -> None:
    memplan_here("plan", "llama-70b", "--gpu", "h100x4", "--context", "8K", "--draft-model", "llama-3.2-1b")
    done = memplan_here("emit-config")
    assert done.returncode == 0
    assert "speculative-config:" in done.stdout
    assert "model: meta-llama/Llama-3.2-1B-Instruct" in done.stdout


def test_a_plan_after_a_plan_forgets_the_draft_of_the_first(memplan_here: Memplan) -> None:
    memplan_here("plan", "llama-70b", "--gpu", "h100x4", "--context", "8K", "--draft-model", "llama-3.2-1b")
    content = json.loads(memplan_here("plan", "--json").stdout)
    assert all(plan["draft"] is None for plan in content["front"])


def test_a_model_that_writes_nothing_has_no_plan(memplan_here: Memplan) -> None:
    done = memplan_here("plan", "bert-base-uncased", "--gpu", "t4")
    assert done.returncode == 2
    assert "does not write text" in done.stderr


def test_a_recipe_whose_answer_has_changed_says_so(memplan_here: Memplan) -> None:
    recipe = "recipe: {title: t, expect: {engine: sglang, max-gpus: 1}}\nmodel: llama-8b\ngpu: l40sx1\ncontext: 8192\n"
    (memplan_here.home / "r.yaml").write_text(recipe + "engine: vllm\nconcurrency: 4\n")
    done = memplan_here("plan", "--recipe", "r.yaml", "--quiet")
    assert done.returncode == 1
    assert "recipe: engine: expected sglang, found vllm" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: llama-8b\n", "does not say what it expects"),
        ("recipe: {title: t, expect: {engin: vllm}}\nmodel: llama-8b\n", "unknown expectation"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(memplan_here: Memplan, text: str, message: str) -> None:
    (memplan_here.home / "r.yaml").write_text(text)
    done = memplan_here("plan", "--recipe", "r.yaml")
    assert done.returncode == 2
    assert message in done.stderr
