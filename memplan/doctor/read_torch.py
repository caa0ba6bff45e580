"""PyTorch's own words when memory runs out, of every release since 0.4, on CUDA, ROCm, Apple's MPS and Intel's XPU.

Source: c10/cuda/CUDACachingAllocator.cpp (its THC forerunner before 1.0), aten/src/ATen/mps/MPSAllocator.mm,
c10/core/impl/alloc_cpu.cpp, tags v0.4.0 to v2.13.0.
"""

from __future__ import annotations

from memplan.doctor.sightings import pattern

_S = r"[\d.]+ ?(?:bytes?|[KMGT]i?B)"

PATTERNS = (
    # 1.0 to 2.0, all in one pair of parentheses; "cached" until 1.3, "reserved in total" from 1.4 on.
    pattern(
        "oom",
        "ried to allocate",
        rf"(?P<backend>CUDA|HIP|XPU|NPU|MUSA|MLU)?(?: error:)? ?(?:out of memory\W+)?[Tt]ried to allocate (?P<wanted_size>{_S}) "
        rf"\((?P<device>(?:GPU|NPU|XPU)[ :]?\d+); (?P<total_size>{_S}) total capacity; "
        rf"(?P<allocated_size>{_S}) already allocated; (?:(?P<active_size>{_S}) current active; )?"
        rf"(?P<free_size>{_S}) free(?:; (?:(?P<reserved_size>{_S}) (?:reserved in total by PyTorch|cached)"
        rf"|(?P<allowed_size>{_S}) allowed))?",
    ),
    # 2.1 on, in sentences; "capacty" was misspelt until 2.2.
    pattern(
        "oom",
        "ried to allocate",
        rf"(?:(?P<backend>CUDA|HIP|XPU|NPU) out of memory\W+)?[Tt]ried to allocate (?P<wanted_size>{_S})\.? "
        rf"(?P<device>(?:GPU|XPU|NPU) \d+)\s*has a total capaci?ty of (?P<total_size>{_S}) of which "
        rf"(?P<free_size>{_S}) is free",
    ),
    pattern("oom_short", "of memory", r"(?P<backend>CUDA|HIP|XPU|NPU) out of memory\b"),
    pattern("oom_wanted", "ried to allocate", rf"[Tt]ried to allocate (?P<wanted_size>{_S})"),
    pattern(
        "oom_capacity",
        "total capac",
        rf"has a total capaci?ty of (?P<total_size>{_S}) of which (?P<free_size>{_S}) is free",
    ),
    pattern("oom_process", "this process has", rf"this process has (?P<used_size>{_S}) (?:memory )?in use"),
    pattern("oom_allocated", "llocated by PyTorch", rf"(?P<allocated_size>{_S}) is allocated by PyTorch"),
    pattern("oom_pools", "private pools", rf"(?P<pools_size>{_S}) allocated in private pools"),
    pattern(
        "oom_unallocated",
        "unallocated",
        rf"(?P<unallocated_size>{_S}) (?:is )?reserved (?:by PyTorch )?but unallocated",
    ),
    pattern("oom_limit", "allowed", rf"(?P<allowed_size>{_S}) allowed"),
    # What a process may have at most: torch.cuda.set_per_process_memory_fraction.
    pattern(
        "oom_exceeds",
        "would exceed allowed memory",
        r"[Aa]llocation on device (?P<device>\d*)\s?would exceed allowed memory",
    ),
    pattern("oom_now", "urrently allocated", rf"[Cc]urrently allocated\s*: (?P<allocated_size>{_S})"),
    pattern("oom_requested", "equested", rf"Requested\s*: (?P<wanted_size>{_S})"),
    pattern("oom_limit_set", "Device limit", rf"Device limit\s*: (?P<total_size>{_S})"),
    pattern("oom_free_driver", "according to CUDA", rf"Free \(according to CUDA\): (?P<free_size>{_S})"),
    pattern(
        "oom_mps",
        "MPS",
        rf"MPS backend out of memory \(MPS allocated: (?P<allocated_size>{_S}), other allocations: (?P<other_size>{_S}), "
        rf"max allowed: (?P<total_size>{_S})\)\. Tried to allocate (?P<wanted_size>{_S})",
    ),
    # Driver and libraries, without PyTorch's figures.
    pattern(
        "oom_driver",
        "out of memory",
        r"(?:(?:CUDA|HIP|cuda|hip)(?: runtime)? error\s?(?:\(2\))?\W{1,4}out of memory|cudaErrorMemoryAllocation|"
        r"hipErrorOutOfMemory|CUDA_ERROR_OUT_OF_MEMORY|cuda failure 2? ?'?out of memory)",
    ),
    pattern("oom_driver", "cudaErrorMemoryAllocation", r"cudaErrorMemoryAllocation"),
    pattern("oom_driver", "CUDA_ERROR_OUT_OF_MEMORY", r"CUDA_ERROR_OUT_OF_MEMORY"),
    pattern("oom_nccl", "out of memory", r"(?i)(?:nccl|RCCL)[^\n]{0,200}(?:cuda|hip) failure[^\n]{0,40}out of memory"),
    pattern("cublas_alloc", "ALLOC_FAILED", r"(?P<library>CUBLAS|HIPBLAS|CUSPARSE|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED"),
    pattern("cublas_alloc", "NOT_INITIALIZED", r"(?P<library>CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED"),
    pattern(
        "shared_memory_kernel",
        "out of resource",
        r"out of resources?: shared memory, Required: (?P<required_n>\d+), Hardware limit: (?P<limit_n>\d+)",
    ),
    pattern(
        "jax_oom",
        "RESOURCE_EXHAUSTED",
        r"RESOURCE_EXHAUSTED: [Oo]ut of memory[^\n]{0,60}?allocat\w+ (?P<wanted_bytes>\d+) bytes",
    ),
    # The host.
    pattern(
        "host_alloc",
        "allocate memory",
        r"DefaultCPUAllocator: (?:can't|not enough memory)[^\n]{0,60}?tried to allocate (?P<wanted_bytes>\d+) bytes",
    ),
    pattern(
        "host_alloc",
        "not enough memory",
        r"DefaultCPUAllocator: not enough memory: you tried to allocate (?P<wanted_bytes>\d+) bytes",
    ),
    pattern("host_alloc", "Cannot allocate memory", r"(?:Errno 12|errno: 12)\W[^\n]{0,40}Cannot allocate memory"),
    pattern(
        "host_alloc",
        "Unable to allocate",
        rf"Unable to allocate (?P<wanted_size>{_S}) for an array",
    ),
    pattern(
        "shm",
        "/dev/shm",
        r"(?:No space left on device[^\n]{0,120}/dev/shm|/dev/shm[^\n]{0,120}No space left on device)",
    ),
    pattern("shm", "insufficient shared memory", r"insufficient shared memory \(shm\)"),
    pattern("shm", "shared memory", r"unable to (?:open|resize|allocate) shared memory (?:object|file)"),
    pattern("shm", "nccl-shm", r"(?:Error while creating shared memory segment|/dev/shm/nccl)[^\n]{0,80}"),
    pattern("shm", "posix_fallocate", r"posix_fallocate failed ?: No space left on device"),
    pattern(
        "workspace",
        "AlignedAllocator",
        r"Failed to allocate memory for (?P<what>\w+) with size (?P<wanted_bytes>\d+) and alignment \d+ in AlignedAllocator",
    ),
    pattern("shm", "Bus error", r"Bus error(?: \(core dumped\))?|killed by signal: Bus error"),
    # Training: what the step was doing.
    pattern("at_backward", ".backward", r"(?:loss|accelerator|engine|self|autograd|scaler\.scale\(\w+\))\.backward\("),
    pattern("at_backward", "run_backward", r"_?engine_run_backward|run_backward"),
    pattern("at_backward", "autograd/", r"autograd/(?:__init__|graph|function)\.py"),
    pattern(
        "at_optimizer",
        "optim",
        r"torch/optim/\w+\.py|in (?:_init_group|init_state|_single_tensor_adamw?|_multi_tensor_adamw?|_fused_adamw?)\b|exp_avg",
    ),
    pattern(
        "at_loss", "cross_entropy", r"cross_entropy|logits\.float\(\)|ForCausalLMLoss|fixed_cross_entropy|loss_fct"
    ),
    pattern(
        "at_evaluation", "eval", r"in (?:evaluation_loop|prediction_step|evaluate)\b|nested_concat|pad_across_processes"
    ),
    pattern(
        "at_training",
        "train",
        r"in (?:training_step|train_loop|_inner_training_loop|train_step|fit)\b|transformers/trainer\.py|deepspeed/runtime|torchtune|accelerate/",
    ),
    pattern("at_attention", "attention", r"scaled_dot_product_attention|attn_weights|matmul\(query|softmax\("),
    pattern("at_generate", "generat", r"in (?:generate|_sample|_beam_search|greedy_search)\b|generation/utils\.py"),
    pattern(
        "at_load",
        "load",
        r"in (?:from_pretrained|load_state_dict|_load_pretrained_model|_load_state_dict_into_\w+|set_module_tensor_to_device)\b|torch\.load\(",
    ),
    pattern("at_move", "_apply", r"t\.(?:to|cuda)\(|in _apply\b|param_applied"),
    pattern("at_gather", "gather", r"all_gather|_allgather|reduce_scatter|\ball_reduce\b"),
    pattern("trainer", "accelerate launch", r"accelerate launch"),
    pattern("trainer", "deepspeed", r"\bdeepspeed\b"),
    pattern("trainer", "Trainer(", r"\bTrainer\("),
    pattern("progress", "it/s", r"(?P<done_n>\d+)/(?P<all_n>\d+) \[[\d:]+<"),
    pattern("progress", "s/it", r"(?P<done_n>\d+)/(?P<all_n>\d+) \[[\d:]+<"),
)
OTHER_PROCESS = r"Process (?P<pid>\d+) has (?P<used_size>[\d.]+ ?(?:bytes?|[KMGT]i?B)) (?:memory )?in use"
