"""Has the real vLLM start from emitted files on this machine's CPU, and compares its cache with memplan's.

    python benchmarks/engines/serving.py --vllm PYTHON [--quick] [--verbose]

PYTHON is an interpreter with a CPU build of vLLM. For every run below a small model of random weights is made, a file
is emitted for it as a user would, and vLLM is started with that file as it stands (the command line adds the address
alone). A run is passed when the server answers a request, refuses a prompt that is a token longer than the file's
`max-model-len`, and reports as many tokens and blocks of cache as memplan says for the file, exactly. A script of
vLLM's class is run instead of served, and prints its tokens alone. On a CPU `gpu-memory-utilization` has another
meaning, so every file gives the cache in bytes; and the page is given, because vLLM's default is another there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# (shape of tiny_models.py, options after `memplan emit-config DIRECTORY --gpu l4`); the first are the quick ones.
RUNS: tuple[tuple[str, str], ...] = (
    ("hybrid-sliding", "--context 2k --concurrency 4 --kv-cache-memory 64MiB --block-size 32 --max-num-seqs 8 --eager"),
    ("grouped-query", "--context 4k --concurrency 2 --kv-cache-memory 100MiB --block-size 128"),
    ("grouped-query", "--context 1k --kv-dtype fp8 --kv-cache-memory 48MiB --block-size 64 --max-num-seqs 3 --eager"),
    ("sliding", "--context 2k --concurrency 2 --kv-cache-memory 40MiB --block-size 64 --eager"),
    ("experts", "--context 2k --dtype float32 --kv-cache-memory 96MiB --block-size 32 --no-prefix-caching --eager"),
    ("latent", "--context 2k --concurrency 8 --kv-cache-memory 100MiB --block-size 16 --eager"),
    ("int8", "--context 2k --concurrency 4 --kv-cache-memory 32MiB --block-size 128 --eager"),
    ("grouped-query", "--format vllm-python --context 2k --kv-cache-memory 60MiB --block-size 64 --eager"),
    ("multi-query", "--context 3000 --kv-cache-memory 33000000 --max-num-batched-tokens 512 --block-size 32 --eager"),
)
_START_S = 600
_QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_STOP_S = 30


@dataclass(frozen=True)
class Run:
    """One start: what memplan predicted, what vLLM reported, and what went wrong."""

    version: str
    shape: str
    options: str
    predicted: dict[str, Any]
    reported: dict[str, Any]
    start_s: float
    errors: tuple[str, ...]


def main() -> int:
    """Start every run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, metavar="PYTHON")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    asked = parser.parse_args()
    version = vllm_version(asked.vllm)
    if version is None:
        print(f"no vLLM in {asked.vllm}", file=sys.stderr)
        return 1
    done = list(all_runs(asked.vllm, version, quick=asked.quick, verbose=asked.verbose))
    print("\n".join(table(done)))
    return 1 if any(run.errors for run in done) else 0


def vllm_version(python: str) -> str | None:
    """The release of a CPU build of vLLM; None where there is none."""
    code = "import vllm; from vllm.platforms import current_platform as p; assert p.is_cpu(); print(vllm.__version__)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1].partition("+")[0] if done.returncode == 0 else None


def all_runs(python: str, version: str, *, quick: bool = False, verbose: bool = False) -> Iterator[Run]:
    """Make each model, emit its file, serve it."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (shape, options) in enumerate(RUNS[: 1 if quick else None]):
            run = one_run(python, version, shape, options, Path(folder) / f"{number}")
            if verbose:
                print(f"{shape} {options}: {run.reported} in {run.start_s:.0f} s {run.errors}", file=sys.stderr)
            yield run


def one_run(python: str, version: str, shape: str, options: str, folder: Path) -> Run:
    """One model, its file and its server."""
    model, file = folder / shape, folder / ("batch.py" if "vllm-python" in options else "vllm.yaml")
    subprocess.run([python, str(HERE / "tiny_models.py"), shape, str(model)], check=True, capture_output=True)
    memplan("emit-config", str(model), "--gpu", "l4", "--engine", f"vllm@{version}", *options.split(), "--output", file)
    said = memplan("estimate", "--config", file, "--gpu", "l4", "--engine", f"vllm@{version}", "--json")
    estimate = json.loads(said)
    cache = estimate["kv_cache"]
    predicted = {"tokens": cache["capacity_tokens"], "blocks": cache["blocks"]}
    began = time.monotonic()
    if file.suffix == ".py":
        reported, errors = script_said(python, file)
        start_s = time.monotonic() - began
    else:
        with served(python, file, folder / "log") as address:
            start_s = time.monotonic() - began
            if address is None:
                lines = [line for line in (folder / "log").read_text().splitlines() if "Error" in line]
                reported, errors = {}, lines[-2:] or ["it did not start"]
            else:
                reported = reported_cache(address)
                errors = list(answer_errors(address, str(model), estimate["settings"]["max_model_len"]))
    differing = (name for name in reported if reported[name] != predicted[name])
    errors += [f"{name}: {reported[name]}, predicted {predicted[name]}" for name in differing]
    return Run(version, shape, options, predicted, reported, start_s, tuple(errors))


def script_said(python: str, file: Path) -> tuple[dict[str, Any], list[str]]:
    """What a script of vLLM's class prints of its cache, and what goes wrong."""
    environment = {**os.environ, **_QUIET, "VLLM_LOGGING_LEVEL": "INFO"}
    done = subprocess.run(
        [python, str(file)], capture_output=True, text=True, env=environment, cwd=file.parent, timeout=_START_S
    )
    said = re.search(r"KV cache size: ([\d,]+) tokens", done.stdout + done.stderr)
    if said is None or done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line]
        return {}, lines[-2:] or [f"exit code {done.returncode}"]
    return {"tokens": int(said[1].replace(",", ""))}, []


def memplan(*arguments: str | Path) -> str:
    """What a memplan command prints. Raises: CalledProcessError when it fails."""
    command = [sys.executable, "-m", "memplan", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def served(python: str, file: Path, log: Path) -> Iterator[str | None]:
    """The address of a server started with `file`, None if it does not come up; it is stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.cli.main", "serve", "--config", str(file)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_CPU_KVCACHE_SPACE"} | _QUIET
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        server = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=log.parent, start_new_session=True
        )
        try:
            yield address if is_up(server, address) else None
        finally:
            stop(server)


def is_up(server: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until the server is healthy; False when it ends before, or takes too long."""
    until = time.monotonic() + _START_S
    while time.monotonic() < until and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return True
        time.sleep(0.5)
    return False


def stop(server: subprocess.Popen[bytes]) -> None:
    """End a server and the processes that it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_S)
            return


def reported_cache(address: str) -> dict[str, Any]:
    """What the server's metrics say of its cache."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    line = next(line for line in lines if line.startswith("vllm:cache_config_info{"))
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
    return {"tokens": int(labels["kv_cache_size_tokens"]), "blocks": int(labels["num_gpu_blocks"])}


def answer_errors(address: str, model: str, longest: int) -> Iterator[str]:
    """What is wrong with the answers to a request, and to one with a prompt that is a token too long."""
    status, answer = completion(address, model, [5] * 8, 4)
    if status != 200 or answer["usage"]["completion_tokens"] != 4:
        yield f"a request was answered {status}: {str(answer)[:200]}"
    status, answer = completion(address, model, [5] * (longest + 1), 1)
    if status != 400:
        yield f"a prompt of {longest + 1} tokens was answered {status}: {str(answer)[:200]}"


def completion(address: str, model: str, prompt: list[int], tokens: int) -> tuple[int, dict[str, Any]]:
    """The status and the body of one completion."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    body["return_token_ids"] = True
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/v1/completions", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {"error": error.read().decode()}


def table(runs: list[Run]) -> list[str]:
    """The runs in Markdown."""
    heads = ("model made on the spot", "options of `emit-config`", "memplan: tokens, blocks", "vLLM: tokens, blocks")
    lines = [f"| vLLM | {' | '.join(heads)} | starts in |", "|---|---|---|---:|---:|---:|"]
    for run in runs:
        predicted, reported = numbers(run.predicted), numbers(run.reported) if run.reported else "did not start"
        wrong = f" ({'; '.join(run.errors)})" if run.errors else ""
        cells = (run.version, run.shape, f"`{run.options}`", predicted, f"{reported}{wrong}", f"{run.start_s:.0f} s")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def numbers(found: dict[str, Any]) -> str:
    """Tokens and blocks, as far as they were told."""
    return ", ".join(f"{found[name]:,}" for name in ("tokens", "blocks") if name in found)


if __name__ == "__main__":
    sys.exit(main())
