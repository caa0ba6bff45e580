"""ggml's names for the weights of a decoder layer, from the names that checkpoints give them.

Rules are read from top to bottom; the first pattern that is found in a tensor's relative name decides. A few patterns
depend on the layer's other norms: what `post_attention_layernorm` is depends on whether one stands before the MLP.

Source: TensorNameMap (gguf-py/gguf/tensor_mapping.py) and the converters of llama.cpp, as vendored by llama-cpp-python
0.3.36. Checked by: the names and shapes that the real converter gives to 130 models.
"""

from __future__ import annotations

import re

_RULES: tuple[tuple[str, str], ...] = (
    # softmax attention
    (r"(self_attn|attn\.attention|attn|mixer)\.q_proj\.|self\.query|attn\.q\.|SelfAttention\.q\.|q_lin\b", "attn_q"),
    (r"(self_attn|attn\.attention|attn|mixer)\.k_proj\.|self\.key|attn\.k\.|SelfAttention\.k\.|k_lin\b", "attn_k"),
    (r"(self_attn|attn\.attention|attn|mixer)\.v_proj\.|self\.value|attn\.v\.|SelfAttention\.v\.|v_lin\b", "attn_v"),
    (r"q_norm|query_layernorm|q_layernorm", "attn_q_norm"),
    (r"indexer\.k_norm", "indexer.k_norm"),
    (r"indexer\.wq_b", "indexer.attn_q_b"),
    (r"indexer\.wk\.", "indexer.attn_k"),
    (r"indexer\.weights_proj", "indexer.proj"),
    (r"k_norm|key_layernorm|k_layernorm", "attn_k_norm"),
    (r"q_a_proj|^attn\.wq_a", "attn_q_a"),
    (r"q_a_layernorm", "attn_q_a_norm"),
    (r"q_b_proj|^attn\.wq_b", "attn_q_b"),
    (r"^attn\.wkv\.", "attn_kv"),
    (r"^attn\.wo_a", "attn_output_a"),
    (r"^attn\.wo_b", "attn_output_b"),
    (r"kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    (r"kv_a_layernorm", "attn_kv_a_norm"),
    (r"kv_b_proj", "attn_kv_b"),
    (r"sinks", "attn_sinks"),
    (r"linear_attn\.out_proj", "ssm_out"),
    (r"\bc_attn|query_key_value|qkv_proj|Wqkv|wqkv|W_pack|att_proj", "attn_qkv"),
    (r"self_attn\.(o_proj|out_proj|dense)|self_attention\.dense|attention\.(output\.dense|dense|wo)\b", "attn_output"),
    (
        r"attn\.(attention\.)?(c_proj|out_proj)|attn_out\.|attn\.o\.|SelfAttention\.o\.|out_lin\b|attn\.Wo\b|mixer\.o_proj",
        "attn_output",
    ),
    # recurrent mixers
    (r"in_proj_qkvz|in_proj_qkv", "attn_qkv"),
    (r"in_proj_z", "attn_gate"),
    (r"in_proj_ba", "ssm_ba"),
    (r"in_proj_b\.", "ssm_beta"),
    (r"in_proj_a\.", "ssm_alpha"),
    (r"linear_attn\.norm|mixer\.norm|mamba\.norm", "ssm_norm"),
    (r"mamba\.out_proj|mixer\.out_proj", "ssm_out"),
    (r"conv1d", "ssm_conv1d"),
    (r"short_?conv.*in_proj|^conv\.in_proj", "shortconv.in_proj"),
    (r"short_?conv.*out_proj|^conv\.out_proj", "shortconv.out_proj"),
    (r"short_?conv.*conv|^conv\.conv", "shortconv.conv"),
    (r"x_proj", "ssm_x"),
    (r"dt_proj", "ssm_dt"),
    (r"dt_bias", "ssm_dt"),
    (r"A_log", "ssm_a"),
    (r"(mixer|mamba)\.in_proj", "ssm_in"),
    (r"(mixer|mamba)\.D$", "ssm_d"),
    # routed and shared experts
    (r"e_score_correction_bias|expert_bias", "exp_probs_b"),
    (r"shared_expert_gate", "ffn_gate_inp_shexp"),
    (r"shared_experts?\.(gate_proj|w1)|shared_mlp\.gate_proj", "ffn_gate_shexp"),
    (r"shared_experts?\.(up_proj|w3)|shared_mlp\.up_proj", "ffn_up_shexp"),
    (r"shared_experts?\.(down_proj|w2)|shared_mlp\.down_proj", "ffn_down_shexp"),
    (r"experts\.gate_up_proj|block_sparse_moe\.input_linear", "ffn_gate_up_exps"),
    (r"experts\.(\*\.|mlp\.)?(gate_proj|w1\b|w1_stacked)", "ffn_gate_exps"),
    (r"experts\.(\*\.|mlp\.)?(up_proj|w3\b|v1)", "ffn_up_exps"),
    (r"experts\.(\*\.|mlp\.)?(down_proj|w2\b)|block_sparse_moe\.output_linear", "ffn_down_exps"),
    (
        r"mlp\.gate\.|moe\.gate\.|block_sparse_moe\.gate\.|router|^gate\.|feed_forward\.gate\.|mixer\.gate\b|^ffn\.gate\.",
        "ffn_gate_inp",
    ),
    # MLPs
    (r"gate_up_proj|ff_proj|mlp\.Wi\b|ffn\.lin1|mlp\.fc11", "ffn_up"),
    (r"mlp\.fc12", "ffn_gate"),
    (r"gate_proj|feed_forward\.w1|c_fc_0|mlp\.w2|wi_0", "ffn_gate"),
    (r"up_proj|feed_forward\.w3|c_fc_1|mlp\.w1|wi_1", "ffn_up"),
    (r"mlp\.(fc1|fc_in|c_fc)|dense_h_to_4h|intermediate\.dense|^fc1", "ffn_up"),
    (
        r"down_proj|feed_forward\.w2|mlp\.(fc2|fc_out|c_proj)|dense_4h_to_h|^output\.dense|^ff_out|DenseReluDense\.wo",
        "ffn_down",
    ),
    (r"^fc2|mlp\.Wo\b|ffn\.lin2", "ffn_down"),
    # norms
    (r"attention\.(output\.)?LayerNorm|sa_layer_norm|^norm1\.", "attn_output_norm"),
    (r"^output\.LayerNorm|^output_layer_norm|^norm2\.", "layer_output_norm"),
    (r"ln_mlp", "attn_norm_2"),
    (r"pre_feedforward_layernorm|pre_ff_layernorm", "ffn_norm"),
    (r"post_feedforward_layernorm|post_mlp_layernorm", "post_ffw_norm"),
    (r"post_self_attn_layernorm", "post_attention_norm"),
    (r"ln_2|ffn_norm|ff_norm|norm_2|mlp_norm|feedforward_layernorm", "ffn_norm"),
    (
        r"input_layernorm|ln_1|ln_attn|attention_norm|attention_layernorm|attn_norm|norm_1|operator_norm|^ln\b|^norm\.",
        "attn_norm",
    ),
)
_COMPILED = tuple((re.compile(pattern), name) for pattern, name in _RULES)


def layer_name(name: str, siblings: frozenset[str]) -> str:
    """Return ggml's name of a layer's tensor, relative to its layer, with its suffix.

    `siblings` are the checkpoint's names of all tensors of the layer. A name that no rule knows is kept.
    """
    suffix = "bias" if name.endswith((".bias", "_bias")) else "weight"
    if "post_attention_layernorm" in name:
        before_mlp = any("pre_feedforward" in other for other in siblings)
        first = any("input_layernorm" in other for other in siblings)
        return f"{'post_attention_norm' if before_mlp or not first else 'ffn_norm'}.{suffix}"
    if "mixer.out_proj" in name and any("Wqkv" in other for other in siblings):
        return f"attn_output.{suffix}"  # what Mamba 2 calls its output, the first Phi calls that of attention
    for pattern, renamed in _COMPILED:
        if pattern.search(name):
            return f"{renamed}.{suffix}"
    return name


_SHARED: tuple[tuple[str, str], ...] = (
    (r"position_embeddings|wpe|embed_positions", "position_embd"),
    (r"token_type_embeddings", "token_types"),
    (r"embed_tokens_per_layer", "per_layer_token_embd"),
    (r"per_layer_model_projection", "per_layer_model_proj"),
    (r"per_layer_projection_norm", "per_layer_proj_norm"),
    (r"word_embeddings_layernorm|embeddings\.(LayerNorm|norm)\b|^emb_ln", "token_embd_norm"),
    (
        r"embed_tokens|tok_embeddings|wte|word_embeddings|embed_in|^shared\b|^embed(dings?)?\b|backbone\.embed",
        "token_embd",
    ),
    (r"lm_head|output_layer|embed_out|^output\b|^head\.weight|\.output\.weight|ff_out", "output"),
    (r"norm|ln_f", "output_norm"),
)
_SHARED_COMPILED = tuple((re.compile(pattern), name) for pattern, name in _SHARED)
# Heads of classifiers and reward models, poolers and masked-word heads, which the converter leaves out.
_LEFT_OUT = re.compile(
    r"pooler|^classifier|^cls\.|^score\b|v_head|logit_scale|image_newline|masked_spec|new_embedding"
    r"|vocab_transform|vocab_layer_norm|vocab_projector|^head\.(dense|norm)|^decoder\.bias"
)

# A reranker's head, which encoders keep.
_CLASSIFIER = re.compile(r"^classifier\.(dense|out_proj)\.")


def shared_name(name: str, *, is_encoder: bool = False) -> str | None:
    """Return ggml's name of a tensor outside the layers; None for one that the converter leaves out."""
    if is_encoder and (found := _CLASSIFIER.search(name)):
        return f"cls{'.output' if found[1] == 'out_proj' else ''}.{name.rpartition('.')[2]}"
    if _LEFT_OUT.search(name):
        return None
    suffix = "bias" if name.endswith(".bias") else "weight"
    for pattern, renamed in _SHARED_COMPILED:
        if pattern.search(name):
            return f"{renamed}.{suffix}"
    return name
