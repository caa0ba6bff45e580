"""The demo model's network for training: Llama's layers over plain functions, with the tensor names of its checkpoints.

Axes at the end of a name: B sequences, T tokens, D hidden, H heads, E head size, O out, I in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_HIDDEN, _MIDDLE, _LAYERS, _HEAD = 256, 512, 6, 64
_HEADS, _KV_HEADS = 4, 2


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(_HIDDEN, _HEADS * _HEAD, bias=False)
        self.k_proj = nn.Linear(_HIDDEN, _KV_HEADS * _HEAD, bias=False)
        self.v_proj = nn.Linear(_HIDDEN, _KV_HEADS * _HEAD, bias=False)
        self.o_proj = nn.Linear(_HEADS * _HEAD, _HIDDEN, bias=False)

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Attend to what came before."""
        batch, tokens, _ = x_BTD.shape
        q_BHTE = _turned(self.q_proj(x_BTD).view(batch, tokens, _HEADS, _HEAD), rotation)
        k_BHTE = _turned(self.k_proj(x_BTD).view(batch, tokens, _KV_HEADS, _HEAD), rotation)
        v_BHTE = self.v_proj(x_BTD).view(batch, tokens, _KV_HEADS, _HEAD).transpose(1, 2)
        repeat = _HEADS // _KV_HEADS
        mixed_BHTE = functional.scaled_dot_product_attention(
            q_BHTE, k_BHTE.repeat_interleave(repeat, 1), v_BHTE.repeat_interleave(repeat, 1), is_causal=True
        )
        mixed: Tensor = self.o_proj(mixed_BHTE.transpose(1, 2).reshape(batch, tokens, _HEADS * _HEAD))
        return mixed


class Mlp(nn.Module):
    """The gated linear unit."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(_HIDDEN, _MIDDLE, bias=False)
        self.up_proj = nn.Linear(_HIDDEN, _MIDDLE, bias=False)
        self.down_proj = nn.Linear(_MIDDLE, _HIDDEN, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """SwiGLU."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return out


class Norm(nn.Module):
    """Root mean square normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(_HIDDEN))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normalize in the type of `x_BTD`."""
        return functional.rms_norm(x_BTD, (_HIDDEN,), self.weight.to(x_BTD.dtype), 1e-5)


class Block(nn.Module):
    """Attention and the gated unit, each beside the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = Norm()
        self.self_attn = Attention()
        self.post_attention_layernorm = Norm()
        self.mlp = Mlp()

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """One layer."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotation)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Network(nn.Module):
    """Six layers between an embedding and the same embedding as the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(int(CONFIG["vocab_size"]), _HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(_LAYERS))
        self.norm = Norm()
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.02 / (2 * _LAYERS) ** 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
                nn.init.normal_(parameter, std=scale)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy of the targets, in nats."""
        rotation = _rotation(tokens_BT.shape[1])
        x_BTD = self.embed_tokens(tokens_BT).bfloat16()
        for layer in self.layers:
            x_BTD = layer(x_BTD, rotation)
        logits = functional.linear(self.norm(x_BTD), self.embed_tokens.weight.bfloat16())
        return functional.cross_entropy(logits.float().flatten(0, 1), targets_BT.flatten())


def _rotation(tokens: int) -> tuple[Tensor, Tensor]:
    frequency = 10000.0 ** (-torch.arange(0, _HEAD, 2) / _HEAD)
    angle_TE = torch.outer(torch.arange(tokens), frequency).repeat(1, 2)
    return angle_TE.cos().bfloat16()[:, None], angle_TE.sin().bfloat16()[:, None]


def _turned(x_BTHE: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs (i, i + E/2), as Llama's checkpoints expect; returns heads before tokens."""
    cos, sin = rotation
    first, second = x_BTHE.chunk(2, dim=-1)
    return (x_BTHE * cos + torch.cat((-second, first), dim=-1) * sin).transpose(1, 2)
