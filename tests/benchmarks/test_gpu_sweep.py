"""The GPU sweep without a GPU: its data, its journal, its budget, its children, and the records it makes."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS / "gpu"), str(BENCHMARKS / "vllm")]
import records  # noqa: E402
import run_torch  # noqa: E402
import run_vllm  # noqa: E402
import slim_wheel  # noqa: E402
from allocation_trace import alive_at_peak, by_place  # noqa: E402
from gpu_points import BadPoints, Point, read_points  # noqa: E402
from meter import Meter  # noqa: E402
from model_folder import model_config, write_model_folder  # noqa: E402
from point_record import build_record  # noqa: E402
from sweep import Budget, Journal, fingerprint, pending, run_child  # noqa: E402
from torch_probes import PROBES  # noqa: E402
from vllm_logs import read_log  # noqa: E402
from vllm_probe import sizes  # noqa: E402

from memplan.pipeline import load_model  # noqa: E402
from memplan.units import GIB  # noqa: E402

MACHINE = {"vllm": "0.22.0", "torch": "2.11.0+cu130", "gpu": "NVIDIA H100 80GB HBM3", "flashinfer-python": None}

# What a start prints, in the engine's wording with figures of our own.
LOG = """\
INFO [core.py:101] Initializing a V1 LLM engine (v0.22.0) with config: model='x'
INFO [cuda.py:310] Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN', 'TRITON_ATTN'].
INFO [gpu_model_runner.py:4900] Model loading took 3.63 GiB memory and 1.20 seconds
INFO [gpu_worker.py:440] Available KV cache memory: 64.10 GiB
INFO [kv_cache_utils.py:1700] GPU KV cache size: 4,200,864 tokens
INFO [kv_cache_utils.py:1705] Maximum concurrency for 4,096 tokens per request: 1025.60x
INFO [gpu_model_runner.py:5100] Graph capturing finished in 3 secs, took 0.31 GiB
"""


def point(name: str = "llama-l4-s256") -> Point:
    return next(point for point in read_points() if point.id == name)


def answers() -> dict[str, Any]:
    return {
        "start_seconds": 20.0,
        "facts": {
            "settings": {"dtype": "bfloat16", "max_model_len": 4096, "max_num_seqs": 256, "cache_dtype": "auto",
                         "max_num_batched_tokens": 8192, "enforce_eager": False, "gpu_memory_utilization": 0.9,
                         "num_gpu_blocks": 262554},
            "bytes": {"weights": 3_900_000_000, "activation_peak": 1_300_000_000, "non_torch": 200_000_000,
                      "consumed": None, "kv_cache": 68_800_000_000, "gpu_memory": 85_017_493_504,
                      "free_at_start": 84_400_000_000},
        },
        "finished": True,
    }  # fmt: skip


def test_every_model_of_the_sweep_is_one_that_memplan_reads(tmp_path: Path) -> None:
    for choice in {point.model.name: point.model for point in read_points()}.values():
        folder = write_model_folder(choice, tmp_path)
        spec = load_model(str(folder), revision=None, offline=True, introspect="auto")
        assert spec.parameters > 0, choice.name


def test_points_differ_from_one_another_and_fit_a_session() -> None:
    points = read_points()
    asked = {fingerprint(model_config(p.model), dict(p.engine), p.ladder, p.trace, p.request) for p in points}
    assert len(asked) == len(points) >= 30
    assert max(point.seconds for point in points) < 150


def test_a_shortened_model_keeps_lists_per_layer_as_long_as_its_layers() -> None:
    config = model_config(point("gpt-oss-l4-ladder").model)
    assert config["num_hidden_layers"] == 4
    assert len(config["layer_types"]) == 4


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"points": [{"id": "a", "model": "m", "separates": "x", "sped": 1}]}, "keys that mean nothing: sped"),
        ({"points": [{"id": "a", "model": "n", "separates": "x"}]}, "a model that is not listed: n"),
        ({"points": [{"id": "a", "model": "m"}]}, "lacks separates"),
        ({"points": [{"id": "a", "model": "m", "separates": "x"}] * 2}, "more than once: a"),
        ({"schema": "other"}, "not of schema"),
    ],
)
def test_a_mistake_in_the_points_is_named(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    defaults = {"cuda": {"seconds": 30, "engine": {}, "env": {}}}
    data = {"schema": "memplan.gpu-points/1", "models": {"m": {"catalogue": "qwen3-0.6b"}}, "defaults": defaults}
    (tmp_path / "points.yaml").write_text(yaml.safe_dump({**data, **change}), encoding="utf-8")
    with pytest.raises(BadPoints, match=complaint):
        read_points(tmp_path / "points.yaml")


def test_a_measured_start_becomes_a_record_that_the_scorer_can_ask_about(tmp_path: Path) -> None:
    record = build_record(point(), machine=MACHINE, answers=answers(), terms=read_log(LOG))
    run_vllm.write_config(point(), tmp_path)
    budget = records.question(record, tmp_path / "configs").ask()
    assert record["gpu_key"] == "h100"
    assert record["scored"] == "kv"
    assert record["attention_backend"] == "FLASH_ATTN"
    assert record["truth"]["kv_cache_tokens"] == 4_200_864
    assert record["truth"]["cuda_graph_gib"] == 0.31
    assert records.real_kv_gib(record, budget) == pytest.approx(68.8e9 / GIB, abs=1e-4)


def test_a_record_has_the_keys_of_the_records_that_were_collected() -> None:
    collected = json.loads((BENCHMARKS / "vllm" / "public_runs_recent.jsonl").read_text("utf-8").splitlines()[0])
    record = build_record(point(), machine=MACHINE, answers=answers(), terms=read_log(LOG))
    assert set(collected) - set(record) == {"arith_ok"}
    assert set(record["truth"]) == set(collected["truth"])


def test_bytes_from_the_worker_come_before_the_two_digits_of_the_log() -> None:
    told = build_record(point(), machine=MACHINE, answers=answers(), terms=read_log(LOG))["truth"]
    printed = build_record(point(), machine=MACHINE, answers={}, terms=read_log(LOG))["truth"]
    assert (told["weights_gib"], printed["weights_gib"]) == (pytest.approx(3.9e9 / GIB, abs=1e-5), 3.63)
    assert told["activation_peak_gib"] == pytest.approx(1.3e9 / GIB, abs=1e-5)


def test_a_peak_that_holds_the_graphs_estimate_is_not_taken_for_the_activations() -> None:
    newer = answers()
    newer["facts"]["bytes"]["consumed"] = 4_200_000_000
    truth = build_record(point(), machine=MACHINE, answers=newer, terms=read_log(LOG))["truth"]
    assert truth["activation_peak_gib"] is None
    assert truth["peak_with_graph_estimate_gib"] == pytest.approx(1.3e9 / GIB, abs=1e-5)


def test_a_journal_knows_what_earlier_runs_wrote_even_after_one_was_cut_off(tmp_path: Path) -> None:
    path, other = tmp_path / "runs.jsonl", tmp_path / "other.jsonl"
    other.write_text('{"key": "z"}\n', encoding="utf-8")
    Journal(path=path).append({"key": "a", "value": 1})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": "b", "val')
    resumed = Journal(path=path, others=[other])
    assert pending(["a", "b", "z"], resumed) == ["b"]
    resumed.append({"key": "b"})
    assert pending(["a", "b", "z"], Journal(path=path, others=[other])) == []


def test_a_budget_learns_how_far_guesses_are_off() -> None:
    budget = Budget(limit_s=100)
    assert budget.allows(90)
    budget.learn(10, 30)
    assert budget.expected_s(30) == 90
    assert not budget.allows(40)


def test_a_child_that_takes_too_long_is_ended_with_its_own_children() -> None:
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    ended = run_child([sys.executable, "-c", code], limit_s=2)
    grandchild = int(ended.output)
    assert ended.code is None
    until = time.monotonic() + 30  # a killed process dies when it is next scheduled
    while is_running(grandchild) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_running(grandchild)


def is_running(process: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text("utf-8").rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


FAKE_VLLM = """\
import json, sys
if sys.argv[1:] == ["-"]: sys.exit(0)
script, argument = sys.argv[1], sys.argv[2]
if argument == "--environment":
    print(json.dumps({"vllm": "0.22.0", "torch": "2.11.0", "gpu": "NVIDIA H100 80GB HBM3"}))
    sys.exit(0)
order = json.load(open(argument))
if order["engine"]["max_model_len"] > 100000:
    print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    sys.exit(1)
json.dump(%s, open(order["answers"], "w"))
print(%r)
"""


def test_a_sweep_measures_survives_a_failure_stops_by_its_budget_and_resumes(tmp_path: Path) -> None:
    """A stand-in for vLLM's interpreter: a script that answers, or runs out of memory when the context is long."""
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\n" + FAKE_VLLM % (json.dumps(answers()).replace("null", "None")
                    .replace("true", "True").replace("false", "False"), LOG), encoding="utf-8")  # fmt: skip
    os.chmod(fake, 0o755)
    points = tuple(point(name) for name in ("llama-l4-s256-long", "llama-l4-s256", "llama-l4-s8"))
    bench = run_vllm.Bench(
        python=str(fake), machine=run_vllm.read_machine(str(fake)), into=tmp_path / "into", scratch=tmp_path
    )

    def once(limit_s: float) -> int:
        return run_vllm.sweep(points, bench, Budget(limit_s=limit_s), [])

    assert once(10) == 7
    assert not (tmp_path / "into").exists()
    assert once(3600) == 1
    runs = [json.loads(line) for line in (tmp_path / "into" / "vllm_runs.jsonl").read_text("utf-8").splitlines()]
    failures = (tmp_path / "into" / "failures.jsonl").read_text("utf-8").splitlines()
    assert [run["point"] for run in runs] == ["llama-l4-s256", "llama-l4-s8"]
    assert json.loads(failures[0])["problem"] == {"kind": "out_of_memory", "tried_gib": 2.0}
    assert once(3600) == 1
    assert len((tmp_path / "into" / "vllm_runs.jsonl").read_text("utf-8").splitlines()) == 2


def test_a_point_that_the_budget_cuts_off_is_put_off_and_what_it_told_is_kept(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    told = {**answers(), "finished": False}
    program = f"import json, sys, time; order = json.load(open(sys.argv[2])); told = json.loads({json.dumps(told)!r})\n"
    program += "json.dump(told, open(order['answers'], 'w')); time.sleep(60)\n"
    fake.write_text(f"#!{sys.executable}\n{program}", encoding="utf-8")
    os.chmod(fake, 0o755)
    bench = run_vllm.Bench(python=str(fake), machine=MACHINE, into=tmp_path / "into", scratch=tmp_path)
    budget = Budget(limit_s=2, guessed_s=1000, took_s=1)
    assert run_vllm.sweep((point(),), bench, budget, []) == 7
    journal = Journal(path=tmp_path / "into" / "vllm_runs.jsonl")
    assert bench.key(point()) not in journal.known
    assert [record["point"] for record in journal.known.values()] == ["llama-l4-s256"]
    assert not (tmp_path / "into" / "failures.jsonl").exists()


def test_an_interpreter_without_vllm_is_refused_in_one_line() -> None:
    with pytest.raises(BadPoints, match=r"does not run|has no vLLM"):
        run_vllm.read_machine(sys.executable)


def test_what_is_alive_at_the_peak_is_summed_by_the_line_that_asked() -> None:
    frames = [{"filename": "/x/torch/nn/modules/module.py", "line": 1, "name": "_call"},
              {"filename": "/x/site-packages/vllm/layer.py", "line": 7, "name": "forward"}]  # fmt: skip
    history = [
        {"action": "free_completed", "addr": 9, "size": 50},
        {"action": "alloc", "addr": 1, "size": 100, "frames": frames},
        {"action": "alloc", "addr": 2, "size": 300, "frames": frames},
        {"action": "free_completed", "addr": 1, "size": 100},
        {"action": "alloc", "addr": 3, "size": 60, "frames": []},
    ]
    peak_bytes, alive = alive_at_peak(history)
    assert peak_bytes == 350
    assert by_place(alive) == [{"place": "vllm/layer.py:7 forward", "bytes": 400, "count": 2}]


def test_a_ladder_ends_at_the_engines_limit() -> None:
    assert list(sizes((4, 16, 64), 20)) == [4, 16, 20]
    assert list(sizes((4, 16), 16)) == [4, 16]


def bundle(*pieces: tuple[int, int, bytes]) -> bytes:
    """A bundle of code in the layout of fat binaries."""
    body = b""
    for kind, architecture, code in pieces:
        header = struct.pack("<HHIQ", kind, 1, 64, len(code)) + bytes(12) + struct.pack("<I", architecture)
        body += header.ljust(64, b"\0") + code
    return struct.pack("<IHHQ", slim_wheel.BUNDLE, 1, 16, len(body)) + body


def test_a_slimmed_library_keeps_the_code_that_its_gpu_chooses() -> None:
    a, b, c, d, e = (bytes([value]) * 64 for value in b"abcde")
    library = b"head" + bundle((2, 80, a), (2, 90, b), (1, 90, c)) + b"between" + bundle((2, 80, d), (1, 80, e)) + b"."
    slimmed = slim_wheel.slim(library, 90)
    assert len(slimmed) == len(library)
    assert [code in slimmed for code in (a, b, c, d, e)] == [False, True, False, False, True]
    assert slim_wheel.slim(slimmed, 90) == slimmed


def test_rows_of_a_probe_are_read_from_among_its_other_output() -> None:
    assert run_torch.rows_of('UserWarning: x\n{"row": {"a": 1}}\n{"row": {"a"') == [{"a": 1}]


@pytest.mark.parametrize("name", ["context", "reserved", "sampler"])
def test_a_probe_of_torch_can_be_rehearsed_on_the_cpu(name: str) -> None:
    pytest.importorskip("torch")
    rows = list(PROBES[name][0](Meter(device="cpu"), True))
    assert rows
    assert all(json.dumps(row) for row in rows)
