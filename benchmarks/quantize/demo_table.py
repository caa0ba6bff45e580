"""What every method comes to on `demo`, by the command itself: the table in docs/quantize.md.

    python benchmarks/quantize/demo_table.py [--only METHOD,METHOD] [--results FILE]
    python benchmarks/quantize/demo_table.py --table

Every row is `memplan quantize demo` with the defaults, on the built-in texts, in a process of its own; what it says of
itself in quantization_report.json is a line of FILE, in place of the line that the same command left before. A result
that missed the gate has its row too. The K-quants of GGUF want llama-cpp-python, whose absence leaves them out.
`benchmarks/render_docs.py` puts the table into the page.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "results" / "quantize_demo.jsonl"
MIB = 1 << 20
_MIXES = tuple(f"auto --target-memory {size}MiB --num-samples 64" for size in ("4.2", "4.6", "5.2", "6"))
COMMANDS = (
    *("rtn", "awq", "gptq", "awq+gptq", "nvfp4", "mxfp4", "nf4", "int8", "int8 --weights-only", "llm-int8"),
    *("fp8", "fp8-static", "fp8-block", "gguf:q8_0", "gguf:q6_k", "gguf:q5_k_m", "gguf:q5_0", "gguf:q4_k_m"),
    *("gguf:q4_0", "gguf:q5_1", "gguf:q4_1", "gguf:q3_k_m", "gguf:q2_k", *_MIXES),
)
Rows = dict[str, dict[str, Any]]


def main() -> None:
    """Run what is asked for, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="methods with their options, as in the table, with commas between them")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print what is known")
    given = parser.parse_args()
    for command in () if given.table else given.only.split(",") if given.only else COMMANDS:
        row = measured(command)
        print(command, row, file=sys.stderr, flush=True)
        if row:
            rows = known(given.results) | {command: row}
            given.results.write_text("".join(json.dumps(each) + "\n" for each in rows.values()), encoding="utf-8")
    print(table(known(given.results)))


def measured(command: str) -> dict[str, Any]:
    """One run of the command; nothing where it ended without a result."""
    with tempfile.TemporaryDirectory() as place:
        asked = [sys.executable, "-m", "memplan", "quantize", "demo", "--output", "made", "--quiet", "--method"]
        done = subprocess.run([*asked, *command.split()], cwd=place, capture_output=True, text=True, check=False)
        report = next(Path(place).glob("made*/quantization_report.json"), None)
        if done.returncode not in (0, 6) or report is None:
            print(done.stderr.strip().splitlines()[-2:], file=sys.stderr)
            return {}
        said = json.loads(report.read_text(encoding="utf-8"))
        shutil.rmtree(report.parent)
    found = said["quality"]["overall"]["difference"]
    worst = max(said["quality"]["domains"], key=lambda domain: domain["difference"]["perplexity_increase"])
    return {
        "command": command,
        "verdict": said["verdict"],
        "output_bytes": said["output_bytes"],
        "perplexity_increase": found["perplexity_increase"],
        "perplexity_increase_standard_error": found["perplexity_increase_standard_error"],
        "kl_divergence": found["kl_divergence"]["mean"],
        "top1_agreement": found["top1_agreement"]["mean"],
        "worst_domain": worst["domain"],
        "worst_increase": worst["difference"]["perplexity_increase"],
    }


def known(path: Path) -> Rows:
    """The runs that are finished, in the order of the table."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = {row["command"]: row for row in map(json.loads, lines)}
    return dict(sorted(rows.items(), key=lambda item: COMMANDS.index(item[0])))


def table(rows: Rows) -> str:
    """The table of docs/quantize.md."""
    lines = ["| `--method` | MiB | perplexity | divergence | same first choice |", "|---|---:|---:|---:|---:|"]
    for command, row in rows.items():
        rise, error = 100 * row["perplexity_increase"], 100 * row["perplexity_increase_standard_error"]
        missed = (
            f", missed: {row['worst_increase']:+.1%} on {row['worst_domain']}" if row["verdict"] == "missed" else ""
        )
        cells = [f"`{command}`{missed}", f"{row['output_bytes'] / MIB:.2f}", f"{rise:+.2f} ± {error:.2f} %"]
        cells += [f"{row['kl_divergence']:.4f}", f"{row['top1_agreement']:.1%}".replace("%", " %")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
