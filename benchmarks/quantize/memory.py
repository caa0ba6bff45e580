"""What quantizing takes of memory and time, beside what was forecast: random models with layers as wide as asked.

    python benchmarks/quantize/memory.py --hidden 2048 --intermediate 5632 --methods gptq,awq [--json]
    python benchmarks/quantize/memory.py --hidden 8192 --intermediate 28672 --vocabulary 128256 --methods gptq \
        --samples 2 --proof-tokens 512 --keep FOLDER
    python benchmarks/quantize/memory.py --hidden 1024 --intermediate 512 --experts 64 --methods gptq,awq,int8

Each method runs in a process of its own on a model of two layers with random weights, from the first inputs to the
proof. The peak is of anonymous memory, what the process made itself (`RssAnon`, sampled 20 times a second): pages of
mapped files are not in it. `runtime` is a process that has imported what a run needs, built the model without weights,
and stopped: memplan.quantize.forecast.RUNTIME_BYTES is that figure. `--keep` leaves the model for another run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Print one line per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=5632)
    parser.add_argument("--experts", type=int, default=0, help="so many in every layer, each as wide as --intermediate")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--methods", default="rtn,gptq,awq,awq+gptq,int8")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--proof-tokens", type=int, default=4096, help="judged on, in windows of at most 2048")
    parser.add_argument("--keep", type=Path, help="folder for the model, kept and used again")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(*given.one, given)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        if not (folder / "model" / "config.json").exists():
            make_model(folder / "model", given)
        rows = [in_a_process(method, folder) for method in ("runtime", *given.methods.split(","))]
    if given.json:
        print(json.dumps({"hidden": given.hidden, "intermediate": given.intermediate, "rows": rows}, indent=2))
        return
    print("| method | peak MiB | forecast MiB | forecast/peak | at its peak | forecast there | s | forecast s |")
    print("|---|---:|---:|---:|---|---|---:|---:|")
    for row in rows:
        peak, forecast = row["peak_bytes"] / 2**20, row["forecast_bytes"] / 2**20
        print(
            f"| {row['method']} | {peak:.0f} | {forecast:.0f} | {forecast / peak:.2f} | {row['phase']} | {row['step']} "
            f"| {row['seconds']:.0f} | {row['forecast_seconds']:.0f} |"
        )


def make_model(folder: Path, given: argparse.Namespace) -> None:
    """Save a Llama, or with experts a Qwen3-MoE, with random weights."""
    import torch
    import transformers

    routed = {
        "num_experts": given.experts,
        "num_experts_per_tok": max(1, given.experts // 8),
        "moe_intermediate_size": given.intermediate,
    }
    config = (transformers.Qwen3MoeConfig if given.experts else transformers.LlamaConfig)(
        **(routed if given.experts else {}),
        vocab_size=given.vocabulary,
        hidden_size=given.hidden,
        intermediate_size=given.intermediate,
        num_hidden_layers=given.layers,
        num_attention_heads=given.hidden // 128,
        num_key_value_heads=max(1, given.hidden // 1024),
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def in_a_process(method: str, folder: Path) -> dict[str, Any]:
    """Measure one method in a fresh process."""
    command = [sys.executable, __file__, "--one", method, str(folder), *sys.argv[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout.splitlines()[-1], file=sys.stderr, flush=True)  # kept when a later method is stopped
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(method: str, folder: str, given: argparse.Namespace) -> dict[str, Any]:
    """Quantize the model in `folder`, and return the peak of this process beside the forecast."""
    import shutil

    import torch
    import transformers

    from memplan.introspect.resolve import spec_from_path
    from memplan.quantize.forecast import RUNTIME_BYTES, forecast
    from memplan.quantize.memory_watch import MemoryWatch
    from memplan.quantize.output import write_checkpoint
    from memplan.quantize.pipeline import Quantization
    from memplan.quantize.request import quantize_request
    from memplan.quantize.speed import probe
    from memplan.quantize.workspace import Workspace

    transformers.logging.set_verbosity_error()
    source = Path(folder) / "model"
    request = quantize_request(
        "rtn" if method == "runtime" else method, num_samples=given.samples, window_tokens=given.window
    )
    windows = torch.randint(
        0, given.vocabulary, (given.samples, request.window_tokens), generator=torch.Generator().manual_seed(0)
    )
    proof_tokens = given.proof_tokens
    with MemoryWatch() as watch:
        work = Quantization(request, source, list(windows.split(request.batch_size)))
        if method == "runtime":
            none = {"phase": "", "step": "", "seconds": 0, "forecast_seconds": 0}
            return {"method": method, "peak_bytes": watch.peak_bytes, "forecast_bytes": RUNTIME_BYTES, **none}
        speed = probe()
        expected = forecast(spec_from_path(source), request, proof_tokens=proof_tokens, speed=speed)
        start = time.monotonic()
        workspace = Workspace(Path(folder) / method, work.identity())
        workspace.open(resume=False, force=True)

        def note(done: int, total: int, name: str) -> None:
            watch.phase = f"block {done}"
            held = f"{watch.peak_bytes / 2**30:.2f} GiB at most so far, forecast {expected.host_bytes / 2**30:.2f}"
            told = f"{method} {time.monotonic() - start:.0f} s: {done} of {total} {name}; {held}"
            print(told, file=sys.stderr, flush=True)

        work.run(workspace, note)
        watch.phase = "writing"
        staging = write_checkpoint(work, workspace)
        watch.phase = "proof"
        prove(work, staging, source, given)
        seconds = time.monotonic() - start
    shutil.rmtree(workspace.folder)
    return {
        "method": method,
        "peak_bytes": watch.peak_bytes,
        "phase": max(watch.samples, key=lambda sample: sample[1])[2],
        "phases": phases(watch.samples),
        "forecast_bytes": expected.host_bytes,
        "step": expected.hungriest.name,
        "steps": {step.name: step.total_bytes for step in expected.steps},
        "seconds": seconds,
        "forecast_seconds": expected.seconds,
    }


def prove(work: Any, staging: Path, source: Path, given: argparse.Namespace) -> None:
    """The proof on random tokens."""
    import torch

    from memplan.quantize.forward import StreamedModel
    from memplan.quantize.perplexity import measure as perplexity
    from memplan.quantize.windows import Windows
    from memplan.quantize.written import written_model

    length = min(2048, given.proof_tokens)
    count = given.proof_tokens // length
    token_NT = torch.randint(0, given.vocabulary, (count, length), generator=torch.Generator().manual_seed(1))
    windows = Windows(
        token_NT=token_NT,
        first_N=(1,) * count,
        end_N=(length,) * count,
        domain_N=("random",) * count,
        text_bytes={"random": 1},
    )
    model = written_model(staging, work.layout, work.request.format, spill=staging.parent)
    perplexity(model, windows, base=StreamedModel(source, spill=staging.parent))


def phases(samples: list[tuple[float, int, str]]) -> dict[str, int]:
    """The most that was held in each phase."""
    found: dict[str, int] = {}
    for _, held, phase in samples:
        found[phase] = max(found.get(phase, 0), held)
    return found


if __name__ == "__main__":
    main()
