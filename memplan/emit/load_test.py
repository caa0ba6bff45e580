"""The load test that shows whether the budget holds: a script with a few bounded steps up to what the cache has room
for, and one beyond it.

Source: vllm/benchmarks/serve.py (0.8 to 0.33), sglang/bench_serving.py, from 0.5.15
on sglang/benchmark/serving.py, guidellm 0.8.1.
"""

from __future__ import annotations

import shlex

from memplan.catalog.rules import parse_release
from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit import sizing
from memplan.emit.words import cache_holds, header
from memplan.emit.yaml_text import comment
from memplan.records import dataclass

_PORTS = {"vllm": 8000, "sglang": 30000, "tensorrt-llm": 8000, "llama.cpp": 8080}
_TURNS = 4
_MAX_PROMPTS = 1000
_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One level of load: so many requests at once, so many in all, and what has to be seen."""

    concurrency: int
    prompts: int
    expected: str


def emit(subject: EmitSubject) -> Emission:
    """Return a bash script for the engine's own load generator, or guidellm where it has none."""
    prompt, output, why = lengths(subject)
    lines = ["#!/usr/bin/env bash", *comment(header(subject, "bash load-test.sh"))]
    lines += comment(
        [
            f"Requests of {prompt:,} + {output:,} tokens: {why}.",
            f"Beforehand, hold the engine's log against this: {cache_holds(subject.budget) or 'nothing is cached'}.",
        ]
    )
    lines += ["set -euo pipefail", f'base_url="${{1:-http://127.0.0.1:{_PORTS.get(subject.engine, 8000)}}}"', ""]
    for step in steps(subject):
        lines += comment([f"{step.concurrency} at once: {step.expected}."])
        lines += [_command(subject, step, prompt, output), ""]
    text = "\n".join(lines).rstrip() + "\n"
    return Emission(files=(EmittedFile(name="load-test.sh", text=text, media_type="text/x-shellscript"),))


def lengths(subject: EmitSubject) -> tuple[int, int, str]:
    """Tokens of a prompt and of an answer, and why: three to one of what a request has on average."""
    mean = sizing.mean_tokens(subject)
    output = max(1, mean.value // 4)
    return max(1, mean.value - output), output, f"{mean.why}, three quarters of it prompt"


def steps(subject: EmitSubject) -> tuple[Step, ...]:
    """One request, half of what is asked, what is asked, what the cache holds, and a quarter more than that."""
    asked = max(1, subject.settings.workload.concurrency)
    prompt, output, _ = lengths(subject)
    pool = sizing.pool_tokens(subject)
    seqs = subject.budget.settings.get("max_num_seqs")
    full = max(1, pool // (prompt + output)) if pool else asked
    full = min(full, seqs) if isinstance(seqs, int) else full
    known = {
        1: "the best latency that there is",
        max(1, asked // 2): "half of what is asked",
        asked: "what the budget was checked for: no preemption, nobody waits",
        full: "as many as the cache has room for at this length: nobody waits for the cache",
        full + max(1, full // 4): "more than have room: requests wait, none fails, the engine stays up",
    }
    return tuple(
        Step(concurrency=count, prompts=min(_MAX_PROMPTS, max(20, _TURNS * count)), expected=expected)
        for count, expected in sorted(known.items())
    )


def _command(subject: EmitSubject, step: Step, prompt: int, output: int) -> str:
    if subject.engine == "vllm":
        words = ["vllm", "bench", "serve", "--model", subject.model_reference, "--base-url"]
        rest = ["--dataset-name", "random", "--random-input-len", prompt, "--random-output-len", output]
        rest += ["--num-prompts", step.prompts, "--max-concurrency", step.concurrency, "--ignore-eos", "--seed", 0]
        rest += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,95,99"]
    elif subject.engine == "sglang":
        words = [
            "python3",
            "-m",
            _sglang_module(subject.version),
            "--backend",
            "sglang",
            "--model",
            subject.model_reference,
        ]
        words += ["--base-url"]
        rest = ["--dataset-name", "random", "--random-input-len", prompt, "--random-output-len", output]
        rest += ["--random-range-ratio", 1, "--num-prompts", step.prompts, "--max-concurrency", step.concurrency]
    else:
        return _guidellm(step, prompt, output)
    return f'{shlex.join(words)} "$base_url" \\\n  {shlex.join(str(word) for word in rest)}'


def _sglang_module(version: str) -> str:
    """The generator has moved; its old place warns."""
    return "sglang.benchmark.serving" if parse_release(version) >= (0, 5, 15) else "sglang.bench_serving"


def _guidellm(step: Step, prompt: int, output: int) -> str:
    backend = 'guidellm run --backend "kind=openai_http,target=$base_url"'
    rest = ["--profile", f"kind=concurrent,streams={step.concurrency}"]
    rest += ["--constraint", f"kind=max_requests,count={step.prompts}"]
    rest += ["--constraint", f"kind=max_duration,seconds={_SECONDS}"]
    rest += ["--data", f"kind=synthetic_text,prompt_tokens={prompt},output_tokens={output}"]
    return f"{backend} \\\n  {shlex.join(rest)}"
