"""Arguments of Text Generation Inference, which is in maintenance mode: its authors point to vLLM and SGLang.

memplan has no rules of its own for it. The limits are those of vLLM's budget, whose cache TGI fills in the same way.
Source: launcher/src/main.rs, January 2026.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit.shell_text import shell_text
from memplan.emit.words import cache_holds, group_words, header, requests
from memplan.emit.yaml_text import Entry
from memplan.errors import UsageError

FILE_NAME = "tgi.sh"
_MAINTENANCE = "TGI is in maintenance mode: for a new deployment use vLLM or SGLang"
_NOT_MEASURED = "the limits come from vLLM's budget: memplan has no rules for TGI's own memory"
# How TGI calls checkpoints of a kind; others name themselves.
_QUANTIZE = {"awq": "awq", "gptq": "gptq", "bnb-nf4": "bitsandbytes-nf4", "bnb-int8": "bitsandbytes", "fp8": "fp8"}
_CACHE_TYPES = {"fp8": "fp8_e4m3fn", "fp8_e4m3": "fp8_e4m3fn", "fp8_e5m2": "fp8_e5m2"}
_RESERVED_TOKENS = 50


def emit(subject: EmitSubject) -> Emission:
    """Return tgi.sh. Raises: UsageError for what TGI does not have."""
    start = f"sh {FILE_NAME}; the image is ghcr.io/huggingface/text-generation-inference"
    above = (*header(subject, start), f"NOTE: {_MAINTENANCE}.", f"NOTE: {_NOT_MEASURED}.")
    text = shell_text(above, "text-generation-launcher", entries(subject))
    file = EmittedFile(name=FILE_NAME, text=text, media_type="application/x-sh")
    return Emission(files=(file,), notes=(_MAINTENANCE, _NOT_MEASURED))


def entries(subject: EmitSubject) -> Iterator[Entry]:
    """Yield every argument with its reason."""
    budget, settings, layout = subject.budget, subject.budget.settings, subject.settings.layout
    if layout.pipeline > 1 or layout.data > 1:
        raise UsageError("TGI shards by tensor parallelism only", hint="use --tp, and one server for each replica")
    yield Entry(
        key="model-id", value=subject.model_reference, why=group_words(budget, "weights", "weights on each GPU")
    )
    if subject.revision:
        yield Entry(key="revision", value=subject.revision)
    yield Entry(key="num-shard", value=layout.tensor, why=f"{budget.num_gpus} x {subject.gpu.name}")
    if quantize := _quantize(subject):
        yield Entry(key="quantize", value=quantize)
    cache = str(settings["kv_cache_dtype"])
    if cache.startswith("fp8"):
        yield Entry(key="kv-cache-dtype", value=_CACHE_TYPES[cache], why="the cache in 8 bits")
    context, step = settings["max_model_len"], settings["max_num_batched_tokens"]
    assert isinstance(context, int)
    assert isinstance(step, int)
    yield Entry(key="max-total-tokens", value=context, why="a request's prompt and output")
    longest = max(1, context - 1)
    yield Entry(key="max-input-tokens", value=longest, why="its prompt; at least one token is generated")
    least = longest + _RESERVED_TOKENS
    peak = group_words(budget, "activation_peak", "activation peak")
    why = f"tokens of one prefill, at least the longest prompt; for {step:,} tokens {peak}"
    yield Entry(key="max-batch-prefill-tokens", value=max(step, least), why=why)
    held = (budget.kv.low_tokens or budget.kv.capacity_tokens) or context
    yield Entry(key="max-batch-total-tokens", value=max(held, context), why=cache_holds(budget))
    yield Entry(key="max-concurrent-requests", value=settings["max_num_seqs"], why=f"checked for {requests(budget)}")
    yield Entry(key="cuda-memory-fraction", value=settings["gpu_memory_utilization"])


def _quantize(subject: EmitSubject) -> str | None:
    scheme = subject.settings.quant or subject.spec.quantization or ""
    return next((name for prefix, name in _QUANTIZE.items() if scheme.startswith(prefix)), None)
