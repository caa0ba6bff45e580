"""TrainingSpec: everything about a training step that its memory depends on, beside the model and the GPU."""

from __future__ import annotations

from typing import Literal

from memplan.records import dataclass

Method = Literal["full", "lora", "dora", "qlora"]
Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3", "fsdp1", "fsdp2"]
# Those that cut weights up, and gather a layer before it runs.
GATHERING: tuple[Sharding, ...] = ("zero3", "fsdp1", "fsdp2")
Checkpointing = Literal["none", "selective", "full"]
OptimizerName = Literal["adamw", "adamw-8bit", "paged-adamw-8bit", "paged-adamw", "adafactor", "sgd", "lion", "muon"]
OptimizerForm = Literal["foreach", "fused", "for-loop"]
Attention = Literal["sdpa", "flash", "efficient", "math", "eager"]
Loss = Literal["plain", "plain-flat", "compiled", "in-place", "fused", "linear", "chunked"]
Float8Recipe = Literal["tensorwise", "tensorwise-gather", "rowwise", "delayed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLayout:
    """Ranks: `data` shards or replicates, the others cut the model or the sequence. `nodes_sharded` for HSDP: over how
    many ranks parameters are sharded (None: all data ranks).
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    context: int = 1
    virtual_stages: int = 1
    shard: int | None = None
    sequence_parallel: bool = False

    @property
    def ranks(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def shards(self) -> int:
        """Over how many ranks parameters are cut."""
        return self.shard or self.data * self.context

    @property
    def copies(self) -> int:
        """How many copies of the parameters there are beside those cuts."""
        return self.data * self.context // self.shards


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """One step of training. Bytes are of one element.

    `weight_bytes` is how parameters are kept, `compute_bytes` how they are multiplied; where they differ, `autocast`
    says that copies are made operator by operator (without sharding). `attention` `sdpa` is PyTorch's own choice of a
    kernel. `caches_keys`: a KV cache is filled beside training, by copies (transformers from 4.56 on without
    checkpointing, where `use_cache` is left on; the Trainer of 5 turns it off). `reentrant` is the older form of
    checkpointing, the default of transformers 4. `master_bytes` are kept beside parameters that are themselves kept
    in 16 bits. `kernels` names the set of operators: `transformers`, `fused` (Liger and its like), `compiled`.
    `float8` is the recipe by which linear layers of the model's layers are multiplied in 8 bits, None for 16.
    `sub_group_elements` are those of which ZeRO-3 makes FP32 gradients at a time where a rank has more, else 0.
    `bucket_elements` are those of the bucket that ZeRO reduces gradients in, `live_elements` the parameters that
    ZeRO-3 keeps gathered because they are needed again soon. `saves_attention`: selective checkpointing keeps what
    attention makes. `wide_state`: norms are kept
    in FP32 and the layers in between return the type that they are given, so that the state between them is FP32.
    `dispatches_experts`: experts as torchtitan runs them. `gathers_again`: what sequence parallelism gathers for a
    product is gathered once more in the backward pass instead of being kept.
    `expandable_segments`: PyTorch's allocator grows its segments page by page.
    """

    method: Method = "full"
    lora_rank: int = 16
    lora_targets: tuple[str, ...] = ()
    lora_dropout: bool = False
    adapters_in_float: bool = True
    adapters_cast: bool = True
    autocast: bool = False
    weight_bytes: int = 2
    compute_bytes: int = 2
    grad_bytes: int = 2
    state_bytes: int = 2
    master_bytes: int = 0
    reduce_bytes: int | None = None
    optimizer: OptimizerName = "adamw"
    optimizer_form: OptimizerForm = "foreach"
    optimizer_in_backward: bool = False
    sharding: Sharding = "none"
    layout: TrainingLayout = TrainingLayout()
    micro_batch: int = 1
    sequence_tokens: int = 2048
    accumulation: int = 1
    checkpointing: Checkpointing = "full"
    reentrant: bool = True
    attention: Attention = "flash"
    caches_keys: bool = False
    loss: Loss = "plain"
    loss_chunks: int = 8
    keeps_logits: bool = True
    keeps_wide_logits: bool = False
    loss_parallel: bool = True
    kernels: Literal["transformers", "fused", "compiled"] = "transformers"
    float8: Float8Recipe | None = None
    fused_adapters: bool = False
    hidden_dropout: bool = False
    loops_experts: bool = False
    dispatches_experts: bool = False
    gathers_again: bool = False
    splits_outside: bool = False
    keeps_gradients: bool = False
    offload_parameters: bool = False
    offload_optimizer: bool = False
    offload_activations: bool = False
    bucket_elements: int = 0
    sub_group_elements: int = 0
    live_elements: int = 0
    saves_attention: bool = True
    wide_state: bool = False
    expandable_segments: bool = False
    workspace_bytes: int = 8519680
