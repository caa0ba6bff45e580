"""Fuzz the readers of untrusted files: only memplan's own errors may come out, in bounded time and memory.

    python benchmarks/fuzz/fuzz_readers.py gguf --runs 300000           # guided by coverage: `pip install atheris`
    python benchmarks/fuzz/fuzz_readers.py config --plain --runs 20000  # mutations alone, with nothing to install

Targets are `safetensors`, `index`, `gguf`, `config`, `headers` (a safetensors header joined with a config) and `doctor`
(whatever `memplan doctor` is given: logs, configs, training setups, metrics, snapshots). Inputs
grow from small valid files and from the catalogue's configs. Any exception but a MemplanError, an input that takes
longer than `--seconds-per-input`, or memory beyond `--memory` stops the run; the input is written to the working
directory.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import pickle
import random
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
_HAS_ATHERIS = "--plain" not in sys.argv

if _HAS_ATHERIS:
    import atheris

    _instrumented: Any = atheris.instrument_imports(include=["memplan"])
else:
    import contextlib

    _instrumented = contextlib.nullcontext()

with _instrumented:
    from memplan.catalog.models import list_models
    from memplan.cli.doctor_sources import stream_report
    from memplan.errors import MemplanError
    from memplan.introspect.bytesource import MemorySource
    from memplan.introspect.checkpoint import parse_index
    from memplan.introspect.families import FAMILIES, load_family
    from memplan.introspect.gguf import parse_gguf
    from memplan.introspect.gguf_spec import gguf_to_spec
    from memplan.introspect.header_spec import merge_headers
    from memplan.introspect.jsonfile import parse_json_object
    from memplan.introspect.model_folder import spec_from_config
    from memplan.introspect.quantization import READERS  # noqa: F401 - imports what reads quantizations
    from memplan.introspect.safetensors import parse_safetensors
    from memplan.report.diagnosis_html import html_diagnosis
    from memplan.report.diagnosis_json import diagnosis_json
    from memplan.report.diagnosis_markdown import markdown_diagnosis

    for family in FAMILIES:  # imported here, so that their branches are seen
        load_family(family)

LLAMA: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}
GGUF_ARCHITECTURES = (
    *("llama", "llama4", "gemma3", "gemma4", "deepseek2", "deepseek4", "mamba", "jamba", "nemotron_h", "qwen3next"),
    *("gpt-oss", "kimi-linear", "rwkv7", "lfm2", "t5", "bert", "brand-new"),
)
ODD_VALUES: tuple[object, ...] = (
    *(None, True, False, "", "x", "128", -1, 0, 1, 2, 3, 7, 0.5, 1e300, -1e300, float("nan"), float("inf"), 1 << 31),
    *(1 << 63, 10**30, [], {}, [None], [0], [1, 2], ["full_attention"], [[1]], {"a": 1}, "a" * 5000, list(range(300))),
)


def read_safetensors(data: bytes) -> None:
    parse_safetensors(MemorySource(data, "fuzz.safetensors"))


def read_index(data: bytes) -> None:
    parse_index(data, "fuzz.json")


def read_gguf(data: bytes) -> None:
    gguf_to_spec(parse_gguf(MemorySource(data, "fuzz.gguf")), "fuzz")


def read_config(data: bytes) -> None:
    spec_from_config(parse_json_object(data, "fuzz.json"), "fuzz")


def join_headers(data: bytes) -> None:
    merge_headers(spec_from_config(LLAMA, "fuzz"), parse_safetensors(MemorySource(data, "fuzz.safetensors")))


def diagnose(data: bytes) -> None:
    report = stream_report(io.BytesIO(data), None, {"gpu": "h100", "offline": True})
    for render in (diagnosis_json, markdown_diagnosis, html_diagnosis):
        render(report)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "safetensors": read_safetensors,
    "index": read_index,
    "gguf": read_gguf,
    "config": read_config,
    "headers": join_headers,
    "doctor": diagnose,
}


def safetensors_file(shapes: dict[str, tuple[str, tuple[int, ...], int]]) -> bytes:
    entries: dict[str, object] = {}
    end = 0
    for name, (dtype, shape, size_bytes) in shapes.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size_bytes]}
        end += size_bytes
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(end)


def gguf_file(architecture: str, order: str, version: int) -> bytes:
    def count(number: int) -> bytes:
        return struct.pack(order + ("I" if version == 1 else "Q"), number)

    def text(words: str) -> bytes:
        return count(len(words)) + words.encode()

    numbers = {
        "block_count": 2,
        "embedding_length": 64,
        "context_length": 64,
        "feed_forward_length": 64,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.sliding_window": 8,
        "expert_count": 2,
        "ssm.inner_size": 64,
        "ssm.state_size": 4,
        "ssm.conv_kernel": 4,
        "ssm.time_step_rank": 2,
    }
    keys = [text("general.architecture") + struct.pack(order + "I", 8) + text(architecture)]
    keys += [text(f"{architecture}.{key}") + struct.pack(order + "II", 4, number) for key, number in numbers.items()]
    words = struct.pack(order + "II", 9, 8) + count(3) + text("a") + text("bc") + text("")
    keys.append(text("tokenizer.ggml.tokens") + words)
    flags = struct.pack(order + "II", 9, 7) + count(2) + b"\x01\x00"
    keys.append(text(f"{architecture}.attention.sliding_window_pattern") + flags)
    infos, offset = [], 0
    names = [
        "token_embd.weight",
        *(f"blk.{index}.{part}.weight" for index in (0, 1) for part in ("attn_q", "ffn_down")),
    ]
    for name in names:
        axes = count(64) + count(2)
        infos.append(text(name) + struct.pack(order + "I", 2) + axes + struct.pack(order + "IQ", 8, offset))
        offset += 160
    head = b"GGUF" + struct.pack(order + "I", version) + count(len(infos)) + count(len(keys)) + b"".join(keys + infos)
    return head + bytes(-len(head) % 32 + offset)


def seeds(target: str) -> Iterator[bytes]:
    if target == "config":
        for model in list_models():
            yield json.dumps(model.config).encode()
        return
    if target == "doctor":
        yield from doctor_seeds()
        return
    if target == "index":
        yield json.dumps({"metadata": {"total_size": 8}, "weight_map": {"a": "model.safetensors"}}).encode()
        return
    if target == "gguf":
        for architecture in (
            "llama",
            "gemma3",
            "gemma4",
            "deepseek2",
            "mamba",
            "jamba",
            "qwen3next",
            "gpt-oss",
            "t5",
            "lfm2",
        ):
            for order, version in (("<", 3), (">", 3), ("<", 1)):
                yield gguf_file(architecture, order, version)
        return
    yield safetensors_file({"a": ("F32", (2,), 8), "b": ("BF16", (2, 2), 8), "c": ("F4", (4,), 2)})
    layer = "model.layers.0.self_attn"
    yield safetensors_file(
        {
            "model.embed_tokens.weight": ("BF16", (4, 2), 16),
            f"{layer}.q_proj.weight": ("F8_E4M3", (2, 2), 4),
            f"{layer}.q_proj.weight_scale_inv": ("F32", (1, 1), 4),
            f"{layer}.k_proj.qweight": ("I32", (1, 2), 8),
            f"{layer}.k_proj.scales": ("F16", (1, 2), 4),
            "model.layers.1.mlp.experts.0.w1.weight": ("BF16", (1, 2), 4),
        }
    )


def doctor_seeds() -> Iterator[bytes]:
    """Real failures, and a small one of everything else that the doctor reads."""
    import yaml

    cases = Path(__file__).parents[2] / "tests" / "doctor" / "cases.yaml"
    for case in yaml.safe_load(cases.read_text(encoding="utf-8")):
        yield case["log"].encode()
    yield (
        b"model: Qwen/Qwen3-32B\nswap-space: 4\nmax-model-len: 8192\nquantization: awq\nenable-prefix-caching: false\n"
    )
    yield b"vllm serve Qwen/Qwen3-32B --max-model-len 8192 --gpu-memory-utilization 0.98 --max-num-seqs 2048\n"
    yield b'{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}, "train_batch_size": 2}'
    yield b"args = TrainingArguments(output_dir='x', per_device_train_batch_size=4, eval_strategy='steps')\n"
    yield b"distributed_type: FSDP\nfsdp_config:\n  fsdp_sharding_strategy: FULL_SHARD\nmixed_precision: bf16\n"
    info = b'vllm:cache_config_info{num_gpu_blocks="9"} 1\n'
    yield b'vllm:num_requests_running{a="b"} 1.0\nvllm:kv_cache_usage_perc 0.5\n' + info
    block = {"size": 512, "requested_size": 512, "address": 4096, "state": "active_allocated", "frames": []}
    segment = {"device": 0, "address": 4096, "total_size": 512, "stream": 0, "segment_type": "small", "blocks": [block]}
    yield pickle.dumps({"segments": [segment], "device_traces": [[]]})


def mutate(target: str, data: bytes, dice: random.Random) -> bytes:
    """Change an input so that it often stays readable: JSON by its values, lengths mended now and then."""
    if target in ("config", "index") and dice.random() < 0.8:
        return _mutate_json(data, dice)
    if target in ("safetensors", "headers") and dice.random() < 0.7 and len(data) > 8:
        length = min(int.from_bytes(data[:8], "little"), len(data) - 8)
        header = data[8 : 8 + length]
        header = _mutate_json(header, dice) if dice.random() < 0.5 else _mutate_bytes(header, dice)
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    return _mutate_bytes(data, dice)


def _mutate_json(data: bytes, dice: random.Random) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _mutate_bytes(data, dice)
    if not isinstance(value, dict):
        return _mutate_bytes(data, dice)
    for _ in range(dice.randint(1, 3)):
        where: Any = value
        while isinstance(where, dict) and where:
            key = dice.choice(list(where))
            inner = where[key]
            if isinstance(inner, dict) and inner and dice.random() < 0.7:
                where = inner
                continue
            choice = dice.random()
            if choice < 0.15:
                del where[key]
            elif choice < 0.3 and isinstance(inner, list) and inner:
                inner[dice.randrange(len(inner))] = copy.deepcopy(dice.choice(ODD_VALUES))
            elif choice < 0.4:
                where[dice.choice(list(value))] = copy.deepcopy(inner)
            elif choice < 0.5 and isinstance(inner, (int, float)) and inner == inner and abs(inner) < 1e200:
                where[key] = inner * dice.choice((-1, 2, 0.5, 1000)) + dice.choice((-1, 0, 1))
            else:
                where[key] = copy.deepcopy(dice.choice(ODD_VALUES))
            break
    return json.dumps(value).encode()


def _mutate_bytes(data: bytes, dice: random.Random) -> bytes:
    raw = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(raw) + 1)
        kind = dice.random()
        if kind < 0.4 and at < len(raw):
            raw[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        elif kind < 0.6:
            raw[at : at + 8] = struct.pack(
                "<Q", dice.choice((0, 1, 8, 255, 1 << 16, 1 << 31, 1 << 40, 1 << 63, 2**64 - 1))
            )
        elif kind < 0.75:
            del raw[at : at + dice.randint(1, 16)]
        elif kind < 0.9:
            other = dice.randrange(len(raw) + 1)
            raw[at:at] = raw[other : other + dice.randint(1, 32)]
        else:
            del raw[at:]
    return bytes(raw)


class Run:
    """One run over a target: counts, limits, and the first input that broke a rule."""

    def __init__(self, target: str, seconds_per_input: float) -> None:
        self.target = target
        self.limit_s = seconds_per_input
        self.inputs = self.refused = self.read = 0
        self.slowest_s = 0.0
        self.start = time.monotonic()

    def one(self, data: bytes) -> None:
        began = time.process_time()
        try:
            TARGETS[self.target](data)
            self.read += 1
        except MemplanError as error:
            self.refused += 1
            if "\n" in error.message or len(error.message) > 3000:
                raise AssertionError(f"an error of more than one line: {error.message[:200]!r}") from None
        took_s = time.process_time() - began
        self.inputs += 1
        self.slowest_s = max(self.slowest_s, took_s)
        if took_s > self.limit_s:
            raise AssertionError(f"an input of {len(data)} bytes took {took_s:.1f} s")

    def summary(self) -> str:
        return json.dumps(
            {
                "target": self.target,
                "inputs": self.inputs,
                "read": self.read,
                "refused": self.refused,
                "slowest_input_s": round(self.slowest_s, 3),
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "elapsed_s": round(time.monotonic() - self.start, 1),
            }
        )


def run_plain(run: Run, runs: int, seed: int) -> None:
    """Mutate seeds and what was read successfully, without coverage."""
    dice = random.Random(seed)
    corpus = list(seeds(run.target))
    for number in range(runs):
        data = dice.choice(corpus)
        for _ in range(dice.randint(1, 3)):
            data = mutate(run.target, data, dice)
        data = data[: 1 << 20]
        before = run.read
        try:
            run.one(data)
        except BaseException:
            Path(f"crash-{run.target}-{number}").write_bytes(data)
            raise
        if run.read > before and len(corpus) < 5000 and dice.random() < 0.05:
            corpus.append(data)


def run_guided(run: Run, runs: int, seed: int, corpus: Path) -> None:
    """Let libFuzzer choose inputs by the branches they reach."""
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(run.target)):
        (corpus / f"seed-{number}").write_bytes(data)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        dice = random.Random(seed)
        if dice.random() < 0.3:
            return bytes(atheris.Mutate(data, max_size))[:max_size]
        return mutate(run.target, data, dice)[:max_size]

    limits = ["-timeout=20", "-rss_limit_mb=3000", "-max_len=16384", "-verbosity=0"]
    arguments = [sys.argv[0], f"-runs={runs}", f"-seed={seed}", *limits]

    def one(data: bytes) -> None:
        run.one(data)
        if run.inputs == runs:  # libFuzzer ends the process without coming back
            print(run.summary(), flush=True)

    atheris.Setup([*arguments, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds-per-input", type=float, default=5.0)
    parser.add_argument("--memory", type=int, default=4 << 30, help="address space, in bytes")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"))
    parser.add_argument("--plain", action="store_true", help="without atheris")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (asked.memory, asked.memory))
    run = Run(asked.target, asked.seconds_per_input)
    if asked.plain:
        run_plain(run, asked.runs, asked.seed)
        print(run.summary())
    else:
        run_guided(run, asked.runs, asked.seed, asked.corpus / asked.target)


if __name__ == "__main__":
    main()
