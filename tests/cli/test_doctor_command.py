"""`memplan doctor` from the command line: what it takes, its formats and exit codes, what it never repeats."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from memplan_in_process import Memplan

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
LOG = """Initializing a V1 LLM engine (v0.11.0) with config: model='Qwen/Qwen3-32B', dtype=torch.bfloat16, max_seq_len=40960, tensor_parallel_size=1
Model loading took 61.0347 GiB and 20.5 seconds
Available KV cache memory: 4.45 GiB
ValueError: To serve at least one request with the model's max seq len (40960), (10.00 GiB KV cache is needed, which is larger than the available KV cache memory (4.45 GiB). Based on the available memory, the estimated maximum model length is 18224.
"""  # noqa: E501


def schema() -> dict[str, object]:
    content: dict[str, object] = json.loads((SCHEMAS / "memplan.diagnosis.json").read_text())
    return content


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_log_is_diagnosed_with_figures_the_working_and_mends(memplan_here: Memplan, tmp_path: Path) -> None:
    done = memplan_here("doctor", write(tmp_path / "server.log", LOG), "--gpu", "h100")
    assert done.returncode == 0
    assert "FAILS  kv_too_small_for_len" in done.stdout
    assert "one request of 40,960 tokens needs 10.00 GiB of KV cache and there are 4.45 GiB" in done.stdout
    assert "Why: the budget of Qwen/Qwen3-32B on h100, vLLM 0.11.0 beside what was measured" in done.stdout
    assert "--max-model-len 18224" in done.stdout


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        ("server.log", LOG, "kv_too_small_for_len"),
        (
            "vllm.yaml",
            "model: meta-llama/Llama-3.1-8B-Instruct\nswap-space: 4\nmax-model-len: 8192\n",
            "unknown_option",
        ),
        (
            "run.sh",
            "vllm serve meta-llama/Llama-3.1-8B-Instruct --quantization awq --max-model-len 8192\n",
            "not_quantized",
        ),
        ("ds.json", '{"zero_optimization": {"stage": 0}, "train_micro_batch_size_per_gpu": 8}', "activations_oom"),
        ("dmesg", "Out of memory: Killed process 61 (python) total-vm:18109076kB, anon-rss:14095848kB\n", "host_oom"),
        (
            "m.prom",
            "vllm:num_requests_running 1\nvllm:kv_cache_usage_perc 0.1\nvllm:num_requests_waiting 0\n",
            "runs_fine",
        ),
    ],
)
def test_json_follows_its_schema_whatever_was_given(
    memplan_here: Memplan, tmp_path: Path, name: str, text: str, cause: str
) -> None:
    done = memplan_here("doctor", write(tmp_path / name, text), "--gpu", "h100", "--json")
    assert done.returncode == 0
    content = json.loads(done.stdout)
    jsonschema.validate(content, schema())
    assert content["cause"] == cause


def test_a_config_is_checked_against_its_release(memplan_here: Memplan, tmp_path: Path) -> None:
    path = write(
        tmp_path / "vllm.yaml", "model: meta-llama/Llama-3.1-8B-Instruct\nswap-space: 4\nmax-model-len: 8192\n"
    )
    for release, gone in (("0.11.0", False), ("0.20.2", True)):
        done = memplan_here("doctor", path, "--gpu", "h100", "--engine", f"vllm@{release}", "--json")
        causes = [each["cause"] for each in json.loads(done.stdout)["diagnoses"]]
        assert ("unknown_option" in causes) == gone


def test_a_training_script_gets_the_budget_of_its_step(memplan_here: Memplan, tmp_path: Path) -> None:
    script = (
        'model = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.1-8B")\n'
        "args = TrainingArguments(output_dir='x', per_device_train_batch_size=4, bf16=True, eval_strategy='steps')\n"
    )
    done = memplan_here("doctor", write(tmp_path / "train.py", script), "--gpu", "a100-80g", "--json")
    content = json.loads(done.stdout)
    jsonschema.validate(content, schema())
    assert content["cause"] == "backward_oom"
    assert "evaluation_oom" in [each["cause"] for each in content["diagnoses"]]
    assert any("gradient_checkpointing=True" in mend["change"] for mend in content["diagnoses"][0]["mends"])


def test_nvidia_smi_tells_who_holds_the_gpu(memplan_here: Memplan, tmp_path: Path) -> None:
    table = """+---------------------------------------------------------------------------------------+
| NVIDIA-SMI 535.104.05             Driver Version: 535.104.05   CUDA Version: 12.2     |
|   0  NVIDIA A100-SXM4-80GB          On  | 00000000:07:00.0 Off |                    0 |
| N/A   34C    P0              66W / 400W |  76543MiB / 81920MiB |      0%      Default |
|    0   N/A  N/A      4242      C   /usr/bin/python3                          70000MiB |
"""
    content = json.loads(memplan_here("doctor", write(tmp_path / "smi", table), "--json").stdout)
    assert content["recognised"]["kind"] == "nvidia-smi"
    assert content["cause"] == "gpu_in_use"
    assert "4242" in content["diagnoses"][0]["sentence"]


def test_a_snapshot_is_read_by_the_restricted_reader_only(memplan_here: Memplan, tmp_path: Path) -> None:
    blocks = [
        {"size": 1 << 30, "requested_size": 1 << 30, "address": 1 << 40, "state": "active_allocated", "frames": []}
    ]
    segment = {
        "device": 0, "address": 1 << 40, "total_size": 1 << 30, "allocated_size": 1 << 30, "active_size": 1 << 30,
        "stream": 0, "segment_type": "large", "blocks": blocks,
    }  # fmt: skip
    good = tmp_path / "snapshot.pickle"
    good.write_bytes(pickle.dumps({"segments": [segment], "device_traces": [[]]}))
    content = json.loads(memplan_here("doctor", str(good), "--json").stdout)
    assert content["recognised"]["kind"] == "snapshot"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    evil = tmp_path / "evil.pickle"
    evil.write_bytes(pickle.dumps(Evil()))
    done = memplan_here("doctor", str(evil))
    assert done.returncode == 2
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("form", ["--markdown", "--html", "--quiet"])
def test_other_formats_say_the_same_cause(memplan_here: Memplan, tmp_path: Path, form: str) -> None:
    done = memplan_here("doctor", write(tmp_path / "server.log", LOG), "--gpu", "h100", form)
    assert done.returncode == 0
    assert "kv" in done.stdout
    assert "too" in done.stdout
    assert len(done.stdout.splitlines()) == 1 or form != "--quiet"


def test_nothing_in_a_page_is_read_as_markup(memplan_here: Memplan, tmp_path: Path) -> None:
    text = "<script>alert(1)</script> vLLM ValueError: No available memory for the cache blocks.\n"
    done = memplan_here("doctor", write(tmp_path / "server.log", text), "--html")
    assert "<script>" not in done.stdout


@pytest.mark.parametrize("form", ["--json", "--markdown", "--html", "--quiet", "--no-color"])
def test_secrets_of_a_log_are_never_repeated(memplan_here: Memplan, tmp_path: Path, form: str) -> None:
    text = (
        "HF_TOKEN=hf_abcdefghijklmnop vllm serve hf_abcdefghijklmnop --api-key sk-verysecret123456\n"
        "non-default args: {'model': 'Qwen/Qwen3-32B', 'api_key': ['topsecretkey99']}\n"
        "https://bob:hunter22pass@registry/x Authorization: Bearer abcdefgh12345678 ValueError: No available "
        "memory for the"
        " cache blocks\n"
    )
    done = memplan_here("doctor", write(tmp_path / "server.log", text), form)
    everything = done.stdout + done.stderr
    for secret in ("hf_abcdefghijklmnop", "sk-verysecret123456", "topsecretkey99", "hunter22pass", "abcdefgh12345678"):
        assert secret not in everything


def test_secrets_of_a_config_are_never_repeated(memplan_here: Memplan, tmp_path: Path) -> None:
    text = "model: Qwen/Qwen3-32B\napi-key: topsecretkey99\nswap-space: 4\nhf-token: hf_abcdefghijklmnop\n"
    done = memplan_here("doctor", write(tmp_path / "vllm.yaml", text), "--gpu", "h100", "--json")
    for secret in ("topsecretkey99", "hf_abcdefghijklmnop"):
        assert secret not in done.stdout + done.stderr


def test_what_was_learned_from_a_log_moves_the_estimate_and_it_says_so(
    memplan_here: Memplan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    log = LOG.replace(
        "Available KV",
        "model weights take 61.03GiB; non_torch_memory takes 1.50GiB; PyTorch activation peak memory takes "
        "6.00GiB; the rest\nAvailable KV",
    )
    ask = ("estimate", "Qwen/Qwen3-32B", "--gpu", "h100", "--engine", "vllm@0.11.0", "--context", "4096", "--json")
    before = json.loads(memplan_here(*ask).stdout)
    done = memplan_here("doctor", write(tmp_path / "server.log", log), "--gpu", "h100", "--learn")
    assert done.returncode == 0
    assert "learned activation peak, non torch" in done.stdout
    after = json.loads(memplan_here(*ask).stdout)
    lines = {line["name"]: line for line in after["lines"]}
    assert lines["activation peak"]["bytes"] == pytest.approx(6.0 * 2**30, rel=0.001)
    assert lines["outside torch, charged"]["provenance"] == "measured"
    assert after["kv_cache"]["capacity_tokens"] < before["kv_cache"]["capacity_tokens"]
    taken = sum(line["bytes"] for line in after["lines"] if line["name"] != "KV cache")
    had = sum(line["bytes"] for line in before["lines"] if line["name"] != "KV cache")
    assert before["per_gpu"]["kv_cache_bytes"] - after["per_gpu"]["kv_cache_bytes"] == taken - had
    other = json.loads(memplan_here(*ask[:2], "--gpu", "h200", *ask[4:]).stdout)
    assert all("start-ups on this GPU" not in line["formula"] for line in other["lines"])


def test_a_log_is_learned_once_however_often_it_is_given(
    memplan_here: Memplan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    log = LOG + "non_torch_memory takes 1.50GiB\n"
    for _ in range(2):
        memplan_here("doctor", write(tmp_path / "server.log", log), "--gpu", "h100", "--learn")
    (kept,) = (tmp_path / "state" / "memplan" / "corrections").glob("*.json")
    content = json.loads(kept.read_text())
    assert len(content["runs"]) == 1
    assert content["runs"][0]["terms"][0]["measured_bytes"] == round(1.5 * 2**30)


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (None, 3, "cannot read"),
        (b"", 2, "it is empty"),
        (b"hello world\n", 2, "nothing is known of what was given"),
        (gzip.compress(b"log", mtime=0), 2, "packed with gzip"),
        (b"\x00" * 4096, 2, "zero bytes"),
        (b"\x80\x04\x95garbage", 2, "pickle"),
    ],
)
def test_what_cannot_be_diagnosed_is_said_in_one_line(
    memplan_here: Memplan, tmp_path: Path, content: bytes | None, code: int, said: str
) -> None:
    path = tmp_path / "given"
    if content is not None:
        path.write_bytes(content)
    done = memplan_here("doctor", str(path))
    assert done.returncode == code
    assert said in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(("option", "value"), [("--gpu", "nosuch"), ("--gpu-memory", "lots"), ("--engine", "nosuch")])
def test_an_option_that_says_nothing_is_refused_also_where_it_is_not_needed(
    memplan_here: Memplan, tmp_path: Path, option: str, value: str
) -> None:
    done = memplan_here(
        "doctor", write(tmp_path / "x.log", "CUDA out of memory. Tried to allocate 2.00 GiB\n"), option, value
    )
    assert done.returncode == 2
    assert value in done.stderr.splitlines()[0]
    assert not done.stdout


def test_without_a_source_it_says_what_to_give(memplan_here: Memplan) -> None:
    done = memplan_here("doctor")
    assert done.returncode == 2
    assert "nothing to look at" in done.stderr


def test_a_folder_and_two_formats_are_refused(memplan_here: Memplan, tmp_path: Path) -> None:
    assert memplan_here("doctor", str(tmp_path)).returncode == 2
    assert memplan_here("doctor", write(tmp_path / "x.log", LOG), "--json", "--html").returncode == 2
