"""Budgeting what a person runs already: YAML, JSON and command lines of engines, as data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
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
        "gpu-memory-utilization: 0.85\nenforce-eager: true\nenable_prefix_caching: false\ncpu-offload-gb: 2\n"
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
