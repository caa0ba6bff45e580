"""The way from a 16-bit model to an answer of its quantized form: quantize, emit-config, and the real vLLM on the CPU.

    python benchmarks/quantize/served.py --vllm PYTHON [--model demo] [--methods awq,gptq/gptq,...] [--json FILE]

PYTHON is an interpreter with a CPU build of vLLM. For every METHOD[/FORMAT], in an empty directory:

    memplan quantize MODEL --method METHOD [--format FORMAT]
    memplan emit-config --gpu l4 ... > vllm.yaml
    vllm serve --config vllm.yaml

and the server answers prompts of the built-in texts that nothing was calibrated on, greedily. Beside its tokens stands
what transformers makes of the unpacked weights, with vLLM's tokens before each: how many are its own first choice, and
by how much at most another was. On a CPU the cache is given in bytes and the page outright, as vLLM has other defaults
there; the command line of vLLM adds the address alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engines"))

from serving import completion, served, vllm_version

OPTIONS = "--gpu l4 --context 1k --concurrency 2 --kv-cache-memory 64MiB --block-size 32 --eager"
PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 8, 48, 24


def main() -> int:
    """Print one line per method; 1 when a server does not answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, metavar="PYTHON")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--methods", default="awq,gptq,int8,awq/awq,gptq/gptq")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    version = vllm_version(asked.vllm)
    if version is None:
        parser.error(f"no CPU build of vLLM in {asked.vllm}")
    rows = [one(asked.vllm, version, asked.model, method) for method in asked.methods.split(",")]
    print(f"vLLM {version}, {PROMPTS} prompts of {PROMPT_TOKENS} tokens, {ANSWER_TOKENS} tokens each\n")
    print("| method | starts in | answers | tokens that are transformers' first | largest gap to it |")
    print("|---|---:|---:|---:|---:|")
    for row in rows:
        if row["error"]:
            print(f"| {row['method']} | {row['error']} | | | |")
            continue
        print(
            f"| {row['method']} | {row['start_s']:.0f} s | {row['answers']} of {PROMPTS} | "
            f"{row['first']} of {row['tokens']} | {row['largest_gap']:.3f} |"
        )
    if asked.json:
        asked.json.write_text(json.dumps({"vllm": version, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row["error"] or row["answers"] < PROMPTS for row in rows) else 0


def one(python: str, version: str, model: str, method: str) -> dict[str, Any]:
    """One method's way to its answers."""
    row: dict[str, Any] = {"method": method, "error": ""}
    name, _, form = method.partition("/")
    with tempfile.TemporaryDirectory() as place:
        folder, state = Path(place) / "work", {"XDG_STATE_HOME": str(Path(place) / "state")}
        folder.mkdir()
        memplan(folder, state, "quantize", model, "--method", name, *(["--format", form] if form else []))
        file = folder / "vllm.yaml"
        file.write_text(memplan(folder, state, "emit-config", "--engine", f"vllm@{version}", *OPTIONS.split()))
        output = next(path.parent for path in folder.glob("*/quantization_report.json"))
        prompts = prompts_of(output)
        began = time.monotonic()
        with served(python, file, folder / "log") as address:
            row["start_s"] = time.monotonic() - began
            if address is None:
                lines = [line for line in (folder / "log").read_text().splitlines() if "Error" in line]
                return row | {"error": (lines or ["it did not start"])[-1][-200:]}
            given = [completion(address, str(output), prompt, ANSWER_TOKENS) for prompt in prompts]
        answers = [body["choices"][0].get("token_ids") or [] for status, body in given if status == 200]
        return row | {"answers": sum(map(bool, answers))} | beside_transformers(output, prompts, answers)


def memplan(folder: Path, state: dict[str, str], *arguments: str) -> str:
    """What a command prints in a folder. Raises: CalledProcessError when it fails."""
    command = [sys.executable, "-m", "memplan", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder, env=os.environ | state)
    return done.stdout


def prompts_of(model: Path) -> list[list[int]]:
    """The beginnings of texts to validate on."""
    from memplan.quantize.text_sets import read_set
    from memplan.quantize.windows import load_tokenizer

    tokenizer = load_tokenizer(model)
    documents = read_set("builtin", "validate", seed=0, offline=True).documents
    tokens = (tokenizer.encode(document.plain) for document in documents)
    return [each[:PROMPT_TOKENS] for each in tokens if len(each) >= PROMPT_TOKENS][:PROMPTS]


def beside_transformers(output: Path, prompts: list[list[int]], answers: list[list[int]]) -> dict[str, Any]:
    """How many tokens of the answers are the first choice of the model that transformers runs unpacked, in bfloat16."""
    import torch

    model = unpacked(output)
    first = tokens = 0
    gap = 0.0
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
        behind = logits.max(-1).values - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        first, tokens = first + int((behind == 0).sum()), tokens + len(answer)
        gap = max(gap, float(behind.max()))
    return {"first": first, "tokens": tokens, "largest_gap": gap}


def unpacked(output: Path) -> Any:
    """The model with the weights that a reader of the file computes, without its quantization."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from memplan.quantize.formats.reading import layout_of
    from memplan.quantize.written import WrittenCheckpoint

    config = json.loads((output / "config.json").read_text())
    layout = layout_of(config.pop("quantization_config"))
    assert layout is not None
    checkpoint = WrittenCheckpoint(output, *layout)
    with tempfile.TemporaryDirectory() as folder:
        tensors = {name: checkpoint.read(name).to(torch.bfloat16).contiguous() for name in checkpoint.names()}
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


if __name__ == "__main__":
    sys.exit(main())
