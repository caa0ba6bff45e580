"""What quantizing takes of memory, beside what was forecast: random models with layers as wide as asked.

    python benchmarks/quantize/memory.py --hidden 2048 --intermediate 5632 --methods gptq,awq [--json]

Each method runs in a process of its own on a model of two layers with random weights; the peak is what the system says
the process held. `runtime` is a process that has imported what a run needs, built the model without weights, and
stopped: memplan.quantize.forecast.RUNTIME_BYTES is that figure.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

VOCABULARY = 32000


def main() -> None:
    """Print one line per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=5632)
    parser.add_argument("--methods", default="rtn,gptq,awq,awq+gptq,int8")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(*given.one, samples=given.samples)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model", given.hidden, given.intermediate)
        rows = [in_a_process(method, folder, given.samples) for method in ("runtime", *given.methods.split(","))]
    if given.json:
        print(json.dumps({"hidden": given.hidden, "intermediate": given.intermediate, "rows": rows}, indent=2))
        return
    print("| method | peak MiB | forecast MiB | forecast/peak | at its peak |\n|---|---:|---:|---:|---|")
    for row in rows:
        peak, forecast = row["peak_bytes"] / 2**20, row["forecast_bytes"] / 2**20
        print(f"| {row['method']} | {peak:.0f} | {forecast:.0f} | {forecast / peak:.2f} | {row['step']} |")


def make_model(folder: Path, hidden: int, intermediate: int) -> None:
    """Save a Llama of two layers with random weights."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=2,
        num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 512),
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def in_a_process(method: str, folder: str, samples: int) -> dict[str, object]:
    """Measure one method in a fresh process."""
    command = [sys.executable, __file__, "--one", method, folder, "--samples", str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(method: str, folder: str, *, samples: int) -> dict[str, object]:
    """Quantize the model in `folder`, and return the peak of this process beside the forecast."""
    import torch
    import transformers

    from memplan.introspect.resolve import spec_from_path
    from memplan.quantize.forecast import RUNTIME_BYTES, forecast
    from memplan.quantize.output import write_checkpoint
    from memplan.quantize.pipeline import Quantization
    from memplan.quantize.request import quantize_request
    from memplan.quantize.workspace import Workspace

    transformers.logging.set_verbosity_error()
    source = Path(folder) / "model"
    request = quantize_request("rtn" if method == "runtime" else method, num_samples=samples)
    windows = torch.randint(0, VOCABULARY, (samples, request.window_tokens), generator=torch.Generator().manual_seed(0))
    work = Quantization(request, source, list(windows.split(request.batch_size)))
    if method == "runtime":
        return {"method": method, "peak_bytes": peak_bytes(), "forecast_bytes": RUNTIME_BYTES, "step": ""}
    workspace = Workspace(Path(folder) / method, work.identity())
    workspace.open(resume=False, force=False)
    work.run(workspace)
    write_checkpoint(work, workspace)
    expected = forecast(spec_from_path(source), request)
    return {
        "method": method,
        "peak_bytes": peak_bytes(),
        "forecast_bytes": expected.host_bytes,
        "step": expected.hungriest.name,
    }


def peak_bytes() -> int:
    """The largest resident size of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
