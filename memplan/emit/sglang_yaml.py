"""The YAML that SGLang's server reads with --config.

Keys want dashes, as on the command line; flags are written only where they are on.
Source: sglang/srt/server_args.py and sglang/srt/arg_groups/, tags v0.5.3 to v0.5.23.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.catalog.option_tables import EngineOptionTable, load_option_table
from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit.words import cache_holds, group_words, header, requests
from memplan.emit.yaml_text import Entry, yaml_text
from memplan.units import GIB, format_gib

FILE_NAME = "sglang.yaml"
# What memplan takes with --set and SGLang finds out itself, or what has its place in the file under another name.
_NOT_OPTIONS = ("avail-mem-before-load", "tp", "pp", "dp", "ep", "context-len", "attn-dp-size", "cpu-offload-gb")


def emit(subject: EmitSubject) -> Emission:
    """Return sglang.yaml. Raises: UsageError for what the release has no option for."""
    options = load_option_table("sglang", subject.version)
    start = f"python -m sglang.launch_server --config {FILE_NAME}"
    text = yaml_text(header(subject, start), entries(subject, options))
    return Emission(files=(EmittedFile(name=FILE_NAME, text=text, media_type="application/yaml"),))


def entries(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    """Yield every option with its reason, in the order in which a person reads them."""
    yield from _model(subject)
    yield from _layout(subject, options)
    yield from _limits(subject)
    yield from _memory(subject)
    yield from _graphs(subject, options)
    yield from _extras(subject)
    yield from _own_options(subject)


def _model(subject: EmitSubject) -> Iterator[Entry]:
    why = group_words(subject.budget, "weights", "weights on each GPU")
    yield Entry(key="model-path", value=subject.model_reference, why=why)
    if subject.revision:
        yield Entry(key="revision", value=subject.revision)
    dtype = subject.budget.settings["dtype"]
    if subject.settings.dtype and subject.settings.dtype != "auto":
        yield Entry(key="dtype", value=dtype, why="as asked")
    else:
        yield Entry(key="dtype", value="auto", why=f"the checkpoint's own, {dtype}")
    if subject.quantization:
        yield Entry(key="quantization", value=subject.quantization, why="the weights are quantized while they load")


def _layout(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    settings = subject.budget.settings
    why = f"{subject.budget.num_gpus} x {subject.gpu.name}, as the budget counts them"
    yield Entry(key="tensor-parallel-size", value=settings["tp_size"], why=why)
    if settings["pp_size"] != 1:
        yield Entry(key="pipeline-parallel-size", value=settings["pp_size"])
    if settings["dp_size"] != 1:
        yield Entry(key="data-parallel-size", value=settings["dp_size"])
    if settings["enable_dp_attention"]:
        why = "attention is replicated over the ranks, each with a cache of its own"
        if options.has("attn-dp-size"):
            yield Entry(key="attn-dp-size", value=settings["dp_size"], why=why)
        else:
            yield Entry(key="enable-dp-attention", value=True, why=why)
    if settings["ep_size"] != 1:
        yield Entry(key="expert-parallel-size", value=settings["ep_size"], why="experts are kept whole")


def _limits(subject: EmitSubject) -> Iterator[Entry]:
    budget, settings = subject.budget, subject.budget.settings
    one = format_gib(budget.kv.needed_bytes // max(1, subject.settings.workload.concurrency))
    why = f"a request of this length takes {one} of the cache on each GPU"
    yield Entry(key="context-length", value=settings["context_length"], why=why)
    if settings["max_running_requests"] is not None:
        why = f"requests at once, checked for {requests(budget)}"
        yield Entry(key="max-running-requests", value=settings["max_running_requests"], why=why)
    chunk = settings["chunked_prefill_size"]
    assert isinstance(chunk, int)
    if settings["enable_dp_attention"] and chunk > 0:
        groups = settings["dp_size"]
        assert isinstance(groups, int)
        chunk *= groups  # SGLang divides it by the groups again
    why = "tokens of a prefill step, for which SGLang holds memory back"
    yield Entry(key="chunked-prefill-size", value=chunk, why=why)


def _memory(subject: EmitSubject) -> Iterator[Entry]:
    budget, settings = subject.budget, subject.budget.settings
    static = format_gib(budget.group_bytes("weights") + budget.group_bytes("kv_cache"))
    why = f"weights and cache, {static}, of what is free at the start; out of memory while serving: lower it"
    yield Entry(key="mem-fraction-static", value=settings["gpu_memory_utilization"], why=why)
    if settings["max_total_tokens"] is not None:
        yield Entry(key="max-total-tokens", value=settings["max_total_tokens"], why="tokens of the cache, as asked")
    cache = format_gib(budget.group_bytes("kv_cache"))
    why = f"{budget.kv.bytes_per_token:,} bytes a token over all layers; KV cache {cache}: {cache_holds(budget)}"
    own = settings["kv_cache_dtype"] == settings["dtype"]
    yield Entry(key="kv-cache-dtype", value="auto" if own else settings["kv_cache_dtype"], why=why)
    yield Entry(key="page-size", value=settings["page_size"], why="tokens in a page of the cache")
    if settings["disable_radix_cache"]:
        yield Entry(key="disable-radix-cache", value=True, why="no shared prefixes, as asked")


def _graphs(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    settings = subject.budget.settings
    if settings["disable_cuda_graph"]:
        why = "no CUDA graphs, as asked: less memory, slower decoding"
        if options.has("cuda-graph-backend-decode"):
            yield Entry(key="cuda-graph-backend-decode", value="disabled", why=why)
            yield Entry(key="cuda-graph-backend-prefill", value="disabled")
        else:
            yield Entry(key="disable-cuda-graph", value=True, why=why)
        return
    key = "cuda-graph-max-bs-decode" if options.has("cuda-graph-max-bs-decode") else "cuda-graph-max-bs"
    why = f"the largest captured batch; {group_words(subject.budget, 'cuda_graph', 'CUDA graphs')}"
    yield Entry(key=key, value=settings["cuda_graph_max_bs"], why=why)


def _extras(subject: EmitSubject) -> Iterator[Entry]:
    asked = subject.settings
    if asked.weight_offload_bytes:
        why = "GiB of weights on each GPU that stay in host memory"
        yield Entry(key="cpu-offload-gb", value=round(asked.weight_offload_bytes / GIB), why=why)
    if asked.lora.max_loras:
        yield Entry(key="enable-lora", value=True, why="room for adapters is part of the weights above")
        yield Entry(key="max-loras-per-batch", value=asked.lora.max_loras)
        yield Entry(key="max-lora-rank", value=asked.lora.max_rank)
        yield Entry(key="lora-target-modules", value=["all"])
    if subject.draft_reference is not None:
        why = "the draft's weights and cache are part of the budget"
        yield Entry(key="speculative-algorithm", value="EAGLE", why=why)
        if subject.draft_reference != "mtp":
            yield Entry(key="speculative-draft-model-path", value=subject.draft_reference)
        yield Entry(key="speculative-num-steps", value=max(1, asked.num_speculative_tokens))
        yield Entry(key="speculative-eagle-topk", value=1)
        yield Entry(key="speculative-num-draft-tokens", value=max(1, asked.num_speculative_tokens))


def _own_options(subject: EmitSubject) -> Iterator[Entry]:
    """Engine options that were given with --set and that nothing above says yet."""
    said = {name.replace("_", "-") for name in subject.budget.settings} | set(_NOT_OPTIONS)
    for name, value in subject.settings.engine_options.items():
        key = name.replace("_", "-")
        if key not in said and value is not None and value is not False:
            yield Entry(key=key, value=value, why="as given with --set")
