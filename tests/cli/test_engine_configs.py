"""Budgeting what a person runs already: YAML, JSON and command lines of engines, as data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from memplan_in_process import Memplan
from memplan_process import memplan

from memplan.cli.engine_config import merged, read_engine_config
from memplan.errors import UsageError


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_vllm_yaml_gives_its_options(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "serve.yaml",
        "model: meta-llama/Llama-3.3-70B-Instruct\ntensor-parallel-size: 4\nmax_model_len: 32k\n"
        "gpu-memory-utilization: 0.85\nenforce-eager: true\nenable-prefix-caching: false\ncpu-offload-gb: 2\n"
        "limit-mm-per-prompt: {image: 2, video: {count: 1}}\nport: 8000\n",
    )
    found, _ = read_engine_config(path, None)
    assert found["engine"] == "vllm"
    assert found["tp"] == 4
    assert found["context"] == "32k"
    assert found["gpu_memory_utilization"] == 0.85
    assert found["eager"] is True
    assert found["prefix_caching"] is False
    assert int(found["cpu_offload"]) == 2 << 30
    assert found["limit_mm"] == "image=2,video=1"
    assert found["set"] == ["port=8000"]


def test_a_shell_file_is_read_up_to_the_end_of_the_command_and_its_image_tells_the_release(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "run.sh",
        "#!/bin/bash\n# start\nexport CUDA_VISIBLE_DEVICES=0\n"
        "docker run --gpus all -p 8000:8000 vllm/vllm-openai:v0.10.2 \\\n"
        "  --model=Qwen/Qwen3-8B --max-model-len 8192 --no-enable-prefix-caching \\\n"
        '  --speculative-config \'{"model": "Qwen/Qwen3-0.6B", "num_speculative_tokens": 3}\' > log; rm -rf x\n',
    )
    found, _ = read_engine_config(path, None)
    assert found["engine"] == "vllm@0.10.2"
    assert found["model"] == "Qwen/Qwen3-8B"
    assert found["context"] == "8192"
    assert found["prefix_caching"] is False
    assert found["draft_model"] == "Qwen/Qwen3-0.6B"
    assert found["num_speculative_tokens"] == 3
    assert not any("rf" in name for name in found["set"])


def test_the_model_of_vllm_serve_has_no_option(tmp_path: Path) -> None:
    path = written(tmp_path, "run.txt", "vllm serve Qwen/Qwen3-8B -tp 2 --quantization fp8")
    found, _ = read_engine_config(path, None)
    assert (found["model"], found["tp"], found["online_quant"]) == ("Qwen/Qwen3-8B", 2, "fp8")


def test_other_engines_are_told_by_their_program_or_their_keys(tmp_path: Path) -> None:
    sglang = written(
        tmp_path, "a.sh", "python -m sglang.launch_server --model-path a/b --tp 2 --mem-fraction-static 0.8"
    )
    found, _ = read_engine_config(sglang, None)
    assert found["engine"] == "sglang"
    assert set(found["set"]) == {"tp=2", "mem_fraction_static=0.8"}
    yaml = written(tmp_path, "b.yaml", "model-path: a/b\nmem-fraction-static: 0.8\n")
    assert read_engine_config(yaml, None)[0]["engine"] == "sglang"
    llama = written(tmp_path, "c.sh", "./llama-server -m model.gguf -c 8192 -ngl 99 -ctk q8_0 -fa on")
    found, _ = read_engine_config(llama, None)
    assert found["engine"] == "llama.cpp"
    assert (found["model"], found["context"], found["n_gpu_layers"]) == ("model.gguf", "8192", "99")
    assert found["set"] == ["cache_type_k=q8_0"]


def test_options_of_the_command_line_win(tmp_path: Path) -> None:
    found, _ = read_engine_config(written(tmp_path, "a.yaml", "model: a/b\nmax-num-seqs: 64\nport: 1\n"), None)
    given = merged({"max_num_seqs": "8", "set": ["port=2"]}, found)
    assert given["max_num_seqs"] == "8"
    assert given["set"] == ["port=1", "port=2"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "- a\n"),
        ("a.yaml", "a: [\n"),
        ("a.yaml", "tensor-parallel-size: many\n"),
        ("a.json", "{"),
        ("a.json", "[1]"),
        ("a.json", "[" * 100000),
        ("a.sh", "echo 'unterminated"),
        ("a.sh", "nothing here"),
        ("a.sh", "vllm serve m --speculative-config {broken"),
        ("a.yaml", "limit-mm-per-prompt: {image: many}\n"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(UsageError, match="a\\."):
        read_engine_config(written(tmp_path, name, text), None)


def test_aliases_cannot_make_a_small_file_large(tmp_path: Path) -> None:
    levels = ["a0: &a0 {x: 1, y: 2}"]
    levels += [f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}, r: *a{n - 1}}}" for n in range(1, 40)]
    with pytest.raises(UsageError, match="more than 2000 options"):
        read_engine_config(written(tmp_path, "bomb.yaml", "\n".join(levels)), None)


def test_a_config_is_budgeted_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, "serve.yaml", "model: Qwen/Qwen3-8B\nmax-model-len: 8192\nmax-num-seqs: 32\n")
    done = memplan("estimate", "--config", str(path), "--gpu", "l4", "--json", home=tmp_path)
    content = json.loads(done.stdout)
    assert content["settings"]["max_num_seqs"] == 32
    assert content["settings"]["max_model_len"] == 8192
    assert "read as a config of vllm" in done.stderr


@pytest.mark.parametrize(
    ("release", "line", "expected"),
    [
        # Source: FlexibleArgumentParser.load_config_file: `--no-` forms from 0.28 on, under names with dashes alone.
        ("0.33.0", "enable-prefix-caching: false", False),
        ("0.33.0", "enable_prefix_caching: false", None),
        ("0.33.0", "no-enable-prefix-caching: true", False),
        ("0.33.0", "no-enable-prefix-caching: false", None),
        ("0.27.1", "enable-prefix-caching: false", None),
        ("0.27.1", "no-enable-prefix-caching: true", False),
        ("0.27.1", "enable_prefix_caching: true", True),
    ],
)
def test_a_flag_that_is_false_counts_where_vllm_reads_it(
    tmp_path: Path, release: str, line: str, expected: bool | None
) -> None:
    path = written(tmp_path, "a.yaml", f"model: a/b\n{line}\n")
    found, notes = read_engine_config(path, f"vllm@{release}")
    assert found.get("prefix_caching") is expected
    unread = expected is None and not line.startswith("no-")
    assert any("as if it were not there" in note for note in notes) is unread


@pytest.mark.parametrize(
    ("release", "line", "expected"),
    [
        ("0.33.0", "async-scheduling: false", ["async_scheduling=False"]),
        ("0.27.1", "async-scheduling: false", []),
        ("0.27.1", "no-async-scheduling: true", ["async_scheduling=False"]),
        ("0.33.0", "no-disable-hybrid-kv-cache-manager: true", ["disable_hybrid_kv_cache_manager=False"]),
    ],
)
def test_flags_that_are_vllms_alone_are_turned_off_alike(
    tmp_path: Path, release: str, line: str, expected: list[str]
) -> None:
    path = written(tmp_path, "a.yaml", f"model: a/b\n{line}\n")
    assert read_engine_config(path, f"vllm@{release}")[0]["set"] == expected


def test_chunked_prefill_took_a_word_before_0_8_5(tmp_path: Path) -> None:
    """Source: StoreBoolean of --enable-chunked-prefill in vllm/engine/arg_utils.py."""
    path = written(tmp_path, "a.yaml", "enable-chunked-prefill: false\n")
    assert read_engine_config(path, "vllm@0.8.4")[0]["chunked_prefill"] is False
    assert "chunked_prefill" not in read_engine_config(path, "vllm@0.8.5")[0]


@pytest.mark.parametrize("value", ["auto", "-1", "AUTO"])
def test_a_length_that_follows_the_cache_is_answered_with_what_fits(tmp_path: Path, value: str) -> None:
    path = written(tmp_path, "a.yaml", f"model: Qwen/Qwen3-8B\nmax-model-len: {value}\n")
    found = estimate_json(tmp_path, "--config", str(path), "--gpu", "rtx-4090")
    longest = found["kv_cache"]["max_context_tokens"]
    assert found["settings"]["max_model_len"] == longest < 40960
    assert found["verdict"] == "fits"
    assert f"max-model-len auto: {longest:,} tokens, what fits" in found["warnings"]
    longer = estimate_json(tmp_path, "--config", str(path), "--gpu", "h100")
    assert longer["settings"]["max_model_len"] == 40960
    given = estimate_json(tmp_path, "--config", str(path), "--gpu", "rtx-4090", "--context", "4096")
    assert given["settings"]["max_model_len"] == 4096


def test_a_release_that_does_not_fit_the_length_refuses_auto(tmp_path: Path) -> None:
    path = written(tmp_path, "a.yaml", "model: Qwen/Qwen3-8B\nmax-model-len: auto\n")
    done = memplan("estimate", "--config", str(path), "--gpu", "l4", "--engine", "vllm@0.13.0", home=tmp_path)
    assert done.returncode == 2
    assert "vLLM 0.13.0 does not know max-model-len auto" in done.stderr


def test_vllm_names_set_by_hand_are_options_like_any_other(tmp_path: Path) -> None:
    found = estimate_json(tmp_path, "qwen3-8b", "--gpu", "l4", "--set", "max_num_seqs=3", "--set", "max-model-len=2k")
    assert (found["settings"]["max_num_seqs"], found["settings"]["max_model_len"]) == (3, 2000)


def test_a_slip_in_a_vllm_name_is_refused_and_other_names_are_listed(tmp_path: Path) -> None:
    path = written(tmp_path, "a.yaml", "model: Qwen/Qwen3-8B\nmax-num-seq: 3\n")
    for arguments in (("--config", str(path)), ("qwen3-8b", "--set", "max_num_seq=3")):
        done = memplan("estimate", *arguments, "--gpu", "l4", home=tmp_path)
        assert done.returncode == 2
        assert "unknown vLLM option: `max_num_seq`" in done.stderr
        assert "did you mean max_num_seqs?" in done.stderr
    path = written(tmp_path, "b.yaml", "model: Qwen/Qwen3-8B\nport: 1\nmax-cpu-loras: 4\nmiddleware: [a, b]\n")
    found = estimate_json(tmp_path, "--config", str(path), "--gpu", "l4", "--context", "2048")
    assert "options that the estimate does not depend on: max_cpu_loras, middleware, port" in found["warnings"]


def estimate_json(home: Path, *arguments: str) -> dict[str, Any]:
    done = memplan("estimate", *arguments, "--json", home=home)
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def test_a_script_is_read_and_never_run(memplan_here: Memplan) -> None:
    text = """
import pathlib
pathlib.Path("ran").touch()
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
MODEL = "llama-8b"
model = AutoModelForCausalLM.from_pretrained(
    MODEL, torch_dtype=torch.float16, quantization_config=BitsAndBytesConfig(load_in_8bit=True), **more
)
model.generate(**inputs, max_new_tokens=100, num_beams=2)
"""
    (memplan_here.home / "load.py").write_text(text)
    done = memplan_here("estimate", "--config", "load.py", "--gpu", "l40s", "--context", "4k", "--json")
    found = json.loads(done.stdout)
    assert found["engine"]["name"] == "transformers"
    assert found["model"]["weights_scheme"] == "bnb-int8"
    assert (found["settings"]["num_beams"], found["settings"]["max_new_tokens"]) == (2, 100)
    assert not (memplan_here.home / "ran").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("print('hello')", "loads no model"),
        ("def broken(:", "is not a Python script"),
        ("model = LLM(" + "(" * 5000, "is not a Python script"),
        ("from vllm import LLM\nllm = LLM(model=name)", "no model was named"),
    ],
)
def test_a_script_that_tells_no_model_gets_one_line(memplan_here: Memplan, text: str, message: str) -> None:
    (memplan_here.home / "load.py").write_text(text)
    done = memplan_here("estimate", "--config", "load.py", "--gpu", "l40s")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
