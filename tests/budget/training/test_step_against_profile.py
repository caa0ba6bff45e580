"""The training budget beside the simulated profile: the same step by formulas and by transformers' own code on meta
tensors, for small models of every family that has its own way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.budget.training.step import Step
from memplan.domain.dtypes import DType
from memplan.domain.training import TrainingLayout, TrainingSpec
from memplan.pipeline import load_model
from memplan.profile.request import TRAINING, ProfileRequest
from memplan.records import replace
from memplan.units import round_up

pytest.importorskip("torch")
pytest.importorskip("transformers")

TOKENS = 512
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 8192,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 768, "norm_topk_prob": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "qwen3_moe": LLAMA | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"} | EXPERTS,
    "mixtral": LLAMA
    | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "gemma2": LLAMA | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "sliding_window": 256},
    "gemma3_text": LLAMA | {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "sliding_window": 256},
    "olmo2": LLAMA | {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "num_key_value_heads": 16},
    "phi3": LLAMA | {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": 0},
    "gpt_neox": {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 3,
        "num_attention_heads": 16,
        "vocab_size": 8192,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 1024,
        "n_layer": 3,
        "n_head": 16,
        "n_positions": 1024,
        "vocab_size": 8192,
    },
    "deepseek_v3": LLAMA
    | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_key_value_heads": 16,
        "q_lora_rank": 384,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "head_dim": 32,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 768,
        "first_k_dense_replace": 1,
    },
    "lfm2": LLAMA
    | {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "layer_types": ["conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False,
    },
}
FULL = ProfileRequest(
    model="",
    offline=True,
    phases=TRAINING,
    batch=2,
    prompt_tokens=TOKENS,
    dtype=DType.BF16,
    optimizer="adamw-foreach",
    warmup=1,
)
STEP = TrainingSpec(
    micro_batch=2,
    sequence_tokens=TOKENS,
    attention="sdpa",
    loss="plain-flat",
    reentrant=False,
    checkpointing="none",
    caches_keys=True,
    workspace_bytes=8519680,
)


def folder(tmp_path: Path, family: str) -> str:
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[family]), encoding="utf-8")
    return str(tmp_path)


def profiled(request: ProfileRequest) -> dict[str, int]:
    """Peaks of the last step by phase, in blocks of 512 bytes."""
    from memplan.profile.execute import record

    log = record(request).log
    found: dict[str, int] = {}
    level = 0
    for mark, start, stop in log.spans():
        peak = level
        for number in log.order[start:stop]:
            size = round_up(log.sizes[abs(number) - 1], 512)
            level += size if number > 0 else -size
            peak = max(peak, level)
        found[mark.phase] = peak
    return found


def assert_agree(model: str, request: ProfileRequest, training: TrainingSpec, within: float = 0.015) -> None:
    spec = load_model(model, revision=None, offline=True, introspect="auto")
    theirs = profiled(replace(request, model=model))
    ours = {phase.name: phase.peak_bytes for phase in Step(spec, training).run()}
    apart = {phase: ours[phase] / theirs[phase] - 1 for phase in ("forward", "backward", "optimizer")}
    assert all(abs(each) <= within for each in apart.values()), apart


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_step_holds_what_the_models_own_code_holds(tmp_path: Path, family: str) -> None:
    assert_agree(folder(tmp_path, family), FULL, STEP)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "qwen3_moe", "deepseek_v3", "lfm2"])
def test_adapters_with_checkpointing_hold_what_the_models_own_code_holds(tmp_path: Path, family: str) -> None:
    request = replace(FULL, checkpointing=True, lora_rank=8)
    training = replace(
        STEP, checkpointing="full", caches_keys=False, method="lora", lora_rank=8, lora_targets=(), state_bytes=4
    )
    assert_agree(folder(tmp_path, family), request, training)


@pytest.mark.parametrize("attention", ["flash", "efficient", "math", "eager"])
def test_every_attention_holds_what_its_kernel_holds(tmp_path: Path, attention: Any) -> None:
    request = replace(FULL, attention=attention, checkpointing=True, optimizer="adamw-fused")
    training = replace(STEP, attention=attention, checkpointing="full", caches_keys=False, optimizer_form="fused")
    assert_agree(folder(tmp_path, "llama"), request, training)


@pytest.mark.parametrize("is_mixed", [False, True])
def test_a_rank_of_fsdp2_holds_what_its_own_code_holds(tmp_path: Path, is_mixed: bool) -> None:
    request = replace(FULL, sharing="fsdp", num_ranks=4, checkpointing=True)
    training = replace(STEP, sharding="fsdp2", layout=TrainingLayout(data=4), checkpointing="full", caches_keys=False)
    if is_mixed:
        request = replace(request, dtype=DType.F32, mixed_precision=DType.BF16)
        training = replace(training, weight_bytes=4, grad_bytes=4, state_bytes=4, reduce_bytes=4)
    assert_agree(folder(tmp_path, "llama"), request, training)
