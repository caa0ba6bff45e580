"""What can be changed in a program of PyTorch, on the host, and where settings contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memplan.doctor import changes as vllm
from memplan.doctor.changes import Change, Changes
from memplan.doctor.facts import Facts
from memplan.units import MIB, round_up


def _segments(facts: Facts) -> Iterator[Change]:
    yield Change(
        label="PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        risk="low",
        room_bytes=facts.unallocated_bytes,
        note="segments grow instead of leaving gaps",
    )
    size = round_up(max(1, (facts.wanted_bytes or 0) // MIB), 64) if facts.wanted_bytes else 512
    yield Change(
        label=f"PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:{max(128, min(size, 4096))}",
        risk="low",
        note="before PyTorch 2.0, which has no expandable segments",
    )


def _end_others(facts: Facts) -> Iterator[Change]:
    yield from vllm.end_others(facts)


CHANGES: Mapping[str, tuple[Changes, ...]] = {
    "fragmentation": (_segments,),
    "other_process": (_end_others,),
}
_CHECKPOINTING = Change(
    label="gradient_checkpointing=True",
    risk="low",
    note="activations are computed again: a quarter to a third more time",
)
_SMALL_BATCH = Change(
    label="per_device_train_batch_size=1 with gradient_accumulation_steps raised",
    risk="low",
    note="the same global batch",
)
_ADAPTERS = Change(
    label="LoRA or QLoRA instead of full fine-tuning", risk="medium", note="states of the adapters alone"
)
_SHARD = Change(label="FSDP or ZeRO-3 over more GPUs", risk="low", note="weights, gradients and states are shared out")
_EIGHT_BIT = Change(label='optim="adamw_bnb_8bit"', risk="low", note="states take a quarter")
_LIGER = Change(
    label="use_liger_kernel=True", risk="low", note="the loss is computed in pieces: logits are never whole"
)
_NARROW = Change(label="load in 4 bit (bitsandbytes) or 16 bit", risk="medium", note="check quality first")
_ACROSS = Change(label='device_map="auto" over more GPUs', risk="low")
_SHORT = Change(label="shorter sequences, or a smaller batch", risk="low")
_MEMORY = Change(label="raise the container's memory limit (--memory, resources.limits.memory)", risk="low", cures=None)
_SHM = Change(
    label="--shm-size 16g, or --ipc=host; in Kubernetes an emptyDir with medium: Memory at /dev/shm",
    risk="low",
    cures=True,
)
RULES: Mapping[str, tuple[Change, ...]] = {
    "free_but_refused": (
        Change(label="PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True", risk="low"),
        Change(label="a larger page file (Windows), or a higher commit limit", risk="low"),
    ),
    "process_limit": (
        Change(label="torch.cuda.set_per_process_memory_fraction: a larger part", risk="low", cures=None),
    ),
    "library_oom": (
        Change(
            label="a smaller batch, or torch.cuda.empty_cache() before",
            risk="low",
            note="leaves room outside of the pool",
        ),
        Change(label="PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True", risk="low"),
    ),
    "optimizer_oom": (_EIGHT_BIT, _ADAPTERS, _SHARD),
    "activations_oom": (_CHECKPOINTING, _SMALL_BATCH, _LIGER, _SHORT),
    "loss_oom": (_LIGER, _SMALL_BATCH, _SHORT, _CHECKPOINTING),
    "training_oom": (_SMALL_BATCH, _CHECKPOINTING, _EIGHT_BIT, _ADAPTERS, _SHARD),
    "evaluation_oom": (
        Change(
            label="eval_accumulation_steps=1, or prediction_loss_only=True", risk="low", note="logits go to the host"
        ),
        Change(label="per_device_eval_batch_size=1", risk="low"),
    ),
    "generation_oom": (_SHORT, _NARROW, _ACROSS),
    "weights_oom": (_NARROW, _ACROSS),
    "capacity": (_SHORT, _NARROW, _ACROSS),
    "container_limit": (_MEMORY, Change(label="low_cpu_mem_usage=True; fewer loading workers", risk="low")),
    "host_oom": (
        Change(label="more host memory or swap", risk="low"),
        Change(
            label="low_cpu_mem_usage=True, or safetensors in place of .bin files", risk="low", note="no second copy"
        ),
    ),
    "shared_memory": (_SHM,),
    "workspace_too_small": (
        Change(
            label="SGLANG_FLASHINFER_WORKSPACE_SIZE=1073741824",
            risk="low",
            note="SGLang; vLLM: VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE",
        ),
        Change(label="a smaller chunked prefill, or fewer running requests", risk="low"),
    ),
    "kernel_shared_memory": (Change(label="another attention or MoE backend, or smaller block sizes", risk="low"),),
    "memory_changed_while_profiling": (
        Change(label="start engines one after the other on a shared GPU", risk="none", cures=True),
        Change(label="--kv-cache-memory-bytes SIZE (from 0.10.2 on)", risk="low", note="skips the measurement"),
    ),
    "step_below_context": (
        Change(label="--enable-chunked-prefill", risk="low", options={"chunked_prefill": True}, cures=True),
        Change(label="--max-num-batched-tokens: at least --max-model-len", risk="low", cures=True),
    ),
    "step_below_requests": (Change(label="--max-num-seqs: at most --max-num-batched-tokens", risk="low", cures=True),),
    "state_blocks": (Change(label="--max-num-seqs: at most the number of states", risk="low", cures=True),),
    "swap_too_large": (Change(label="--swap-space 0", risk="low", cures=True),),
    "shards_uneven": (Change(label="--tensor-parallel-size: one that divides", risk="low", cures=True),),
    "not_quantized": (
        Change(label="leave --quantization out", risk="none", cures=True, note="weights then take their full size"),
        Change(label="a checkpoint that is stored in that format", risk="low", cures=True),
    ),
    "quantization_mismatch": (Change(label="leave --quantization out", risk="none", cures=True),),
    "unknown_option": (Change(label="leave the option out", risk="low", cures=True),),
    "graph_capture_failed": (
        Change(label="--disable-cuda-graph", risk="medium", note="slower decoding, and the real error shows"),
    ),
    "build_oom": (Change(label="smaller max_batch_size and max_num_tokens in the build", risk="low"),),
    "context_exceeded": (Change(label="-c larger, or fewer slots (-np 1)", risk="low", note="llama-server"),),
}
