"""`memplan doctor ADDRESS` against the real vLLM on this machine's CPU, idle and under a real client's load.

    python benchmarks/doctor/live_vllm.py --vllm PYTHON [--json] [--requests 40]

PYTHON is an interpreter with a CPU build of vLLM. A small model of random weights is served with a small cache. The
doctor looks at the server at rest, then while a client keeps more requests open than the cache holds, and reads the
server's own start-up log. Compared: the tokens of cache that memplan predicts with those that the server reports; the
preemptions that the doctor tells of with the counter of the page itself. Exit 1 where they differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from serving import completion, memplan, reported_cache, served, vllm_version

HERE = Path(__file__).parent
_OPTIONS = (
    "--context 2048 --concurrency 2 --kv-cache-memory 12MiB --block-size 32 --max-num-seqs 24 --eager "
    "--no-prefix-caching"
)


def main() -> int:
    """Serve, look, load, look again, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", required=True, metavar="PYTHON")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    version = vllm_version(asked.vllm)
    if version is None:
        print(f"no vLLM in {asked.vllm}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        found = run(asked.vllm, version, Path(folder), asked.requests)
    print(json.dumps(found, indent=2) if asked.json else "\n".join(f"{name}: {value}" for name, value in found.items()))
    return 1 if found["errors"] else 0


def run(python: str, version: str, folder: Path, requests: int) -> dict[str, Any]:
    """One server from its start to its end."""
    import subprocess

    model, file, log = folder / "grouped-query", folder / "vllm.yaml", folder / "log"
    tiny = HERE.parent / "engines" / "tiny_models.py"
    subprocess.run([python, str(tiny), "grouped-query", str(model)], check=True, capture_output=True)
    engine = f"vllm@{version}"
    memplan("emit-config", str(model), "--gpu", "l4", "--engine", engine, *_OPTIONS.split(), "--output", file)
    found: dict[str, Any] = {"schema": "memplan.doctor-live/1", "vllm": version, "errors": []}
    with served(python, file, log) as address:
        if address is None:
            return {**found, "errors": ["it did not start", log.read_text()[-500:]]}
        reported = reported_cache(address)
        idle = doctor(address, model)
        found |= {"reported": reported, "idle": summary(idle)}
        loaded = under_load(address, model, requests)
        found["under_load"] = summary(loaded)
        found["preemptions_on_the_page"] = preemptions(address)
    from_log = doctor(str(log), model)
    found["log"] = summary(from_log)
    found["errors"] = list(errors(found, idle, from_log))
    return found


def doctor(source: str, model: Path, *more: str) -> dict[str, Any]:
    """What the command answers as JSON."""
    return json.loads(memplan("doctor", source, "--model", str(model), "--gpu", "l4", "--json", *more))


def under_load(address: str, model: Path, requests: int) -> dict[str, Any]:
    """What the doctor says while a client keeps `requests` completions open."""
    threads = [
        threading.Thread(target=completion, args=(address, str(model), [7 + number] * 300, 600), daemon=True)
        for number in range(requests)
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 120
    while time.monotonic() < until and preemptions(address) == 0:
        time.sleep(0.5)
    answer = doctor(address, model, "--seconds", "3")
    for thread in threads:
        thread.join(timeout=600)
    return answer


def preemptions(address: str) -> float:
    """The server's own counter."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_preemptions_total"))


def summary(answer: dict[str, Any]) -> dict[str, Any]:
    """The cause, the sentence, and the tokens of cache on both sides."""
    main = answer["diagnoses"][0]
    tokens = next((line for line in main["why"] if line["term"] == "KV cache"), {})
    return {
        "cause": main["cause"],
        "sentence": main["sentence"],
        "predicted_tokens": tokens.get("budget"),
        "measured_tokens": tokens.get("measured"),
        "version": answer["recognised"]["version"],
        "mends": [mend["change"] for mend in main["mends"]],
    }


def errors(found: dict[str, Any], idle: dict[str, Any], from_log: dict[str, Any]) -> list[str]:
    """What does not agree."""
    wrong = []
    if found["idle"]["measured_tokens"] != found["reported"]["tokens"]:
        wrong.append("the doctor reads other tokens than the server reports")
    if found["idle"]["predicted_tokens"] != found["reported"]["tokens"]:
        wrong.append("the predicted tokens are not those that the server reports")
    if idle["cause"] != "runs_fine":
        wrong.append(f"at rest it says {idle['cause']}")
    if found["preemptions_on_the_page"] and found["under_load"]["cause"] not in ("preemption", "runs_full"):
        wrong.append(f"under load it says {found['under_load']['cause']}")
    if from_log["recognised"]["engine"] != "vllm":
        wrong.append("its log is not known as vLLM's")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
