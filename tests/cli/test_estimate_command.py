"""`memplan estimate` as a person runs it: verbatim commands, streams, exit codes, state, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from memplan_process import memplan


def estimate_json(*arguments: str, home: Path) -> dict[str, object]:
    done = memplan("estimate", *arguments, "--json", home=home)
    assert done.returncode in (0, 1), done.stderr
    content: dict[str, object] = json.loads(done.stdout)
    return content


def test_the_verbatim_command_answers_and_exits_one_because_it_does_not_fit(tmp_path: Path) -> None:
    done = memplan("estimate", "llama-70b", "--gpu", "a100-80g", home=tmp_path)
    assert done.returncode == 1
    assert "DOES NOT FIT" in done.stdout
    assert "meta-llama/Llama-3.3-70B-Instruct" in done.stdout
    assert done.stderr == ""


def test_a_model_that_fits_exits_zero(tmp_path: Path) -> None:
    done = memplan("estimate", "llama-8b", "--gpu", "h100", "--context", "8k", "--quiet", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("FITS")


def test_no_model_means_the_last_one_of_this_directory(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    memplan("estimate", "qwen3-8b", "--gpu", "l4", "--context", "4096", home=tmp_path, cwd=here)
    again = memplan("estimate", "--json", home=tmp_path, cwd=here)
    assert json.loads(again.stdout)["model"]["name"] == "Qwen/Qwen3-8B"
    assert json.loads(again.stdout)["settings"]["max_model_len"] == 4096
    assert "using the last command here: qwen3-8b on l4" in again.stderr
    elsewhere = memplan("estimate", home=tmp_path, cwd=there)
    assert elsewhere.returncode == 2
    assert "no model was named" in elsewhere.stderr


def test_memplan_yaml_comes_before_the_last_command_and_options_before_both(tmp_path: Path) -> None:
    memplan("estimate", "qwen3-8b", "--gpu", "l4", home=tmp_path)
    (tmp_path / "memplan.yaml").write_text("model: llama-8b\ngpu: h100\ncontext: 4096\nset:\n  flashinfer: true\n")
    done = memplan("estimate", "--gpu", "a100-80g", "--json", home=tmp_path)
    content = json.loads(done.stdout)
    assert content["model"]["name"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert content["gpu"]["name"] == "a100-80g"
    assert content["settings"]["max_model_len"] == 4096
    assert "using memplan.yaml: llama-8b on a100-80g" in done.stderr


def test_a_named_model_never_depends_on_memplan_yaml(tmp_path: Path) -> None:
    plain = estimate_json("qwen3-8b", "--gpu", "l4", home=tmp_path)
    (tmp_path / "memplan.yaml").write_text("model: llama-8b\ncontext: 4096\n")
    assert estimate_json("qwen3-8b", "--gpu", "l4", home=tmp_path) == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: llama-8b\ncontxt: 4\n", "did you mean context"),
        ("model: llama-8b\neager: maybe\n", "eager is `maybe`"),
        ("- llama-8b\n", "not a YAML mapping"),
        ("model: llama-8b\ngpu: [\n", "not valid YAML at line 3, column 1: "),
    ],
)
def test_a_bad_memplan_yaml_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "memplan.yaml").write_text(text)
    done = memplan("estimate", home=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("llama-70b", "--gpu", "a100-80"), 2, "did you mean a100-80g"),
        (("lama-70b", "--gpu", "a100-80g"), 3, "llama-70b"),
        (("llama-70b", "--gpu", "h100", "--tp", "3"), 2, "64 attention heads do not divide over --tp 3"),
        (("llama-70b", "--gpu", "h100", "--tp", "0"), 2, "--tp out of range: 0"),
        (("llama-70b", "--gpu", "h100x0"), 2, "h100x0"),
        (("llama-8b", "--gpu", "h100", "--context", "-5"), 2, "--context"),
        (("llama-8b", "--gpu", "h100", "--context", "8x"), 2, "not a --context: `8x`"),
        (("llama-8b", "--gpu", "h100", "--concurrency", "0"), 2, "--concurrency"),
        (("llama-8b", "--gpu-memory", "80"), 2, "write 80GiB or 80GB"),
        (("llama-8b", "--gpu-memory", "80XB"), 2, "80XB"),
        (("llama-8b", "--gpu", "h100", "--gpu-memory-utilization", "1.2"), 2, "above 0 and at most 1"),
        (("llama-8b", "--gpu", "h100", "--quant", "awq-int5"), 2, "awq"),
        (("llama-8b", "--gpu", "h100", "--kv-dtype", "fp3"), 2, "fp3"),
        (("llama-8b", "--gpu", "h100", "--engine", "vlm"), 2, "did you mean vllm"),
        (("llama-8b", "--gpu", "h100", "--engine", "vllm@latest"), 2, "not a version: `latest`"),
        (("llama-8b", "--gpu", "h100", "--json", "--html"), 2, "exclude each other"),
        (("llama-8b", "--gpu", "h100", "--fail-on", "always"), 2, "always"),
        (("llama-8b", "--gpu", "h100", "--set", "nothing"), 2, "KEY=VALUE"),
        (("llama-8b", "--gpu", "h100", "--limit-mm", "image"), 2, "image=2,video=0"),
        (("llama-8b", "--gpu", "h100", "--draft-model", "mtp"), 2, "no multi-token-prediction layers"),
        (("llama-8b", "--gpu", "h100", "--config", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("some/unknown-model", "--gpu", "h100", "--offline"), 3, "some/unknown-model"),
    ],
)
def test_bad_input_is_one_clear_line_and_a_hint(
    tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = memplan("estimate", *arguments, home=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()[0]) < 300


def test_an_unreachable_hub_is_told_apart_from_an_unknown_model(tmp_path: Path) -> None:
    done = memplan("estimate", "some/unknown-model", "--gpu", "h100", home=tmp_path)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_an_answer_is_written_whole_and_not_over_another_file(tmp_path: Path) -> None:
    target = tmp_path / "answer.json"
    first = memplan("estimate", "llama-8b", "--gpu", "h100", "--json", "--output", str(target), home=tmp_path)
    assert (first.returncode, first.stdout) == (0, "")
    assert json.loads(target.read_text())["schema"] == "memplan.estimate/1"
    target.write_text("mine")
    second = memplan("estimate", "llama-8b", "--gpu", "h100", "--json", "--output", str(target), home=tmp_path)
    assert second.returncode == 2
    assert target.read_text() == "mine"
    forced = memplan("estimate", "llama-8b", "--gpu", "h100", "--json", "-o", str(target), "--force", home=tmp_path)
    assert forced.returncode == 0
    assert json.loads(target.read_text())["schema"] == "memplan.estimate/1"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".answer")] == []


def test_fail_on_never_exits_zero_and_fail_on_tight_counts_tight(tmp_path: Path) -> None:
    never = memplan("estimate", "llama-70b", "--gpu", "a100-80g", "--fail-on", "never", "-q", home=tmp_path)
    assert never.returncode == 0
    sizes = [f"{16000 + 10 * step}MiB" for step in range(0, 400, 4)]
    tight = next(
        size
        for size in sizes
        if memplan(
            "estimate", "qwen3-8b", "--gpu-memory", size, "--context", "2048", "-q", home=tmp_path
        ).stdout.startswith("TIGHT")
    )
    arguments = ("estimate", "qwen3-8b", "--gpu-memory", tight, "--context", "2048", "-q")
    assert memplan(*arguments, home=tmp_path).returncode == 0
    assert memplan(*arguments, "--fail-on", "tight", home=tmp_path).returncode == 1


def test_several_gpus_and_schemes_are_answered_side_by_side(tmp_path: Path) -> None:
    content = estimate_json("llama-8b", "--gpu", "h100,rtx-4090x2", "--quant", "none,fp8", home=tmp_path)
    assert content["schema"] == "memplan.estimates/1"
    estimates = content["estimates"]
    assert isinstance(estimates, list)
    assert [(one["gpu"]["name"], one["gpu"]["count"]) for one in estimates] == [
        ("h100", 1),
        ("h100", 1),
        ("rtx-4090", 2),
        ("rtx-4090", 2),
    ]
    assert estimates[1]["per_gpu"]["weights_bytes"] < 0.6 * estimates[0]["per_gpu"]["weights_bytes"]


def test_engines_that_share_a_card_leave_each_other_room(tmp_path: Path) -> None:
    alone = estimate_json("qwen3-8b", "--gpu", "a100-80g", "--context", "8k", home=tmp_path)
    two = estimate_json("qwen3-8b", "--gpu", "a100-80g", "--context", "8k", "--sharing", "2", home=tmp_path)
    assert two["verdict"] == "fits"
    assert 2 * two["per_gpu"]["used_bytes"] < alone["gpu"]["memory_bytes"]  # type: ignore[index]
    assert any("--gpu-memory-utilization" in remedy["change"] for remedy in alone["remedies"])
    assert not any("--gpu-memory-utilization" in remedy["change"] for remedy in two["remedies"])
    nine = memplan("estimate", "qwen3-8b", "--gpu", "a100-80g", "--sharing", "9", "-q", home=tmp_path)
    assert nine.returncode == 1


def test_a_card_in_use_has_less_room(tmp_path: Path) -> None:
    done = memplan("estimate", "qwen3-8b", "--gpu", "a100-80g", "--gpu-free", "40GiB", "-q", home=tmp_path)
    assert done.returncode == 1
    assert "free at start" in done.stdout or "free" in done.stdout


def test_a_mig_slice_is_a_device(tmp_path: Path) -> None:
    content = estimate_json("qwen3-8b", "--gpu", "a100-80g:3g.40gb", "--context", "8k", home=tmp_path)
    assert content["verdict"] == "fits"
    assert content["gpu"]["memory_bytes"] < 41 * 2**30  # type: ignore[index]


def test_help_is_on_stdout_and_lists_the_options(tmp_path: Path) -> None:
    done = memplan("estimate", "--help", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--max-num-batched-tokens" in done.stdout
