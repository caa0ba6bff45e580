"""Quantized checkpoints read by other libraries' own loaders, and theirs by ours: are the weights the same to the bit?

    python benchmarks/quantize/readers.py --python autoawq=PATH --python gptqmodel=PATH --python llmcompressor=PATH
        [--model demo] [--num-samples 16] [--json FILE]

PATH is an interpreter with the library in it (its own environment). Twice for every library: once we quantize MODEL,
once the library does, on the same windows of text. Each file is opened by the library's own loader (GPTQModel;
transformers with compressed-tensors for llm-compressor), which computes the weights of every layer, and by ours.
AutoAWQ's loader wants IPEX on a CPU: there its unpacking alone is used, on the tensors of the file. Ours are float32;
where the library computes in a narrower type, ours are rounded to that type first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What we write for a library to read, as options of `memplan quantize`.
OURS = {
    "autoawq": (("--method", "awq", "--format", "awq"),),
    "gptqmodel": (
        ("--method", "gptq", "--format", "gptq"),
        ("--method", "gptq", "--bits", "8", "--group-size", "32", "--format", "gptq"),
    ),
    "llmcompressor": (("--method", "gptq"), ("--method", "int8", "--weights-only"), ("--method", "int8")),
}
METHODS = {"autoawq": "awq", "gptqmodel": "gptq", "llmcompressor": "gptq"}


def main() -> int:
    """Print one line per file; 1 where a weight differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--num-samples", type=int, default=16)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--weights", nargs=3, metavar=("LIBRARY", "MODEL", "FILE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.weights:
        library, model, file = asked.weights
        save_weights(library, Path(model), Path(file))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for library, python in (each.split("=", 1) for each in asked.python):
            for number, (writer, options) in enumerate(written_by(library)):
                place = Path(folder) / f"{library}-{number}"
                row = {"writer": writer, "reader": f"{library} and ours", "options": " ".join(options)}
                rows.append(row | one(python if writer == library else sys.executable, python, asked, place, options))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print("| written by | options | loaded by | layers | weights | that differ |")
    print("|---|---|---|---:|---:|---:|")
    for row in rows:
        found = f"{row['layers']} | {row['weights']:,} | {row['differ']:,}" if not row["error"] else row["error"]
        print(f"| {row['writer']} | `{row['options']}` | {row['reader']} | {found} |")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row["error"] or row["differ"] for row in rows) else 0


def written_by(library: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Who writes with which options."""
    yield from (("memplan", options) for options in OURS[library])
    yield library, ("--method", METHODS[library], "--backend", library)


def one(writer: str, reader: str, asked: argparse.Namespace, place: Path, options: tuple[str, ...]) -> dict[str, Any]:
    """One file written, read twice, and compared."""
    nothing: dict[str, Any] = {"layers": 0, "weights": 0, "differ": 0}
    command = [writer, "-m", "memplan", "quantize", asked.model, *options, "--num-samples", str(asked.num_samples)]
    command += ["--output", str(place), "--quiet"]
    command += [] if "--backend" in options else ["--max-perplexity-increase", "100%"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place.parent)
    if done.returncode:
        return nothing | {"error": last_line(done.stderr)}
    file = place.with_suffix(".weights")
    command = [reader, str(Path(__file__).resolve()), "--weights", METHOD_READER[place.name.partition("-")[0]]]
    done = subprocess.run([*command, str(place), str(file)], capture_output=True, text=True, cwd=place.parent)
    if done.returncode:
        return nothing | {"error": last_line(done.stderr)}
    return {"error": ""} | compare(place, file)


METHOD_READER = {"autoawq": "autoawq", "gptqmodel": "gptqmodel", "llmcompressor": "compressed-tensors"}


def compare(place: Path, file: Path) -> dict[str, int]:
    """How many weights of how many layers our reader computes otherwise than the library did."""
    import torch
    from safetensors.torch import load_file

    from memplan.quantize.formats.reading import layout_of
    from memplan.quantize.written import WrittenCheckpoint

    layout = layout_of(json.loads((place / "config.json").read_text())["quantization_config"])
    assert layout is not None, "a layout that is not read here"
    checkpoint, theirs = WrittenCheckpoint(place, *layout), load_file(file)
    differ = weights = 0
    for layer in checkpoint.layers:
        other = theirs.pop(layer)
        own = checkpoint.read(f"{layer}.weight").to(other.dtype)
        differ, weights = differ + int(torch.count_nonzero(own != other)), weights + own.numel()
    assert not theirs, f"layers that are not ours: {list(theirs)[:3]}"
    return {"layers": len(checkpoint.layers), "weights": weights, "differ": differ}


def save_weights(library: str, model: Path, file: Path) -> None:
    """In the library's environment: its own loader's weights of all quantized layers, out x in."""
    from safetensors.torch import save_file

    weights = {"autoawq": of_autoawq, "gptqmodel": of_gptqmodel, "compressed-tensors": of_compressed_tensors}[library]
    save_file({name: weight.detach().contiguous() for name, weight in weights(model)}, file)


def of_autoawq(model: Path) -> Iterator[tuple[str, Any]]:
    """AutoAWQ's GEMM layers as its own product unpacks them, from the tensors of the file."""
    from awq.utils.packing_utils import dequantize_gemm
    from safetensors.torch import load_file

    config = json.loads((model / "config.json").read_text())["quantization_config"]
    tensors: dict[str, Any] = {}
    for file in sorted(model.glob("*.safetensors")):
        tensors |= load_file(file)
    for name in (name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")):
        packed = (tensors[f"{name}.{leaf}"] for leaf in ("qweight", "qzeros", "scales"))
        yield name, dequantize_gemm(*packed, config["bits"], config["group_size"]).t()


def of_gptqmodel(model: Path) -> Iterator[tuple[str, Any]]:
    """GPTQModel's layers for torch, by their own unpacking, in the file's own float16: its default, bfloat16, rounds
    the scales.
    """
    import torch
    from gptqmodel import BACKEND, GPTQModel

    loaded = GPTQModel.load(str(model), device="cpu", dtype=torch.float16, backend=BACKEND.TORCH)
    for name, module in loaded.model.named_modules():
        if hasattr(module, "dequantize_weight"):
            yield name, module.dequantize_weight().t()


def of_compressed_tensors(model: Path) -> Iterator[tuple[str, Any]]:
    """What transformers and compressed-tensors make of the layers when they load the model unpacked."""
    import torch
    import transformers

    config = json.loads((model / "config.json").read_text())["quantization_config"]
    kept = set(config["ignore"])
    unpacked = transformers.CompressedTensorsConfig(run_compressed=False)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, quantization_config=unpacked)
    for name, module in loaded.named_modules():
        if isinstance(module, torch.nn.Linear) and name not in kept:
            yield name, module.weight


def last_line(text: str) -> str:
    """The last line that is an error, or the last."""
    lines = text.strip().splitlines() or ["no word"]
    return next((line for line in reversed(lines) if "rror" in line), lines[-1])[:160]


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
