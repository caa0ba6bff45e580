"""Whatever is wrong with a command line ends in one clear line with the value, a remedy, and the documented code."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from memplan_in_process import Done, Memplan

ON_L4 = ("llama-8b", "--gpu", "l4")


def check(done: Done, code: int, message: str, hint: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert len(lines[0]) < 300
    assert lines[1] == ""
    assert lines[2].startswith("hint: ")
    assert hint in lines[2]
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("estimat", "llama-70b"), "unknown command: `estimat`", "did you mean estimate"),
        (("frobnicate",), "unknown command: `frobnicate`", "use one of estimate"),
        (("--frob",), "no such option: --frob", "--help"),
        (("estimate", "llama-70b", "--gup", "l4"), "no such option: --gup", "--help"),
        (("estimate", "llama-70b", "--gpu"), "'--gpu' requires an argument", "--help"),
        (("estimate", "llama-70b", "llama-8b"), "unexpected extra argument", "--help"),
        (("estimate", *ON_L4, "--tp", "two"), "'two' is not a valid int", "--help"),
        (("estimate", *ON_L4, "--tp", "1.5"), "'1.5' is not a valid int", "--help"),
        (("estimate", *ON_L4, "--kv-keep", "half"), "'half' is not a valid float", "--help"),
        (("gpus", "--bogus"), "no such option: --bogus", "--help"),
    ],
)
def test_a_command_line_that_does_not_parse(
    memplan_here: Memplan, arguments: tuple[str, ...], message: str, hint: str
) -> None:
    check(memplan_here(*arguments), 2, message, hint)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("llama-8b", "--gpu", "h10"), "unknown GPU: `h10`", "did you mean h100"),
        (("llama-8b", "--gpu", "l4,nonsense"), "unknown GPU: `nonsense`", "memplan gpus"),
        (("llama-8b", "--gpu", ""), "--gpu is empty", "leave --gpu out"),
        (("llama-8b", "--gpu", " , "), "--gpu is empty", "leave --gpu out"),
        (("llama-8b", "--gpu", "a100-80gx0"), "number of GPUs out of range: `a100-80gx0`", "a100-80gx4"),
        (("llama-8b", "--gpu", "a100-80gx99999"), "number of GPUs out of range", "a100-80gx4"),
        (("llama-8b", "--gpu", "a100-80g:9g.80gb"), "unknown slice of a100-80g: `9g.80gb`", "3g.40gb"),
        (("llama-8b", "--gpu", "l4:1g.5gb"), "`1g.5gb`", "l4"),
        (("llama-8b", "--gpu-memory", "0GB"), "--gpu-memory out of range: `0GB`", "more than zero bytes"),
        (("llama-8b", "--gpu-memory", "-5GB"), "not a --gpu-memory: `-5GB`", "80GB, 79.2GiB"),
        (("llama-8b", "--gpu-memory", "1e3GB"), "not a --gpu-memory: `1e3GB`", "80GB, 79.2GiB"),
        (("llama-8b", "--gpu-memory", "nan"), "not a --gpu-memory: `nan`", "80GB, 79.2GiB"),
        (("llama-8b", "--gpu-memory", "24"), "--gpu-memory without a unit: `24`", "24GiB or 24GB"),
        (("llama-8b", "--gpu-memory", "9999999TB"), "out of range", "less than 1 EiB"),
        (("llama-8b", "--gpu-free", "20GiB"), "--gpu-free without a GPU", "--gpu-memory"),
        ((*ON_L4, "--gpu-free", "30GiB"), "more than a l4 has: 30.00 GiB of 22.03 GiB", "--gpu-memory"),
        ((*ON_L4, "--gpu-free", "0"), "--gpu-free out of range: `0`", "more than zero bytes"),
        ((*ON_L4, "--sharing", "0"), "--sharing out of range: 0", "between 1 and 64"),
        ((*ON_L4, "--context", "0"), "--context out of range: `0`", "at least 1"),
        ((*ON_L4, "--context", "1e6"), "not a --context: `1e6`", "8k (8,000)"),
        ((*ON_L4, "--context", "1.5"), "not a whole --context: `1.5`", "8k (8,000)"),
        ((*ON_L4, "--context", "9" * 30), "--context out of range", "less than 2^60"),
        ((*ON_L4, "--context", "８k"), "not a --context: `８k`", "8k (8,000)"),
        ((*ON_L4, "--context", ""), "not a --context: ``", "8k (8,000)"),
        ((*ON_L4, "--concurrency", "-1"), "not a --concurrency: `-1`", "8k (8,000)"),
        ((*ON_L4, "--gpu-memory-utilization", "nan"), "--gpu-memory-utilization out of range: nan", "at most 1"),
        ((*ON_L4, "--gpu-memory-utilization", "90"), "--gpu-memory-utilization out of range: 90.0", "at most 1"),
        ((*ON_L4, "--kv-keep", "0"), "--kv-keep out of range: 0.0", "at most 1"),
        ((*ON_L4, "--max-num-seqs", "0"), "--max-num-seqs out of range: `0`", "at least 1"),
        (
            (*ON_L4, "--max-num-seqs", "4096", "--max-num-batched-tokens", "512"),
            "--max-num-batched-tokens 512 is below --max-num-seqs 4096",
            "refuses to start",
        ),
        ((*ON_L4, "--block-size", "0"), "--block-size out of range: 0", "between 1 and"),
        ((*ON_L4, "--kv-cache-memory", "12"), "--kv-cache-memory without a unit: `12`", "12GiB or 12GB"),
        ((*ON_L4, "--cpu-offload", "4"), "--cpu-offload without a unit: `4`", "4GiB or 4GB"),
        ((*ON_L4, "--dtype", "int9"), "unknown dtype: `int9`", "bfloat16"),
        ((*ON_L4, "--kv-dtype", "fp3"), "`fp3`", "fp8"),
        ((*ON_L4, "--quant", ""), "--quant is empty", "leave --quant out"),
        ((*ON_L4, "--quant", "fp8,fp88"), "unknown quantization scheme: `fp88`", "did you mean fp8"),
        ((*ON_L4, "--quant", "gguf:q4_k_mm"), "unknown GGUF quantization: `gguf:q4_k_mm`", "did you mean q4_k_m"),
        ((*ON_L4, "--engine", ""), "--engine is empty", "leave --engine out"),
        ((*ON_L4, "--engine", "tgi"), "unknown engine: `tgi`", "vllm"),
        ((*ON_L4, "--engine", "vllm@"), "no version behind the @: `vllm@`", "vllm for the newest"),
        ((*ON_L4, "--engine", "vllm@latest"), "not a version: `latest`", "vllm@0.10.2"),
        ((*ON_L4, "--limit-mm", "image=x"), "not a media limit: `image=x`", "image=2,video=0"),
        ((*ON_L4, "--limit-mm", "pictures=1"), "not a media limit: `pictures=1`", "image=2,video=0"),
        ((*ON_L4, "--introspect", "magic"), "unknown way to introspect: `magic`", "auto or torch"),
        ((*ON_L4, "--set", "=3"), "not an engine option: `=3`", "KEY=VALUE"),
        ((*ON_L4, "--fail-on", "always"), "not a verdict to fail on: `always`", "tight"),
        ((*ON_L4, "--markdown", "--html"), "exclude each other", "give one"),
        ((*ON_L4, "--output", "/nowhere/at/all"), "no such directory: /nowhere/at", "make it first"),
        ((*ON_L4, "--output", "."), "is a directory", "name a file"),
        (("llama-70b", "--gpu", "l4", "--tp", "3"), "64 attention heads do not divide over --tp 3", "use --tp 1 or 2"),
        (("llama-70b", "--gpu", "l4", "--pp", "81"), "80 layers cannot be cut into --pp 81 stages", "use --pp 80"),
        (("llama-70b", "--gpu", "l4", "--dp", "5000"), "--dp out of range: 5000", "between 1 and"),
        (("llama-70b", "--gpu", "l4x4", "--tp", "8"), "4 GPUs do not hold 8 ranks evenly", "leave --tp"),
        (("llama-8b", "--gpu", "l4", "--draft-model", "mtp"), "no multi-token-prediction layers", "--draft-model"),
    ],
)
def test_a_bad_value(memplan_here: Memplan, arguments: tuple[str, ...], message: str, hint: str) -> None:
    check(memplan_here("estimate", *arguments), 2, message, hint)


@pytest.mark.parametrize(
    ("name", "code", "message", "hint"),
    [
        ("", 2, "no model named", "memplan models"),
        ("x" * 5000, 2, "not a model's name: `xxx", "memplan models"),
        ("lama-70b", 3, "unknown model: `lama-70b`", "did you mean llama-70b"),
        ("./nowhere", 3, "no such file or directory: `./nowhere`", "a path that exists"),
        ("meta-llama/../../etc", 3, "no such file or directory", "a path that exists"),
        ("https://example.com/x/y", 2, "not a model of the hub: `https://example.com/x/y`", "organisation/name"),
        ("/dev/null", 2, "not a regular file: `/dev/null`", "config.json"),
        ("/dev", 3, "no model in `/dev`", "config.json"),
        ("some/model", 3, "cannot reach 127.0.0.1", "--offline"),
    ],
)
def test_a_name_that_is_no_model(memplan_here: Memplan, name: str, code: int, message: str, hint: str) -> None:
    check(memplan_here("estimate", name, "--gpu", "l4"), code, message, hint)


def test_what_the_network_would_have_is_told_apart_from_what_is_not_there(memplan_here: Memplan) -> None:
    check(memplan_here("estimate", "some/model", "--offline"), 3, "`some/model` is not on this disk", "--offline")
    bad = memplan_here("estimate", "llama-8b", "--revision", "../..")
    check(bad, 2, "not a revision: `../..`", "a branch, a tag or a commit")


CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"hidden_size": None}, 4, "hidden_size"),
        ({"hidden_size": "sixty-four"}, 4, "hidden_size"),
        ({"hidden_size": -64}, 4, "hidden_size"),
        ({"num_hidden_layers": 1 << 40}, 4, "num_hidden_layers"),
        ({"num_attention_heads": 0}, 4, "num_attention_heads"),
        ({"model_type": "never-heard-of", "architectures": ["NeverHeardOf"]}, 4, "never-heard-of"),
        ({"quantization_config": {"quant_method": "magic"}}, 4, "magic"),
        ({"quantization_config": "fp8"}, 4, "quantization_config"),
    ],
)
def test_a_config_with_a_key_that_makes_no_sense_names_the_key(
    memplan_here: Memplan, changes: dict[str, object], code: int, message: str
) -> None:
    (memplan_here.home / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    check(memplan_here("estimate", "./config.json", "--gpu", "l4"), code, message, "")


def header(content: object, *, says: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if says is None else says) + text


TENSOR = {"dtype": "F16", "shape": [4, 4], "data_offsets": [0, 32]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b'{"model_type": "llama",', "config.json"),
        ("config.json", b"[1, 2]", "config.json"),
        ("config.json", b"\xff\xfe{}", "config.json"),
        ("model.safetensors", b"", "byte 0"),
        ("model.safetensors", header({}, says=1 << 62), "byte 0"),
        ("model.safetensors", header({"a": TENSOR})[:-4], "byte 0"),
        ("model.safetensors", header({"a": {**TENSOR, "data_offsets": [0, 31]}}) + bytes(32), "`a`"),
        ("model.gguf", b"GGUF", "byte 4"),
        ("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "byte 8"),
    ],
)
def test_a_damaged_file_is_named_with_the_place(memplan_here: Memplan, name: str, content: bytes, message: str) -> None:
    (memplan_here.home / name).write_bytes(content)
    done = memplan_here("estimate", f"./{name}", "--gpu", "l4")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert message in done.stderr.splitlines()[0]
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.gguf"])
def test_a_pointer_of_git_lfs_says_how_to_get_the_file(memplan_here: Memplan, name: str) -> None:
    (memplan_here.home / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 16\n")
    check(memplan_here("estimate", f"./{name}", "--gpu", "l4"), 2, f"{name}`: at byte 0", "git lfs pull")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}, "00002-of-00002"),
        ({"a": "../../outside.safetensors"}, "../../outside.safetensors"),
        ({"a": "/etc/passwd"}, "/etc/passwd"),
        ({"a": "model.safetensors.index.json"}, "model.safetensors.index.json"),
        ({"a": 7}, "a shard must be a file name, not 7"),
        ([], "weight_map"),
    ],
)
def test_an_index_leads_only_to_shards_beside_it(memplan_here: Memplan, weight_map: object, message: str) -> None:
    home: Path = memplan_here.home
    (home / "model-00001-of-00002.safetensors").write_bytes(header({"a": TENSOR}) + bytes(32))
    (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    done = memplan_here("estimate", "./model.safetensors.index.json", "--gpu", "l4")
    assert done.returncode in (2, 3), done.stderr
    assert done.stdout == ""
    assert message in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("size", ["80GB", "79.2GiB", "79.2 GiB", "81100MiB", "80,000MB", "80G", "80Gi"])
def test_sizes_are_read_as_people_write_them(memplan_here: Memplan, size: str) -> None:
    done = memplan_here("estimate", "qwen3-8b", "--gpu-memory", size, "--context", "8K", "-q")
    assert (done.returncode, done.stderr) == (0, "")


def test_8k_and_8K_are_different_lengths(memplan_here: Memplan) -> None:  # noqa: N802 - the case is the subject
    small, large = (memplan_here("estimate", *ON_L4, "--context", text, "-q").stdout for text in ("8k", "8K"))
    assert "8,000 tokens" in small
    assert "8,192 tokens" in large


def test_the_demo_model_is_answered_offline(memplan_here: Memplan) -> None:
    done = memplan_here("estimate", "demo", "--gpu", "a100-80g", "--offline")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("demo, 4,590,848 parameters")


def test_an_interrupted_command_exits_130(memplan_here: Memplan, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(question: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("memplan.pipeline.answer", interrupt)
    assert memplan_here("estimate", *ON_L4) == (130, "", "interrupted\n")
