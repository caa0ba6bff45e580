"""Write the parts of docs/ that are computed: tables, errors of the scorers, and what the commands shown there print.

    python benchmarks/render_docs.py [--check] [--score RECORDS_FOLDER --configs CONFIGS_FOLDER]

- `<!-- table: NAME -->` in docs/memory-model.md gets the table of that name from memory_model_tables.py;
- `<!-- servable: ENGINE WHAT -->` gets a table of servable_tables.py;
- `<!-- errors -->`, `<!-- errors: short -->` and `<!-- error: NAME.KEY UNIT -->` get what the scorers found, from
  benchmarks/results/;
- `<!-- peers: PART -->` gets a table of what quantize/peers.py recorded in benchmarks/results/quantize_peers.jsonl;
- `<!-- recorded: SCRIPT -->` gets the table of what quantize/demo_table.py or awq_choices.py recorded in
  benchmarks/results/;
- `<!-- engines: PART -->` gets a table that engines/check_all.py recorded in benchmarks/results/engines.json;
- `<!-- plans -->` gets the recipes of recipes/plan/ with what the planner answers now, from plan_tables.py;
- a ```console block gets what its `$ memplan ...` lines print now, run in a folder of the page's own. `$ cat FILE`
  shows a file, which is made from what stands below it; `...` at the end of a block cuts the output there.

`--score` first runs every scorer on the records of a folder, and writes benchmarks/results/. `--check` exits 1 when a
page is not what would be written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "engines").glob("*.md")))
_TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PLANS = re.compile(r"(<!-- plans -->\n).*?(<!-- end -->)", re.DOTALL)
_ENGINES = re.compile(r"(<!-- engines: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PEERS = re.compile(r"(<!-- peers: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_RECORDED = re.compile(r"(<!-- recorded: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SERVABLE = re.compile(r"(<!-- servable: (\S+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ERRORS = re.compile(r"(<!-- errors(: short)? -->\n).*?(<!-- end -->)", re.DOTALL)
_INLINE = re.compile(r"(<!-- error: ([\w.]+) (%|GiB) -->).*?(<!-- end -->)", re.DOTALL)
_CONSOLE = re.compile(r"(```console\n)(.*?)(```)", re.DOTALL)

# A scorer, the records it takes, and whether its configs are an option or an argument.
_SCORERS = {
    "vllm": ("vllm/score.py", "vllm_logs.jsonl"),
    "vllm_recent": ("vllm/score.py", ROOT / "benchmarks" / "vllm" / "public_runs_recent.jsonl"),
    "vllm_earlier": ("vllm/score.py", ROOT / "benchmarks" / "vllm" / "public_runs_earlier.jsonl"),
    "sglang": ("sglang/score.py", "sglang_logs.jsonl"),
    "tensorrt_llm": ("tensorrt_llm/score.py", "trtllm_logs.jsonl"),
    "llama_cpp": ("llama_cpp/score.py", "llamacpp_logs.jsonl"),
    "verdicts": ("verdicts/score.py", "verdicts.jsonl"),
    "parameters": ("parameters.py", "models.jsonl"),
}
# Engine and term, the summary that has it, its key there, the key of the share inside the interval, and the unit.
_ROWS = (
    ("vLLM, weights", "vllm", "weights_rel", "coverage_weights_gib", "%"),
    ("vLLM, activation peak", "vllm", "activation_peak_gib", "coverage_activation_peak_gib", "GiB"),
    ("vLLM, outside torch", "vllm", "non_torch_gib", "", "GiB"),
    ("vLLM, CUDA graphs", "vllm", "cuda_graph_gib", "", "GiB"),
    ("vLLM, KV cache, of the GPU's memory", "vllm", "kv_share", "", "%"),
    ("vLLM, KV cache", "vllm", "kv_rel", "coverage_kv_gib", "%"),
    ("SGLang, weights", "sglang", "weights", "weights_interval_coverage", "%"),
    ("SGLang, KV cache in tokens", "sglang", "kv", "kv_interval_coverage", "%"),
    ("SGLang, CUDA graphs for decoding", "sglang", "decode_graphs_gib", "", "GiB"),
    ("TensorRT-LLM, weights", "tensorrt_llm", "weights", "weights_interval_coverage", "%"),
    ("TensorRT-LLM, KV cache in tokens", "tensorrt_llm", "kv", "kv_interval_coverage", "%"),
    ("TensorRT-LLM, profiled step", "tensorrt_llm", "activation_gib", "", "GiB"),
    ("TensorRT-LLM, outside torch", "tensorrt_llm", "outside_gib", "", "GiB"),
    ("llama.cpp, weights", "llama_cpp", "mainline.weights", "mainline.weights_interval_coverage", "%"),
    ("llama.cpp, KV cache", "llama_cpp", "mainline.kv", "mainline.kv_interval_coverage", "%"),
    ("llama.cpp, compute buffers", "llama_cpp", "mainline.compute", "mainline.compute_interval_coverage", "%"),
    ("llama.cpp, all of the GPUs", "llama_cpp", "mainline.total", "", "%"),
    ("transformers, prefill of a model's own code", "transformers", "prefill", "", "%"),
    ("transformers, a token after it", "transformers", "decode", "", "%"),
)


# What the README shows of them.
_SHORT = frozenset(
    {
        "vLLM, weights",
        "vLLM, KV cache, of the GPU's memory",
        "vLLM, KV cache",
        "SGLang, KV cache in tokens",
        "TensorRT-LLM, KV cache in tokens",
        "llama.cpp, KV cache",
        "llama.cpp, all of the GPUs",
    }
)


def run_scorers(records: Path, configs: Path) -> None:
    """Run every scorer that is there on the records of a folder, and keep the summaries."""
    RESULTS.mkdir(exist_ok=True)
    for name, (script, file) in _SCORERS.items():
        path = ROOT / "benchmarks" / script
        if not path.exists() or not (records / file).exists():
            continue
        where = [str(configs)] if name == "parameters" else ["--configs", str(configs)]
        command = [sys.executable, str(path), str(records / file), *where, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.stdout.strip():
            print(f"{script}: {done.stderr.strip()[-200:]}", file=sys.stderr)
            continue
        summary = json.loads(done.stdout)["summary"]
        summary.pop("median_ms", None)  # of the machine, not of memplan
        (RESULTS / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _summary(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _found(name: str, path: str) -> Any:
    """An entry of a summary, by keys with dots between them; None where there is none."""
    entry: Any = _summary(name)
    for key in path.split("."):
        entry = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(entry, dict) and "ninety" in entry:  # as benchmarks/transformers/score.py calls them
        passes = _summary(name)["passes"] // 2
        return {"n": passes, "median": entry["median"], "p90": entry["ninety"], "max": entry["worst"]}
    return entry


def error_text(path: str, unit: str) -> str:
    """An error in a sentence: `vllm.weights_rel` is the entry of that name in the summary of vllm."""
    name, _, key = path.partition(".")
    entry = _found(name, key)
    if not isinstance(entry, dict) or not entry.get("n"):
        return "not scored yet"
    runs = f"on {entry['n']} runs"
    return f"median {_amount(entry['median'], unit)}, 90th percentile {_amount(entry['p90'], unit)} {runs}"


def errors_table(*, short: bool = False) -> str:
    """The scorers' medians and 90th percentiles, on how many runs, and how many lie in the interval."""
    lines = [
        "| term | runs | median error | 90th percentile | largest | inside the 90 % interval |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for title, name, key, inside_key, unit in _ROWS:
        if short and title not in _SHORT:
            continue
        entry = _found(name, key)
        if not isinstance(entry, dict) or not entry.get("n"):
            continue
        cells = [_amount(entry[part], unit) for part in ("median", "p90", "max")]
        share = _found(name, inside_key)
        share = share.get("share") if isinstance(share, dict) else share
        inside = f"{100 * share:.0f} %" if isinstance(share, (int, float)) else "-"
        lines.append(f"| {title} | {entry['n']} | {' | '.join(cells)} | {inside} |")
    if short:
        lines = [re.sub(r"\|[^|]*(\|[^|]*\|)$", r"\1", line) for line in lines]
    return "\n".join([*lines, *_counts()])


def _counts() -> Iterator[str]:
    """What is counted and not measured: verdicts, and facts that must be exact."""
    verdicts = _summary("verdicts")
    if verdicts:
        yield ""
        yield "| verdicts of real start-ups | of how many | share |"
        yield "|---|---:|---:|"
        for key, title in (
            ("false_fits", "failed, and called `fits`"),
            ("false_does_not_fit", "started, and called `does not fit`"),
            ("tight", "called `tight`"),
        ):
            yield f"| {title}: {verdicts[key]['n']} | {verdicts['answered']} | {100 * verdicts[key]['share']:.1f} % |"
    exact = _summary("parameters")
    if exact:
        yield ""
        yield (
            f"Parameters, cache bytes per token and recurrent states of {exact['models']} models:"
            f" {exact['facts']} facts compared, {exact['wrong']} wrong."
        )


def _amount(value: float, unit: str) -> str:
    return f"{100 * value:.2f} %" if unit == "%" else f"{value:.2f} GiB"


def rendered(text: str, page: Path) -> str:
    """A page with its computed parts filled in."""
    if "<!-- table: " in text:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        from memory_model_tables import TABLES, markdown

        text = _TABLE.sub(lambda match: f"{match[1]}{markdown(TABLES[match[2]]())}\n{match[3]}", text)
    if "<!-- servable: " in text:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        from servable_tables import tables

        text = _SERVABLE.sub(lambda match: f"{match[1]}{tables(match[2], match[3])}\n{match[4]}", text)
    text = _PEERS.sub(lambda match: f"{match[1]}{peers_table(match[2])}\n{match[3]}", text)
    text = _RECORDED.sub(lambda match: f"{match[1]}{recorded_table(match[2])}\n{match[3]}", text)
    text = _ENGINES.sub(lambda match: f"{match[1]}{engines_table(match[2])}\n{match[3]}", text)
    if "<!-- plans -->" in text:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        from plan_tables import plans_table

        text = _PLANS.sub(lambda match: f"{match[1]}{plans_table()}\n{match[2]}", text)
    text = _INLINE.sub(lambda match: f"{match[1]}{error_text(match[2], match[3])}{match[4]}", text)
    text = _ERRORS.sub(lambda match: f"{match[1]}{errors_table(short=bool(match[2]))}\n{match[3]}", text)
    if "```console" not in text:
        return text
    with tempfile.TemporaryDirectory() as folder:
        return _CONSOLE.sub(lambda match: match[1] + printed(match[2], Path(folder)) + match[3], text)


def recorded_table(script: str) -> str:
    """The table that a script of quantize/ prints of what it recorded."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "quantize"))
    module = import_module(script)
    return str(module.table(module.known(module.RESULTS)))


def peers_table(part: str) -> str:
    """A part of what quantize/peers.py recorded, as it prints it."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "quantize"))
    import peer_tables

    lines = (RESULTS / "quantize_peers.jsonl").read_text(encoding="utf-8").splitlines()
    return peer_tables.TABLES[part]([json.loads(line) for line in lines])


def engines_table(part: str) -> str:
    """A part of what engines/check_all.py recorded, as it prints it."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "engines"))
    import outcome
    import serving

    kind, table = (serving.Run, serving.table) if part == "serving" else (outcome.Row, outcome.table)
    recorded = json.loads((RESULTS / "engines.json").read_text(encoding="utf-8"))[part]
    return "\n".join(table([kind(**each) for each in recorded]))


def printed(block: str, folder: Path) -> str:
    """A console block with what its commands print now."""
    lines: list[str] = []
    cut = block.rstrip().endswith("\n...")
    code = 0
    listed = [*steps(block), ("", [])]
    for (command, shown), (following, _) in pairwise(listed):
        lines.append(f"$ {command}")
        if command.startswith("cat "):
            (folder / command.split()[1]).write_text("".join(f"{line}\n" for line in shown), encoding="utf-8")
            lines += shown
        elif command == "echo $?":
            lines.append(str(code))
        elif not command.startswith("memplan"):
            raise SystemExit(f"not a command that is run: {command}")
        else:
            code, output = run(command, folder)
            if code == 70 or (code > 1 and following != "echo $?"):
                raise SystemExit(f"exit code {code}, nothing was written: {command}\n" + "\n".join(output))
            if cut and len(output) > len(shown) > 0:
                output = [*output[: len(shown) - 1], "..."]
            lines += output
    return "".join(f"{line}\n" for line in lines)


def steps(block: str) -> Iterator[tuple[str, list[str]]]:
    """Every command of a console block, with the lines that stand below it."""
    command: str | None = None
    shown: list[str] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            if command is not None:
                yield command, shown
            command, shown = line[2:], []
        else:
            shown.append(line)
    if command is not None:
        yield command, shown


def run(command: str, folder: Path) -> tuple[int, list[str]]:
    """Run a line with `memplan` in it as a shell would, offline, with a home of its own; its exit code and output."""
    home = folder / ".home"
    home.mkdir(exist_ok=True)
    script = f'memplan() {{ "{sys.executable}" -m memplan "$@"; }}\nset -o pipefail\n{command}'
    done = subprocess.run(
        ["bash", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=environment(home),
        check=False,
    )
    return done.returncode, [line.rstrip() for line in done.stdout.rstrip().splitlines()]


def environment(home: Path) -> dict[str, str]:
    """Variables under which a command neither finds a person's files nor the network."""
    return {
        **os.environ,
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "NO_COLOR": "1",
        "COLUMNS": "100",
    }


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--score", type=Path, metavar="RECORDS_FOLDER")
    parser.add_argument("--configs", type=Path)
    options = parser.parse_args()
    if options.score:
        run_scorers(options.score.resolve(), options.configs.resolve())
    stale = []
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = rendered(old, page)
        if new != old:
            stale.append(page.name)
            if not options.check:
                page.write_text(new, encoding="utf-8")
    print(f"{'stale' if options.check else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
