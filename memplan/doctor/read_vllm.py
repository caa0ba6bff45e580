"""vLLM's start-up and running log, releases 0.2 to 0.33, V0 and V1.

Source: vllm/worker/worker.py, vllm/worker/model_runner.py, vllm/v1/worker/gpu_worker.py, gpu_model_runner.py and utils.py,
vllm/v1/core/kv_cache_utils.py (kv_cache_planning.py), vllm/engine/llm_engine.py, vllm/v1/engine/core.py,
vllm/core/scheduler.py, vllm/v1/metrics/loggers.py; tags v0.2.0 to v0.33.0.
"""

from __future__ import annotations

from memplan.doctor.sightings import pattern

_G = r" ?Gi?B"

PATTERNS = (
    # Who speaks.
    pattern(
        "vllm_version",
        "LLM engine (v",
        r"Initializing an? (?:(?P<generation>V[01]) )?LLM engine \(v(?P<version>[\w.+]+)\)",
    ),
    pattern("vllm_version", "version", r"vLLM (?:API server )?version:?\s*v?(?P<version>\d+\.\d+(?:\.\d+)?[\w.+]*)"),
    pattern(
        "vllm_version",
        "vllm",
        r"\bvllm(?: version)?(?:==|:? v?| \()(?P<version>0\.\d+(?:\.\d+)?(?:\.?post\d+|rc\d+|\.dev\d+)?(?:\+\w+)?)",
    ),
    pattern("vllm", "LLM engine", r"Initializing an? (?:(?P<generation>V[01]) )?LLM engine"),
    pattern(
        "vllm",
        "vllm",
        r"\bvllm serve\b|vllm[./]entrypoints|[/\"]vllm/|\bimport vllm\b|from vllm import|vllm/vllm-openai|VllmWorker|\bvLLM\b",
    ),
    pattern("vllm", "vLLM", r"\bvLLM\b"),
    pattern("vllm", "memory", r"gpu[-_]memory[-_]utilization"),
    pattern("vllm", "enforce", r"--enforce-eager|enforce_eager"),
    pattern("vllm_v1", "EngineCore", r"EngineCore|vllm/v1/"),
    pattern("vllm_v1", "vllm/v1/", r"vllm/v1/"),
    pattern("vllm_v0", "llm_engine.py", r"vllm/engine/llm_engine\.py|llm_engine\.py:\d+"),
    # What it was asked: the configuration that it prints, and its command line.
    pattern(
        "vllm_config",
        "max_seq_len=",
        r"model='(?P<model>[^']{1,200})'.{0,4000}?\bdtype=torch\.(?P<dtype>\w+), max_seq_len=(?P<context_n>\d+)",
    ),
    pattern("vllm_tp", "tensor_parallel_size=", r"\btensor_parallel_size=(?P<tp_n>\d+)"),
    pattern("vllm_pp", "pipeline_parallel_size=", r"\bpipeline_parallel_size=(?P<pp_n>\d+)"),
    pattern("vllm_dp", "data_parallel_size=", r"\bdata_parallel_size=(?P<dp_n>\d+)"),
    pattern("vllm_quant", "quantization=", r"\bquantization=(?P<quantization>[\w-]+)"),
    pattern("vllm_eager", "enforce_eager=", r"\benforce_eager=(?P<eager>True|False)"),
    pattern("vllm_kv_dtype", "kv_cache_dtype=", r"\bkv_cache_dtype='?(?P<kv_dtype>\w+)"),
    pattern("vllm_load_format", "load_format=", r"\bload_format=(?:LoadFormat\.)?'?(?P<load_format>\w+)"),
    pattern("vllm_args", "non-default args", r"non-default args: (?P<arguments>\{.{1,6000})"),
    pattern(
        "vllm_batched",
        "Chunked prefill is enabled",
        r"Chunked prefill is enabled with max_num_batched_tokens=(?P<tokens_n>\d+)",
    ),
    pattern("vllm_seqs", "max_num_seqs", r"\bmax_num_seqs['\"]?\s?[:=]\s?(?P<seqs_n>\d+)"),
    # What it measured.
    pattern(
        "vllm_weights",
        "took",
        r"(?:Loading model weights|Model loading) took (?P<weights_gib>[\d.]+)(?: GB| GiB)?(?: memory)?",
    ),
    pattern(
        "vllm_use",
        "can use",
        r"total_gpu_memory \(?(?P<total_gib>[\d.]+) ?GiB\)? x? ?gpu_memory_utilization \(?(?P<utilization_x>[\d.]+)\)?(?: =| can use) ?(?P<requested_gib>[\d.]+) ?GiB",
    ),
    pattern(
        "vllm_use",
        "gpu_memory_utilization (",
        r"total_gpu_memory \((?P<total_gib>[\d.]+) ?GiB\) x gpu_memory_utilization \((?P<utilization_x>[\d.]+)\) = (?P<requested_gib>[\d.]+) ?GiB",
    ),
    pattern("vllm_terms_weights", "model weights take", r"model weights take (?P<weights_gib>[\d.]+) ?GiB"),
    pattern("vllm_terms_non_torch", "non_torch", r"non_torch(?:_memory)?(?: takes)? (?P<non_torch_gib>[\d.]+) ?GiB"),
    pattern(
        "vllm_terms_activation",
        "activation peak",
        r"activation peak(?: memory)?(?: takes)?:? (?P<activation_gib>[\d.]+) ?GiB",
    ),
    pattern("vllm_kv_available", "reserved for KV Cache", r"reserved for KV Cache is (?P<available_gib>-?[\d.]+) ?GiB"),
    pattern(
        "vllm_kv_available",
        "KV cache memory",
        r"(?:Available KV cache memory:|available_kv_cache_memory) (?P<available_gib>-?[\d.]+) ?GiB",
    ),
    pattern(
        "vllm_kv_available", "available_kv_cache_memory", r"available_kv_cache_memory (?P<available_gib>-?[\d.]+) ?GiB"
    ),
    pattern(
        "vllm_profile_old",
        "total_gpu_memory=",
        r"total_gpu_memory=(?P<total_gib>[\d.]+)GiB(?: initial_memory_usage=(?P<initial_gib>[\d.]+)GiB)?(?: peak_torch_memory=(?P<peak_gib>[\d.]+)GiB)?(?:[^\n]{0,80}?non_torch_memory=(?P<non_torch_gib>[\d.]+)GiB)?(?:[^\n]{0,40}?kv_cache_size=(?P<available_gib>-?[\d.]+)GiB)?(?:[^\n]{0,20}?gpu_memory_utilization=(?P<utilization_x>[\d.]+))?",
    ),
    pattern(
        "vllm_memory_start",
        "Initial free memory",
        r"Initial free memory:? (?P<free_gib>[\d.]+) GiB; Requested memory: (?P<utilization_x>[\d.]+) \(util\), (?P<requested_gib>[\d.]+) GiB",
    ),
    pattern(
        "vllm_non_kv",
        "non-KV cache memory",
        r"Total non-KV cache memory: (?P<non_kv_gib>[\d.]+) ?GiB; torch peak memory increase: (?P<activation_gib>[\d.]+) ?GiB; non-torch forward increase memory: (?P<non_torch_gib>[\d.]+) ?GiB; weights memory: (?P<weights_gib>[\d.]+)",
    ),
    pattern(
        "vllm_actual",
        "for weight",
        r"(?P<weights_gib>[\d.]+) GiB for weight, (?P<activation_gib>[\d.]+) GiB for peak activation, (?P<non_torch_gib>[\d.]+) GiB for non-torch memory, and (?P<graphs_gib>[\d.]+) GiB for CUDAGraph",
    ),
    pattern("vllm_suggested", "kv-cache-memory", r"--kv-cache-memory(?:-bytes)?[= ](?P<suggested_n>\d+)"),
    pattern("vllm_blocks", "blocks:", r"# ?(?:GPU|cuda|CUDA|CPU|device) blocks: (?P<blocks_n>\d+)"),
    pattern("vllm_kv_tokens", "KV cache size", r"(?:GPU |CPU |XPU |TPU )?KV cache size: (?P<tokens_n>[\d,]+) tokens"),
    pattern(
        "vllm_concurrency",
        "aximum concurrency",
        r"[Mm]aximum concurrency for (?P<context_n>[\d,]+) tokens per request: (?P<requests_x>[\d.]+)x",
    ),
    pattern(
        "vllm_graphs_estimate",
        "Estimated CUDA graph memory",
        r"Estimated CUDA graph memory: (?P<graphs_gib>[\d.]+) GiB",
    ),
    pattern(
        "vllm_graphs",
        "Graph capturing finished",
        r"Graph capturing finished in \d+ secs?, took (?P<graphs_gib>-?[\d.]+) Gi?B",
    ),
    pattern(
        "vllm_graphs_now",
        "CUDA graph pool memory",
        r"CUDA graph pool memory: (?P<graphs_gib>-?[\d.]+) GiB \(actual\), (?P<estimated_gib>[\d.]+) GiB \(estimated\)",
    ),
    pattern(
        "vllm_capturing",
        "apturing",
        r"Capturing (?:the model for CUDA graphs|CUDA graphs?|cudagraphs|CUDA graph shapes)",
    ),
    pattern("vllm_ready", "startup complete", r"Application startup complete"),
    pattern("vllm_ready", "Starting vLLM API server", r"Starting vLLM API server"),
    pattern("vllm_ready", "Uvicorn running", r"Uvicorn running on"),
    # What it refused.
    pattern("vllm_no_blocks", "cache blocks", r"No available memory for (?:the )?cache blocks"),
    pattern(
        "vllm_needs_kv",
        "KV cache is needed",
        r"max seq len \((?P<context_n>\d+)\)[^\n]{0,12}?(?P<needed_gib>[\d.]+) GiB KV cache is needed, (?:which is )?larger than the available KV cache memory \((?P<available_gib>[\d.]+) GiB\)?",
    ),
    pattern("vllm_needs_kv_cut", "KV cache is needed", r"(?P<needed_gib>[\d.]+) GiB KV cache is needed"),
    pattern("vllm_longest", "estimated maximum model length", r"estimated maximum model length is (?P<longest_n>\d+)"),
    pattern(
        "vllm_too_long",
        "max seq len",
        r"max seq len \((?P<context_n>\d+|\.\.\.)\) is larger than (?:the maximum number of tokens that can be stored in |\.\.\. ?)?KV cache \((?P<tokens_n>\d+)\)",
    ),
    pattern(
        "vllm_too_long_words",
        "single request",
        r"KV cache memory is insufficient to (?:handle|hold|serve) a single request",
    ),
    pattern("vllm_kv_fit", "max_model_len", r"(?:Reducing|Auto-fit) max_model_len[^\n]{0,80}?(?P<longest_n>\d{3,})"),
    pattern(
        "vllm_free_low",
        "ree memory on device",
        r"Free memory on device ?(?P<device>[\w:]*) ?\((?P<free_gib>[\d.]+)/(?P<total_gib>[\d.]+) ?GiB\) on startup(?: is less than desired GPU memory utilization|\. Desired GPU memory utilization is) \((?P<utilization_x>[\d.]+), (?P<requested_gib>[\d.]+) GiB\)",
    ),
    pattern("vllm_free_low_cut", "less than desired", r"is less than desired (?:GPU|CPU) memory utilization"),
    pattern(
        "vllm_profile_changed",
        "rror in memory profiling",
        r"Error in memory profiling\. (?:Initial free memory:? (?P<initial_gib>[\d.]+) GiB, current free memory:? (?P<current_gib>[\d.]+) GiB)?",
    ),
    pattern(
        "vllm_profile_grew", "Free memory grew by", r"Free memory grew by (?P<grew_gib>[\d.]+) GiB during profiling"
    ),
    pattern(
        "vllm_sampler",
        "warming up sampler",
        r"occurred when warming up sampler(?: with (?P<requests_n>\d+) dummy requests)?",
    ),
    pattern("vllm_sampler", "_dummy_sampler_run", r"_dummy_sampler_run"),
    pattern(
        "vllm_pooler",
        "warming up pooler",
        r"occurred when warming up pooler(?: \(task=\W?(?P<task>\w+)\W?\))?(?: with (?P<requests_n>\d+) dummy requests)?",
    ),
    pattern(
        "vllm_tokens_below_len",
        "max_num_batched_tokens",
        r"max_num_batched_tokens \((?P<tokens_n>\d+)\) (?:is smaller than|must be greater than or equal to|must be larger than) max_model_len \((?P<context_n>\d+)\)",
    ),
    pattern(
        "vllm_tokens_below_seqs",
        "max_num_batched_tokens",
        r"max_num_batched_tokens \((?P<tokens_n>\d+)\) must be greater than or equal to max_num_seqs \((?P<seqs_n>\d+)\)",
    ),
    pattern(
        "vllm_state_blocks",
        "amba cache blocks",
        r"max_num_seqs \((?P<seqs_n>\d+)\) exceeds(?: the)?(?: available)? Mamba cache blocks \((?P<blocks_n>\d+)\)",
    ),
    pattern(
        "vllm_swap_large",
        "swap space",
        r"Too large swap space\.? (?P<swap_gib>[\d.]+) GiB out of (?:the )?(?P<host_gib>[\d.]+) GiB",
    ),
    pattern(
        "vllm_block_manager",
        "exceeds the capacity of block_manager",
        r"Input prompt \((?P<tokens_n>\d+) tokens\)(?: \+ lookahead slots \(\d+\))? is too long and exceeds the capacity of block_manager",
    ),
    pattern(
        "vllm_heads",
        "attention heads",
        r"Total number of attention heads \((?P<heads_n>\d+)\) must be divisible by tensor parallel size \((?P<tp_n>\d+)\)",
    ),
    pattern("vllm_shards", "quantized weight shape", r"not aligned with the quantized weight shape"),
    pattern(
        "vllm_no_quant_config",
        "Cannot find",
        r"(?:Cannot find (?:the config file for (?P<method>\w+)|any of \[[^\]]{0,200}\] in the model's quantization config))",
    ),
    pattern(
        "vllm_quant_mismatch",
        "quantization",
        r"Quantization method specified in the model config \((?P<own>[\w-]+)\) does not match the quantization method specified in the `quantization` argument \((?P<method>[\w-]+)\)",
    ),
    pattern("unrecognized", "unrecognized arguments", r"unrecognized arguments: (?P<option>--?[\w.-]+)"),
    pattern(
        "unexpected_keyword", "unexpected keyword argument", r"got an unexpected keyword argument '(?P<option>\w+)'"
    ),
    pattern(
        "vllm_preempted",
        "preempted",
        r"(?:is preempted by [\w.]+ mode because there is (?:not|no) enough|preempt\w*)[^\n]{0,80}?(?:KV cache|total_(?:num_)?cumulative_preemption(?:_cnt)?=(?P<total_n>\d+))",
    ),
    pattern(
        "vllm_stats",
        "KV cache usage",
        r"Running: (?P<running_n>\d+) reqs?, (?:Swapped: \d+ reqs?, )?(?:Waiting|Pending): (?P<waiting_n>\d+) reqs?,[^\n]{0,40}?KV cache usage: (?P<usage_x>[\d.]+)%(?:[^\n]{0,200}?Preemptions?: (?P<preemptions_n>\d+))?",
    ),
    pattern("vllm_online_quant", "quantiz", r"quantization method[^\n]{0,60}online|Fp8OnlineLinear|online quantiz"),
    pattern(
        "vllm_media",
        "multi-modal",
        r"Starting profile run for multi-modal models|multi-modal embeddings|[Ee]ncoder cache will be initialized",
    ),
    pattern("vllm_media", "ncoder cache will", r"[Ee]ncoder cache will be initialized"),
    pattern("vllm_consequence", "ngine core init", r"Engine core initialization failed|EngineCore failed to start"),
)
