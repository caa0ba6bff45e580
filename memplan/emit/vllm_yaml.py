"""The YAML that `vllm serve --config` reads.

Its reader drops `key: false` without a word, takes a quoted `true` for the model's name and null for the word None. So
nothing here is ever false, quoted as a truth value, or null: what is switched off is written `no-KEY: true`, and what
has no value is left out.
Source: FlexibleArgumentParser.load_config_file and vllm/engine/arg_utils.py, tags v0.8.0 to v0.33.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from memplan.catalog.option_tables import EngineOptionTable, load_option_table
from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit.words import cache_holds, group_words, header, requests
from memplan.emit.yaml_text import Entry, yaml_text
from memplan.errors import UsageError
from memplan.units import GIB, format_gib

FILE_NAME = "vllm.yaml"
_OVERLOAD = "more wait, and one that outgrows a full cache is put back and computed again: none fails"
# What memplan takes with --set and vLLM from the environment.
_VARIABLES = {
    "flashinfer-sampler": "VLLM_USE_FLASHINFER_SAMPLER",
    "rocm-use-aiter": "VLLM_ROCM_USE_AITER",
    "use-v1": "VLLM_USE_V1",
    "v2-model-runner": "VLLM_USE_V2_MODEL_RUNNER",
}


def emit(subject: EmitSubject) -> Emission:
    """Return vllm.yaml. Raises: UsageError for what the release has no option for."""
    options = load_option_table("vllm", subject.version)
    variables = "".join(f"{name}={value} " for name, value in environment(subject).items())
    start = f"{variables}vllm serve --config {FILE_NAME}"
    notes = [f"vLLM takes {variables.strip()} from its environment: {start}"] if variables else []
    if options.form("model") == "command":
        start = f"{variables}vllm serve {subject.model_reference} --config {FILE_NAME}"
        notes.append(f"vLLM {subject.version} takes the model from its command line: {start}")
    text = yaml_text(header(subject, start), entries(subject, options))
    return Emission(files=(EmittedFile(name=FILE_NAME, text=text, media_type="application/yaml"),), notes=tuple(notes))


def environment(subject: EmitSubject) -> dict[str, str]:
    """The variables by which vLLM is told what was given with --set and is no option of it."""
    given = subject.settings.engine_options
    named = {name.replace("_", "-"): value for name, value in given.items()}
    return {
        variable: str(int(value)) for key, variable in _VARIABLES.items() if isinstance(value := named.get(key), bool)
    }


def entries(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    """Yield every option with its reason, in the order in which a person reads them."""
    yield from _model(subject, options)
    yield from _layout(subject, options)
    yield from _limits(subject)
    yield from _memory(subject, options)
    yield from _cache(subject, options)
    yield from _switches(subject, options)
    yield from _extras(subject, options)
    yield from _own_options(subject, options)


def _model(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    budget, asked = subject.budget, subject.settings
    if options.form("model") == "file":
        yield Entry(
            key="model", value=subject.model_reference, why=group_words(budget, "weights", "weights on each GPU")
        )
    if subject.revision:
        yield Entry(key="revision", value=subject.revision)
    dtype = budget.settings["dtype"]
    if (subject.gpu.cuda_capability or 9.0) < 8.0 and subject.gpu.vendor == "nvidia":
        if asked.dtype in ("bfloat16", "bf16"):
            raise UsageError(
                f"{subject.gpu.name} cannot compute in bfloat16", hint="leave --dtype out, or name float16"
            )
        dtype = "float16" if dtype == "bfloat16" else dtype
        yield Entry(key="dtype", value=dtype, why=f"{subject.gpu.name} has no bfloat16; both take 2 bytes")
    elif asked.dtype and asked.dtype != "auto":
        yield Entry(key="dtype", value=dtype, why="as asked")
    else:
        yield Entry(key="dtype", value="auto", why=f"the checkpoint's own, {dtype}")
    if subject.quantization:
        why = "the weights are quantized while they load; vLLM reads a quantized checkpoint without this"
        yield Entry(key="quantization", value=subject.quantization, why=why)
    if subject.quantization == "bitsandbytes":
        yield Entry(key="load-format", value="bitsandbytes", why="releases before 0.8.2 do not conclude it")


def _layout(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    settings = subject.budget.settings
    why = f"{subject.budget.num_gpus} x {subject.gpu.name}"
    yield Entry(
        key="tensor-parallel-size", value=settings["tensor_parallel_size"], why=f"{why}, as the budget counts them"
    )
    yield Entry(key="pipeline-parallel-size", value=settings["pipeline_parallel_size"])
    if settings["data_parallel_size"] != 1:
        yield Entry(key=options.require("data-parallel-size"), value=settings["data_parallel_size"])
    if settings["enable_expert_parallel"]:
        yield Entry(key="enable-expert-parallel", value=True, why="experts are kept whole, spread over the ranks")


def _limits(subject: EmitSubject) -> Iterator[Entry]:
    budget = subject.budget
    kv, settings = budget.kv, budget.settings
    concurrency = max(1, subject.settings.workload.concurrency)
    one = format_gib(kv.needed_bytes // concurrency)
    why = f"a request of this length takes {one} of the cache on each GPU"
    if kv.max_context_tokens:
        why += f"; the longest that has room alone is {kv.max_context_tokens:,}"
    yield Entry(key="max-model-len", value=settings["max_model_len"], why=why if kv.needed_bytes else "")
    why = f"requests in one step, checked for {requests(budget)}; {_OVERLOAD}"
    if budget.group_bytes("cuda_graph"):
        why = f"{why}; {group_words(budget, 'cuda_graph', 'CUDA graphs')}"
    yield Entry(key="max-num-seqs", value=settings["max_num_seqs"], why=why)
    peak = group_words(budget, "activation_peak", "activation peak")
    yield Entry(
        key="max-num-batched-tokens", value=settings["max_num_batched_tokens"], why=f"tokens in one step; {peak}"
    )


def _memory(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    budget, settings = subject.budget, subject.budget.settings
    utilization = settings["gpu_memory_utilization"]
    assert isinstance(utilization, float)
    share = f"{format_gib(budget.gpu_memory_bytes * utilization)} of {format_gib(budget.gpu_memory_bytes)}"
    outside = budget.group_bytes("outside_budget")
    why = f"vLLM may take {share}, which must be free when it starts"
    why += f"; {format_gib(outside)} more lie outside of it" if outside else ""
    yield Entry(key="gpu-memory-utilization", value=utilization, why=why)
    if settings["kv_cache_memory_bytes"] is not None:
        key = options.require("kv-cache-memory-bytes")
        why = f"the cache on each GPU, given outright: {cache_holds(budget)}"
        yield Entry(key=key, value=settings["kv_cache_memory_bytes"], why=why)


def _cache(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    budget, asked = subject.budget, subject.settings
    cache = f"KV cache {format_gib(budget.group_bytes('kv_cache'))}"
    holds = cache_holds(budget)
    why = f"{budget.kv.bytes_per_token:,} bytes a token over all layers; {cache}: {holds}" if holds else cache
    own = asked.kv_dtype in (None, "auto") or str(budget.settings["kv_cache_dtype"]) == budget.settings["dtype"]
    yield Entry(key="kv-cache-dtype", value="auto" if own else budget.settings["kv_cache_dtype"], why=why)
    if asked.block_size is not None:
        yield Entry(key="block-size", value=asked.block_size, why="tokens in a page of the cache, as asked")


def _switches(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    asked = subject.settings
    if asked.eager:
        yield Entry(key="enforce-eager", value=True, why="no CUDA graphs: less memory, slower decoding")
    if asked.chunked_prefill is not None:
        yield from _switch(
            "enable-chunked-prefill", asked.chunked_prefill, options.form("chunked-prefill-off") == "text"
        )
    if asked.prefix_caching is not None:
        yield from _switch("enable-prefix-caching", asked.prefix_caching, False)
    if asked.language_model_only:
        why = "text only: towers for other media are not loaded"
        yield Entry(key=options.require("language-model-only"), value=True, why=why)


def _switch(key: str, is_on: bool, takes_text: bool) -> Iterator[Entry]:
    """A flag that is on, or off in the one way that the reader does not drop."""
    if is_on:
        yield Entry(key=key, value=True, why="as asked")
    elif takes_text:
        yield Entry(key=key, value="false", why="off, as asked; in quotes, because a plain false is dropped")
    else:
        yield Entry(key=f"no-{key}", value=True, why="off, as asked; the reader drops `false` without a word")


def _extras(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    asked = subject.settings
    if asked.weight_offload_bytes:
        why = "GiB of weights on each GPU that stay in host memory; every step reads them over PCIe"
        yield Entry(key="cpu-offload-gb", value=asked.weight_offload_bytes / GIB, why=why)
    if asked.media_per_prompt is not None:
        limits = dict(asked.media_per_prompt)
        value: object = ",".join(f"{name}={count}" for name, count in limits.items())
        value = _json(limits, options) if options.form("media-limits") == "json" else value
        yield Entry(
            key="limit-mm-per-prompt", value=value, why="media in one prompt: the profiling run reserves for them"
        )
    if asked.lora.max_loras:
        yield Entry(key="enable-lora", value=True, why="room for adapters is part of the weights above")
        yield Entry(key="max-loras", value=asked.lora.max_loras)
        yield Entry(key="max-lora-rank", value=asked.lora.max_rank)
    if asked.draft is not None or asked.num_speculative_tokens:
        yield _speculation(subject, options)


def _speculation(subject: EmitSubject, options: EngineOptionTable) -> Entry:
    asked = subject.settings
    tokens = asked.num_speculative_tokens or 1
    if subject.draft_reference is None:
        value: dict[str, object] = {"method": "ngram", "num_speculative_tokens": tokens}
    elif subject.draft_reference == "mtp":
        value = {"method": "mtp", "num_speculative_tokens": tokens}
    else:
        value = {"model": subject.draft_reference, "num_speculative_tokens": tokens}
    key = options.require("speculative-config")
    return Entry(key=key, value=_json(value, options), why="the draft's weights and cache are part of the budget")


def _json(value: dict[str, object] | dict[str, int], options: EngineOptionTable) -> object:
    return value if options.form("json") == "nested" else json.dumps(value)


def _own_options(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    """Engine options that were given with --set: those that the table knows only where the release has them, others as
    they were given.
    """
    for name, value in subject.settings.engine_options.items():
        key = name.replace("_", "-")
        if key in _VARIABLES or value is None or (key in options.spans and not options.has(key)):
            continue
        if isinstance(value, bool):
            yield from _switch(key, value, False)
        else:
            yield Entry(key=key, value=value, why="as given with --set; the budget does not depend on it")
