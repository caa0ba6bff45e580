"""`memplan simulate`: what it is asked, what it answers, and what becomes of its answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from memplan_in_process import Memplan

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "memplan.simulation.json"
MODEL = ("llama-8b", "--gpu", "l40s", "--context", "8K", "--offline")
LOAD = ("--rate", "4", "--prompt-len", "mean:300,p95:900", "--output-len", "20..80", "--requests", "120")


def simulated(memplan_here: Memplan, *options: str) -> dict[str, Any]:
    done = memplan_here("simulate", *MODEL, *LOAD, "--json", *options)
    content: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == int(content["setups"][0]["keeps_limits"] is False), done.stderr
    Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(content)
    return content


def test_every_request_is_accounted_for_and_the_cache_s_parts_sum_to_one(memplan_here: Memplan) -> None:
    (setup,) = simulated(memplan_here)["setups"]
    counts = setup["counts"]
    assert counts["finished"] + counts["rejected"] + counts["unfinished"] == counts["requests"] == 120
    cache = setup["cache"]
    assert sum(cache[part] for part in cache if part != "shared") == pytest.approx(1.0, abs=1e-4)


def test_the_blocks_are_those_of_the_estimate_without_the_null_block(memplan_here: Memplan) -> None:
    estimate = json.loads(memplan_here("estimate", *MODEL, "--json").stdout)
    (setup,) = simulated(memplan_here)["setups"]
    assert setup["settings"]["num_blocks"] == estimate["kv_cache"]["blocks"] - 1
    assert setup["settings"]["max_num_seqs"] == estimate["settings"]["max_num_seqs"]


def test_the_same_command_gives_the_same_bytes(memplan_here: Memplan) -> None:
    assert simulated(memplan_here, "--seed", "7") == simulated(memplan_here, "--seed", "7")
    assert simulated(memplan_here, "--seed", "7") != simulated(memplan_here, "--seed", "8")


def test_what_ifs_stand_beside_what_was_asked_under_the_same_traffic(memplan_here: Memplan) -> None:
    found = simulated(
        memplan_here,
        "--what-if",
        "max-num-seqs=4,8",
        "--what-if",
        "kv-dtype=fp8+block-size=32",
        "--what-if",
        "gpu=h100",
    )
    names = [setup["name"] for setup in found["setups"]]
    assert names == ["as asked", "max-num-seqs=4", "max-num-seqs=8", "kv-dtype=fp8 + block-size=32", "gpu=h100"]
    by_name = dict(zip(names, found["setups"], strict=True))
    assert {setup["counts"]["prompt_tokens"] for setup in found["setups"]} == {
        by_name["as asked"]["counts"]["prompt_tokens"]
    }
    assert by_name["max-num-seqs=4"]["counts"]["most_running"] <= 4
    assert by_name["kv-dtype=fp8 + block-size=32"]["settings"]["groups"][0]["block_tokens"] == 32
    assert by_name["gpu=h100"]["gpu"]["name"] == "h100"
    assert by_name["gpu=h100"]["end_to_end_s"]["mean"] < by_name["as asked"]["end_to_end_s"]["mean"]


def test_the_usual_what_ifs_have_one_of_each_kind_and_say_which_the_engine_refuses(memplan_here: Memplan) -> None:
    found = simulated(memplan_here, "--what-if", "usual")
    names = " ".join(setup["name"] for setup in found["setups"])
    for name in (
        "block-size=32",
        "max-num-seqs=",
        "kv-dtype=fp8",
        "context=4096",
        "prefix-caching=off",
        "batching=static",
    ):
        assert name in names
    assert any(note.startswith("what-if block-size=8 is left out") for note in found["notes"])


def test_the_least_gpu_is_the_fewest_replicas_that_keep_the_limits(memplan_here: Memplan) -> None:
    found = simulated(memplan_here, "--rate", "30", "--max-ttft", "1s", "--max-tpot", "35ms")
    assert found["setups"][0]["keeps_limits"] is False
    assert found["least"]["keeps_limits"] is True
    assert found["least"]["gpu"]["count"] == found["least"]["settings"]["replicas"] > 1
    fewer = found["least"]["settings"]["replicas"] - 1
    again = simulated(memplan_here, "--rate", "30", "--max-ttft", "1s", "--max-tpot", "35ms", "--dp", str(fewer))
    assert again["setups"][0]["keeps_limits"] is False


def test_emit_config_writes_the_setup_of_a_simulation(memplan_here: Memplan) -> None:
    found = simulated(memplan_here, "--what-if", "kv-dtype=fp8", "--max-num-seqs", "48")
    path = memplan_here.home / "simulation.json"
    path.write_text(json.dumps(found))
    done = memplan_here("emit-config", "--from-simulation", str(path), "--offline")
    assert done.returncode == 0, done.stderr
    assert "max-num-seqs: 48" in done.stdout
    assert "max-model-len: 8192" in done.stdout
    refused = memplan_here("emit-config", "llama-8b", "--from-simulation", str(path))
    assert refused.returncode == 2
    path.write_text('{"schema": "memplan.plan/1"}')
    assert memplan_here("emit-config", "--from-simulation", str(path)).returncode == 2


def test_a_trace_is_replayed_at_its_own_times(memplan_here: Memplan) -> None:
    trace = memplan_here.home / "azure.csv"
    rows = [f"2023-11-16 18:15:{second:02}.5,374,44" for second in range(40)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    done = memplan_here("simulate", *MODEL, "--trace", str(trace), "--json")
    found = json.loads(done.stdout)
    assert found["traffic"]["requests"] == 40
    assert 39 < found["setups"][0]["duration_s"] < 45
    assert any("Azure's columns" in note for note in found["notes"])


def test_users_in_a_closed_loop_have_no_more_requests_than_there_are_users(memplan_here: Memplan) -> None:
    lengths = ("--prompt-len", "200", "--output-len", "40", "--requests", "60")
    done = memplan_here("simulate", *MODEL, *lengths, "--concurrency", "5", "--json")
    assert json.loads(done.stdout)["setups"][0]["counts"]["most_running"] == 5


def test_without_a_model_the_last_plan_s_load_is_simulated(memplan_here: Memplan) -> None:
    asked = ("--prompt-tokens", "400", "--output-tokens", "50", "--request-rate", "2", "--context", "4K")
    assert memplan_here("plan", "llama-8b", "--gpu", "l40s", *asked, "--offline").returncode == 0
    done = memplan_here("simulate", "--requests", "40", "--json", "--offline")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "using the last command here: llama-8b on l40s" in done.stderr
    assert found["traffic"]["mean_prompt_tokens"] == 400
    assert found["traffic"]["requests_per_s"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rate", "2", "--output-len", "9"), "how long prompts are"),
        (("--prompt-len", "5", "--output-len", "9"), "how requests arrive"),
        ((*LOAD, "--concurrency", "4"), "--rate and --concurrency exclude each other"),
        ((*LOAD, "--what-if", "colour=red"), "not a what-if"),
        ((*LOAD, "--what-if", "max-num-seqs=many"), "many"),
        ((*LOAD, "--what-if", "kv-dtype"), "a what-if without a value"),
        ((*LOAD, "--swap-space", "8GiB"), "--swap-space without --preemption swap"),
        ((*LOAD, "--batching", "eager"), "unknown batching"),
        ((*LOAD, "--bursts", "10s"), "not bursts"),
        ((*LOAD, "--think-time", "soon"), "not a time for --think-time"),
        ((*LOAD, "--requests", "9M"), "--requests out of range"),
        ((*LOAD, "--rate", "0"), "--rate out of range"),
        ((*LOAD, "--watermark", "2"), "--watermark out of range"),
        ((*LOAD, "--burstiness", "nan"), "a burstiness of nan"),
        ((*LOAD, "--max-queue", "0"), "--max-queue out of range"),
        ((*LOAD, "--turns", "5M"), "--turns out of range"),
        ((*LOAD, "--trace-speed", "2"), "--trace-speed without --trace"),
        ((*LOAD, "--shared-prefix", "8000"), "leaves nothing of the prompts"),
        ((*LOAD, "--engine", "transformers"), "has no scheduler to simulate"),
        (("--trace", "absent.csv"), "cannot read absent.csv"),
        ((*LOAD, "--step-times", "absent.csv"), "cannot read absent.csv"),
    ],
)
def test_what_cannot_be_simulated_ends_in_one_sentence(
    memplan_here: Memplan, options: tuple[str, ...], said: str
) -> None:
    done = memplan_here("simulate", *MODEL, *options)
    assert done.returncode in (1, 2)
    assert said in done.stderr.splitlines()[-3] + done.stderr.splitlines()[0]
    assert done.stdout == ""


def test_a_model_without_room_for_a_cache_is_answered_with_1(memplan_here: Memplan) -> None:
    done = memplan_here("simulate", "llama-70b", "--gpu", "l40s", *LOAD, "--offline")
    assert done.returncode == 1
    assert "no room for a cache" in done.stderr


def test_measured_step_times_take_the_place_of_the_model(memplan_here: Memplan) -> None:
    path = memplan_here.home / "steps.csv"
    path.write_text("phase,batch,context,tokens,seconds\ndecode,1,0,,0.1\ndecode,64,0,,0.1\nprefill,,,512,0.1\n")
    (setup,) = simulated(memplan_here, "--step-times", str(path))["setups"]
    assert setup["tpot_s"]["p50"] == pytest.approx(0.1, rel=0.05)


def test_the_formats_are_pages_of_the_same_figures(memplan_here: Memplan) -> None:
    limits = ("--max-ttft", "2s", "--what-if", "max-num-seqs=8")
    text = memplan_here("simulate", *MODEL, *LOAD, *limits).stdout
    assert "the same traffic, side by side" in text
    assert "the least GPU that keeps the limits: l40s" in text
    markdown = memplan_here("simulate", *MODEL, *LOAD, *limits, "--markdown").stdout
    assert "| first token |" in markdown
    page = memplan_here("simulate", *MODEL, *LOAD, *limits, "--html").stdout
    assert page.count("<svg") == 4
    drawn = set(re.findall(r'class="(line-\w+)"', page))
    assert {"line-missing", "line-weights"} <= drawn
    assert all(f"svg .{name} {{" in page for name in drawn)
    assert "http" not in page.replace("http://www.w3.org", "")
    quiet = memplan_here("simulate", *MODEL, *LOAD, *limits, "--quiet").stdout
    assert len(quiet.splitlines()) == 3


def test_names_that_hold_markup_are_shown_as_they_are(memplan_here: Memplan) -> None:
    trace = memplan_here.home / "<b>.csv"
    trace.write_text("prompt_tokens,output_tokens\n20,5\n30,6\n")
    page = memplan_here("simulate", *MODEL, "--trace", str(trace), "--rate", "1", "--html").stdout
    assert "<b>.csv" not in page
    assert "&lt;b&gt;.csv" in page


def test_the_admission_example_of_the_page_holds(memplan_here: Memplan) -> None:
    """The page's own command and code, run one after the other in one directory."""
    page = (SCHEMA.parents[1] / "simulate.md").read_text(encoding="utf-8")
    section = page[page.index("## Admission") :]
    command = re.search(r"```sh\nmemplan (.*)\n```", section)
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert command is not None
    assert code is not None
    assert memplan_here(*command[1].split(), "--offline").returncode == 0
    exec(compile(code[1], "docs/simulate.md", "exec"), {})
