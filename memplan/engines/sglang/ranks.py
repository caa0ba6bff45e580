"""How SGLang cuts a model over ranks: tensor, pipeline and expert parallelism, and attention in data-parallel groups.

Source: sglang/srt/layers/dp_attention.py, models/deepseek_v2.py, server_args.py, 0.3 to 0.5.23.
"""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.options import EngineOptions
from memplan.errors import UsageError
from memplan.records import dataclass

_ALL_TO_ALL = ("deepep", "mooncake", "megamoe", "ascend_fuseep")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """How SGLang cuts a model: `tensor` ranks in a stage, of which `attention` share one copy of the attention.

    With DP attention `attention` is smaller than `tensor`: every group of them holds whole attention weights and a
    cache of its own. `experts` is the expert-parallel size, a part of `tensor`; `shared_experts`, `dense` and `head`
    are the ranks over which shared experts, dense MLPs and the head are cut. `replicas` are copies on other GPUs.
    """

    tensor: int
    pipeline: int
    attention: int
    experts: int
    shared_experts: int
    dense: int
    head: int
    replicas: int

    @property
    def attention_groups(self) -> int:
        return self.tensor // self.attention

    @property
    def num_gpus(self) -> int:
        return self.tensor * self.pipeline * self.replicas


def read_ranks(spec: ModelSpec, gpu: GpuSpec, asked: ServingSettings, options: EngineOptions, rules: Rules) -> Ranks:
    """Return the cut that the common options and SGLang's own ask for.

    Raises: UsageError when a size does not divide another.
    """
    layout = asked.layout
    tensor = options.count("tp_size", "tp", "tensor_parallel_size") or layout.tensor
    pipeline = options.count("pp_size", "pp", "pipeline_parallel_size") or layout.pipeline
    data = options.count("dp_size", "dp", "data_parallel_size") or layout.data
    groups = options.count("attn_dp_size") or (data if options.flag("enable_dp_attention") else 1)
    if tensor % groups:
        raise UsageError(
            f"--tp {tensor} does not divide into {groups} attention groups",
            hint="with DP attention the data-parallel size is a divisor of --tp",
        )
    experts = options.count("ep_size", "ep", "expert_parallel_size")
    sends_tokens = bool(options.flag("enable_deepep_moe")) or options.word("moe_a2a_backend") in _ALL_TO_ALL
    if experts is None:
        experts = tensor if layout.expert or options.flag("enable_ep_moe") or sends_tokens else 1
    if tensor % experts:
        raise UsageError(f"ep_size {experts} does not divide --tp {tensor}", hint="use a divisor of --tp")
    return Ranks(
        tensor=tensor,
        pipeline=pipeline,
        attention=tensor // groups,
        experts=experts,
        shared_experts=1 if sends_tokens or _copies_shared_expert(spec, gpu, options, rules) else tensor,
        dense=options.count("moe_dense_tp_size") or tensor,
        head=tensor // groups if options.flag("enable_dp_lm_head") else tensor,
        replicas=1 if groups > 1 else data,
    )


def _copies_shared_expert(spec: ModelSpec, gpu: GpuSpec, options: EngineOptions, rules: Rules) -> bool:
    """Whether every rank holds a whole shared expert among its routed ones."""
    if rules["shared_expert_copies"] == "cut" or options.flag("disable_shared_experts_fusion"):
        return False
    routed = {layer.mlp.num_experts for layer in spec.layers if layer.mlp and layer.mlp.num_experts}
    recent = gpu.vendor == "amd" if gpu.cuda_capability is None else gpu.cuda_capability >= 9.0
    return spec.architecture == "DeepseekV3ForCausalLM" and routed == {256} and recent
