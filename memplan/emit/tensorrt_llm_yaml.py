"""The YAML that `trtllm-serve MODEL --config` reads.

The fraction of memory is of what is free after the weights are loaded, not of the device; the model is named on the
command line alone; keys that are not known are fatal.
Source: tensorrt_llm/llmapi/llm_args.py, 1.0 to 1.3.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.catalog.option_tables import EngineOptionTable, load_option_table
from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit.words import cache_holds, group_words, header, requests
from memplan.emit.yaml_text import Entry, yaml_text
from memplan.errors import UsageError
from memplan.units import format_gib

FILE_NAME = "trtllm.yaml"
_TOKENS_PER_BLOCK = 32  # where a release has no key for it


def emit(subject: EmitSubject) -> Emission:
    """Return trtllm.yaml. Raises: UsageError for a flow that has no such file."""
    options = load_option_table("tensorrt-llm", subject.version)
    if subject.budget.settings["backend"] != "pytorch":
        raise UsageError("a built TensorRT engine holds its own limits", hint="leave --set backend=tensorrt out")
    if subject.settings.weight_offload_bytes:
        raise UsageError("TensorRT-LLM keeps its weights on the GPU", hint="leave --cpu-offload out")
    start = f"trtllm-serve {subject.model_reference} --config {FILE_NAME}"
    notes = (f"the model is named on the command line: {start}",)
    text = yaml_text(header(subject, start), entries(subject, options))
    return Emission(files=(EmittedFile(name=FILE_NAME, text=text, media_type="application/yaml"),), notes=notes)


def entries(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    """Yield every key with its reason, in the order in which a person reads them."""
    budget, settings = subject.budget, subject.budget.settings
    yield Entry(key="backend", value="pytorch", why=group_words(budget, "weights", "weights on each GPU"))
    dtype = settings["dtype"] if subject.settings.dtype not in (None, "auto") else "auto"
    yield Entry(key="dtype", value=dtype, why=f"computing in {settings['dtype']}")
    why = f"{budget.num_gpus} x {subject.gpu.name}, as the budget counts them"
    yield Entry(key="tensor_parallel_size", value=settings["tensor_parallel_size"], why=why)
    yield Entry(key="pipeline_parallel_size", value=settings["pipeline_parallel_size"])
    if settings["moe_expert_parallel_size"] != 1:
        yield Entry(key="moe_expert_parallel_size", value=settings["moe_expert_parallel_size"])
    if settings["enable_attention_dp"]:
        yield Entry(key="enable_attention_dp", value=True)
    one = format_gib(budget.kv.needed_bytes // max(1, subject.settings.workload.concurrency))
    why = f"a request of this length takes {one} of the cache on each GPU"
    yield Entry(key="max_seq_len", value=settings["max_seq_len"], why=why)
    yield Entry(key="max_batch_size", value=settings["max_batch_size"], why=f"checked for {requests(budget)}")
    peak = group_words(budget, "activation_peak", "activation peak")
    yield Entry(key="max_num_tokens", value=settings["max_num_tokens"], why=f"tokens in one step; {peak}")
    why = "prompts above max_num_tokens are refused without it, and it is off by default"
    yield Entry(key="enable_chunked_prefill", value=subject.settings.chunked_prefill is not False, why=why)
    if settings["attn_backend"] != "trtllm":
        yield Entry(key="attn_backend", value=str(settings["attn_backend"]).upper())
    yield _cache(subject, options)
    if settings["cuda_graph_max_batch_size"] is None:
        yield Entry(key="cuda_graph_config", value=None, why="no CUDA graphs, as asked")
    else:
        graphs = {"max_batch_size": settings["cuda_graph_max_batch_size"], "enable_padding": True}
        why = f"batches between captured sizes are padded; {group_words(budget, 'cuda_graph', 'CUDA graphs')}"
        yield Entry(key="cuda_graph_config", value=graphs, why=why)


def _cache(subject: EmitSubject, options: EngineOptionTable) -> Entry:
    budget, settings = subject.budget, subject.budget.settings
    own = settings["kv_cache_dtype"] == settings["dtype"]
    cache: dict[str, object] = {
        "free_gpu_memory_fraction": settings["free_gpu_memory_fraction"],
        "dtype": "auto" if own else str(settings["kv_cache_dtype"]).removesuffix("_e4m3"),
    }
    is_default = settings["tokens_per_block"] == _TOKENS_PER_BLOCK
    for name in ("tokens_per_block", "max_tokens", "max_gpu_total_bytes", "max_attention_window"):
        key = f"kv_cache_config.{name}"
        if settings[name] is None or (name == "tokens_per_block" and is_default and not options.has(key)):
            continue
        options.require(key)
        cache[name] = settings[name]
    if subject.settings.prefix_caching is not None:
        cache["enable_block_reuse"] = subject.settings.prefix_caching
    size = format_gib(budget.group_bytes("kv_cache"))
    why = f"the fraction is of what is free once the weights are loaded; KV cache {size}: {cache_holds(budget)}"
    return Entry(key="kv_cache_config", value=cache, why=why)
