"""SGLang's start-up and running log, releases 0.1 to 0.5.

Source: srt/model_executor/model_runner.py, cuda_graph_runner.py, srt/managers/scheduler.py, srt/mem_cache/memory_pool.py,
srt/server_args.py; snapshots v0.3.0 to v0.5.23. What it prints as GB is GiB.
"""

from __future__ import annotations

from memplan.doctor.sightings import pattern

PATTERNS = (
    pattern("sglang", "sglang", r"sglang[./]|\bsglang\b"),
    pattern("sglang", "SGLang", r"\bSGLang\b"),
    pattern(
        "sglang_version", "sglang", r"sglang(?:[\w ]*version)?(?:==|: ?v?| v?)(?P<version>0\.\d+\.\d+(?:\.post\d+)?)"
    ),
    pattern("sglang_args", "server_args=", r"server_args=ServerArgs\(model_path='(?P<model>[^']{1,200})'"),
    pattern("sglang_tp", "tp_size=", r"\btp_size=(?P<tp_n>\d+)"),
    pattern("sglang_dp", "dp_size=", r"\bdp_size=(?P<dp_n>\d+)"),
    pattern("sglang_pp", "pp_size=", r"\bpp_size=(?P<pp_n>\d+)"),
    pattern(
        "sglang_fraction", "mem_fraction_static", r"\bmem_fraction_static['\"]?[=:]\s?(?P<fraction_x>0?\.\d+|1\.0)"
    ),
    pattern("sglang_fraction", "mem-fraction-static", r"--mem-fraction-static[ =](?:to )?(?P<fraction_x>0?\.\d+|1\.0)"),
    pattern("sglang_chunk", "chunked_prefill_size=", r"\bchunked_prefill_size=(?P<tokens_n>-?\d+)"),
    pattern("sglang_graph_bs", "cuda_graph_max_bs=", r"\bcuda_graph_max_bs=(?P<size_n>\d+)"),
    pattern("sglang_context", "context_length=", r"\bcontext_length=(?P<context_n>\d+)"),
    pattern("sglang_requests", "max_running_requests=", r"\bmax_running_requests=(?P<requests_n>\d+)"),
    pattern("sglang_kv_dtype", "kv_cache_dtype=", r"\bkv_cache_dtype='(?P<kv_dtype>\w+)'"),
    pattern("sglang_begin", "Load weight begin", r"Load weight begin\. avail mem=(?P<free_gib>[\d.]+) GB"),
    pattern(
        "sglang_loaded",
        "Load weight end",
        r"Load weight end\.[^\n]{0,200}?avail mem=(?P<free_gib>[\d.]+) GB(?:, mem usage=(?P<weights_gib>[\d.]+) GB)?",
    ),
    pattern(
        "sglang_kv",
        "Cache is allocated",
        r"KV Cache is allocated\.[^\n]{0,80}?#tokens: (?P<tokens_n>\d+)(?:, K size: (?P<keys_gib>[\d.]+) GB, V size: (?P<values_gib>[\d.]+) GB|, KV size: (?P<kv_gib>[\d.]+) GB)?",
    ),
    pattern("sglang_pool_end", "emory pool end", r"[Mm]emory pool end\. avail mem=(?P<free_gib>[\d.]+) GB"),
    pattern(
        "sglang_capture",
        "Capture",
        r"Capture (?:[\w ]*)cuda graph begin[^\n]{0,120}?(?:avail mem=(?P<free_gib>[\d.]+) GB)?",
    ),
    pattern(
        "sglang_captured",
        "Capture",
        r"Capture (?:[\w ]*)cuda graph end[^\n]{0,120}?(?:mem usage=(?P<graphs_gib>[\d.]+) GB\.? avail mem=(?P<free_gib>[\d.]+) GB)",
    ),
    pattern(
        "sglang_tokens",
        "max_total_num_tokens=",
        r"max_total_num_tokens=(?P<tokens_n>\d+)(?:[^\n]{0,120}?max_running_requests=(?P<requests_n>\d+))?(?:[^\n]{0,40}?context_len=(?P<context_n>\d+))?(?:[^\n]{0,60}?available_gpu_mem=(?P<free_gib>[\d.]+) GB)?",
    ),
    pattern("sglang_ready", "fired up", r"server is fired up"),
    # Opposite cures: these want the fraction raised ...
    pattern(
        "sglang_no_kv",
        "Not enough memory",
        r"Not enough memory\.? Please try (?:increasing|to increase) --mem-fraction-static",
    ),
    pattern("sglang_no_kv", "leave no GPU memory", r"[Ll]oaded weights leave no GPU memory for the KV cache"),
    pattern("sglang_no_kv", "raise --mem-fraction-static", r"raise --mem-fraction-static"),
    # ... and these want it lowered.
    pattern(
        "sglang_capture_failed",
        "apture",
        r"Capture (?:[\w ]*)(?:cuda|hip|npu|cpu)? ?graph failed:? ?(?P<reason>[^\n]{0,200})",
    ),
    pattern("sglang_lower", "mem-fraction-static to a smaller", r"set --mem-fraction-static to a smaller value"),
    pattern("sglang_prefill_oom", "refill out of memory", r"Prefill out of memory\. Try to lower your batch size"),
    pattern("sglang_decode_oom", "ecode out of memory", r"Decode out of memory\. Try to lower your batch size"),
    pattern("sglang_step_oom", "Try to lower your batch size", r"Out of memory\. Try to lower your batch size"),
    pattern("sglang_slots", "alloc_req_slots", r"alloc_req_slots runs out of memory"),
    pattern(
        "sglang_retract",
        "etract",
        r"(?:KV cache pool is full\. Retract requests|[Dd]ecode out of memory happened\. )[^\n]{0,20}?#retracted_reqs: (?P<requests_n>\d+)",
    ),
    pattern("sglang_retract", "Retract requests", r"KV cache pool is full\. Retract requests"),
    pattern("sglang_retract", "ecode out of memory happened", r"[Dd]ecode out of memory happened"),
    pattern("sglang_retract_last", "last request", r"Failed to retract any request|aborted last request"),
    pattern("sglang_unbalanced", "unbalanced", r"The memory capacity is unbalanced"),
    pattern(
        "sglang_longer",
        "maximum allowed length",
        r"(?P<tokens_n>\d+)[^\n]{0,60}exceeds the maximum allowed length \((?P<limit_n>\d+)",
    ),
    pattern(
        "sglang_stats",
        "token usage",
        r"#running-req: (?P<running_n>\d+)[^\n]{0,80}?token usage: (?P<usage_x>[\d.]+)(?:[^\n]{0,120}?#queue-req: (?P<waiting_n>\d+))?",
    ),
)
