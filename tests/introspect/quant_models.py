"""Small models for the tests of quantization: a dense decoder, a mixture of experts, a wrapper with a tower."""

from __future__ import annotations

from dataclasses import replace

from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, ModelSpec, Tower
from memplan.domain.tensors import Role, Tensor
from memplan.introspect import blocks
from memplan.introspect.blocks import Heads

HIDDEN, MLP, VOCAB = 256, 512, 1024
HEADS = Heads(hidden=HIDDEN, num_heads=4, num_kv_heads=2, key_width=64, value_width=64)


def _layer(kind: str, tensors: tuple[Tensor, ...]) -> Layer:
    norms = blocks.norms(("input_layernorm", "post_attention_layernorm"), HIDDEN)
    return Layer(kind=kind, caches=(HEADS.full(),), tensors=(*blocks.attention(HEADS), *tensors, *norms), num_heads=4)


def _spec(name: str, layers: tuple[Layer, ...], **more: object) -> ModelSpec:
    spec = ModelSpec(
        name=name,
        model_type="toy",
        architecture="ToyForCausalLM",
        dtype=DType.BF16,
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        num_heads=4,
        max_context_tokens=4096,
        layers=layers,
        shared=(
            blocks.embedding("model.embed_tokens", VOCAB, HIDDEN),
            *blocks.norm("model.norm", HIDDEN),
            *blocks.lm_head("lm_head", VOCAB, HIDDEN),
        ),
    )
    return replace(spec, **more)  # type: ignore[arg-type]


def dense(num_layers: int = 4) -> ModelSpec:
    """Layers of attention and a gated MLP, one object for all."""
    layer = _layer("dense", blocks.mlp(HIDDEN, MLP))
    return _spec("toy-dense", (layer,) * num_layers)


def mixture(num_layers: int = 4, num_experts: int = 8) -> ModelSpec:
    """A dense layer, then layers with a router, routed experts and a shared expert."""
    routed = (
        *blocks.replicated("mlp.gate", num_experts, HIDDEN, Role.ROUTER),
        *blocks.experts(HIDDEN, 128, num_experts),
        *blocks.mlp(HIDDEN, 128, prefix="mlp.shared_experts", role=Role.SHARED_EXPERT),
    )
    first, other = _layer("dense", blocks.mlp(HIDDEN, MLP)), _layer("moe", routed)
    return _spec("toy-moe", (first, *(other,) * (num_layers - 1)))


def fused() -> ModelSpec:
    """Projections that the checkpoint stores fused, and experts in one tensor."""
    layer = Layer(
        kind="moe",
        caches=(HEADS.full(),),
        tensors=(
            *blocks.column("self_attn.qkv_proj", 512, HIDDEN, 4, Role.ATTENTION),
            *blocks.row("self_attn.o_proj", HIDDEN, 256, 4, Role.ATTENTION),
            Tensor(name="mlp.experts.gate_up_proj", shape=(256, HIDDEN), role=Role.EXPERT, count=8, linear=True),
            Tensor(name="mlp.experts.down_proj", shape=(HIDDEN, 128), role=Role.EXPERT, count=8, linear=True),
        ),
    )
    return _spec("toy-fused", (layer,) * 2)


def wrapped() -> ModelSpec:
    """A dense decoder inside a wrapper, beside a vision tower of four layers."""
    tower = Tower(
        role=Role.VISION,
        tensors=(
            Tensor(
                name="model.visual.blocks.*.attn.qkv.weight", shape=(384, 128), role=Role.VISION, count=4, linear=True
            ),
            Tensor(name="model.visual.patch_embed.proj.weight", shape=(128, 3, 2, 16, 16), role=Role.VISION),
        ),
    )
    return replace(dense(), layer_prefix="model.language_model.layers.", towers=(tower,))


def storages(spec: ModelSpec, index: int = 0) -> dict[str, str | None]:
    """The scheme that each tensor of a layer is stored in, by its name without `.weight`."""
    layer = spec.layers[index]
    return {each.name.removesuffix(".weight"): each.storage.scheme if each.storage else None for each in layer.tensors}


def quantized_names(spec: ModelSpec, index: int = 0) -> set[str]:
    """The names of a layer's tensors that are not plain."""
    return {name for name, scheme in storages(spec, index).items() if scheme}
