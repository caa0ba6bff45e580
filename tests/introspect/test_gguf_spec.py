from dataclasses import replace

import pytest
from checkpoint_files import GgufBytes

from memplan.budget.storage import checkpoint_bytes
from memplan.domain.attention import (
    Cache,
    ChunkedLocal,
    CompressedAttention,
    CompressorState,
    FullAttention,
    IndexerKeys,
    LatentAttention,
    LatentWindow,
    LinearState,
    NoCache,
    SharedKV,
    SlidingWindow,
)
from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role, ShardKind
from memplan.errors import UnsupportedModel
from memplan.introspect.bytesource import MemorySource
from memplan.introspect.gguf import Gguf, parse_gguf
from memplan.introspect.gguf_spec import gguf_to_spec

HIDDEN, HEADS, KV_HEADS, WIDTH, INNER, VOCAB = 256, 8, 2, 32, 512, 1024
FULL = FullAttention(KV_HEADS, WIDTH, WIDTH)
WINDOW = SlidingWindow(KV_HEADS, WIDTH, WIDTH, 64)
ATTENTION = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (64, HIDDEN),
    "attn_v": (64, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
}
MLP = {"ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}
EXPERTS = {
    "ffn_gate_inp": (8, HIDDEN),
    "ffn_gate_exps": (8, INNER, HIDDEN),
    "ffn_up_exps": (8, INNER, HIDDEN),
    "ffn_down_exps": (8, HIDDEN, INNER),
}
STATE = {"ssm_in": (1024, HIDDEN), "ssm_out": (HIDDEN, INNER)}
SSM = {"ssm.conv_kernel": 4, "ssm.inner_size": 512, "ssm.state_size": 16, "ssm.time_step_rank": 16}
Shapes = dict[str, tuple[int, ...]]


def file_of(architecture: str, layers: list[Shapes], keys: dict[str, object], *, head: bool = True) -> GgufBytes:
    file = GgufBytes().key("general.architecture", architecture)
    standard: dict[str, object] = {
        "block_count": len(layers),
        "context_length": 4096,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
    }
    for key, value in {**standard, **keys}.items():
        if value is not None:
            file.key(key if key.startswith("general.") else f"{architecture}.{key}", value)
    file.tensor("token_embd.weight", (VOCAB, HIDDEN), 14, VOCAB * 210)
    if head:
        file.tensor("output.weight", (VOCAB, HIDDEN), 14, VOCAB * 210)
    file.tensor("output_norm.weight", (HIDDEN,), 0, HIDDEN * 4)
    for index, shapes in enumerate(layers):
        for name, shape in shapes.items():
            size_bytes = 144
            for axis in shape:
                size_bytes *= axis
            file.tensor(f"blk.{index}.{name}.weight", shape, 12, size_bytes // 256)
        file.tensor(f"blk.{index}.attn_norm.weight", (HIDDEN,), 0, HIDDEN * 4)
    return file


def header_of(architecture: str, layers: list[Shapes], keys: dict[str, object] | None = None, **more: bool) -> Gguf:
    return parse_gguf(MemorySource(file_of(architecture, layers, keys or {}, **more).build(), f"{architecture}.gguf"))


def spec_of(architecture: str, layers: list[Shapes], keys: dict[str, object] | None = None, **more: bool) -> ModelSpec:
    gguf = header_of(architecture, layers, keys, **more)
    spec = gguf_to_spec(gguf, "name")
    assert spec.weights_source == "headers"
    assert spec.stored_bytes == gguf.tensor_bytes == checkpoint_bytes(spec)
    assert sum(len(layer.tensors) for layer in spec.layers) + len(spec.shared) + len(spec.mtp) == len(gguf.tensors)
    return spec


def caches_of(spec: ModelSpec) -> list[tuple[Cache, ...]]:
    return [layer.caches for layer in spec.layers]


DENSE = {**ATTENTION, **MLP}
MOE = {**ATTENTION, **EXPERTS}


@pytest.mark.parametrize(
    "architecture",
    [
        *("llama", "qwen2", "qwen3", "gemma", "phi2", "phi3", "starcoder2", "command-r", "glm4", "chatglm", "stablelm"),
        *("falcon", "granite", "internlm2", "nemotron", "exaone", "bitnet", "mistral3", "olmo2", "baichuan", "gpt2"),
    ],
)
def test_an_ordinary_architecture_keeps_every_token_in_every_layer(architecture: str) -> None:
    spec = spec_of(architecture, [DENSE] * 3)
    assert caches_of(spec) == [(FULL,)] * 3
    assert spec.notes == ("the file does not name its type: the one that holds most bytes is given",)
    assert spec.layers[0] is spec.layers[2]
    assert (spec.hidden_size, spec.vocab_size, spec.num_heads, spec.max_context_tokens) == (HIDDEN, VOCAB, HEADS, 4096)
    assert spec.layers[0].query_width == HIDDEN
    assert spec.layer_prefix == "blk."


@pytest.mark.parametrize("architecture", ["qwen2moe", "qwen3moe", "granitemoe", "llama", "olmoe"])
def test_stacked_experts_are_counted_one_by_one(architecture: str) -> None:
    spec = spec_of(architecture, [MOE] * 2, {"expert_count": 8, "expert_used_count": 2})
    mlp = spec.layers[0].mlp
    assert mlp is not None
    assert (mlp.num_experts, mlp.experts_per_token, mlp.intermediate, mlp.gated) == (8, 2, INNER, True)
    expert = next(tensor for tensor in spec.layers[0].tensors if tensor.name == "ffn_up_exps.weight")
    assert (expert.count, expert.shape, expert.role) == (8, (INNER, HIDDEN), Role.EXPERT)
    assert expert.shard.kind is ShardKind.EXPERTS
    assert spec.parameters - spec.active_parameters == 2 * 6 * 3 * INNER * HIDDEN


def test_experts_stored_one_by_one_are_counted_together() -> None:
    single = {f"ffn_{part}.{number}": shape for number in range(4) for part, shape in (("up", (INNER, HIDDEN)),)}
    downs = {f"ffn_down.{number}": (HIDDEN, INNER) for number in range(4)}
    gguf = header_of("llama", [{**ATTENTION, **single, **downs}], {"expert_count": 4, "expert_used_count": 2})
    spec = gguf_to_spec(gguf, "name")
    assert checkpoint_bytes(spec) == gguf.tensor_bytes
    assert {tensor.name: tensor.count for tensor in spec.layers[0].tensors if tensor.role is Role.EXPERT} == {
        "ffn_up.*.weight": 4,
        "ffn_down.*.weight": 4,
    }


@pytest.mark.parametrize(
    ("architecture", "num_layers", "windowed"),
    [
        ("gemma2", 4, [0, 2]),
        ("gemma3", 7, [0, 1, 2, 3, 4, 6]),
        ("cohere2", 4, [0, 1, 2]),
        ("gpt-oss", 4, [0, 2]),
        ("olmo2", 4, [0, 1, 2]),
        ("exaone4", 64, [index for index in range(64) if index % 4 != 3]),
        ("exaone4", 4, []),
        ("laguna", 4, [1, 2, 3]),
        ("phi3", 3, []),
        ("qwen2", 3, []),
    ],
)
def test_windows_follow_each_architectures_pattern(architecture: str, num_layers: int, windowed: list[int]) -> None:
    spec = spec_of(architecture, [DENSE] * num_layers, {"attention.sliding_window": 64})
    assert caches_of(spec) == [(WINDOW if index in windowed else FULL,) for index in range(num_layers)]


def test_a_listed_window_pattern_overrules_the_architectures_own() -> None:
    keys = {"attention.sliding_window": 64, "attention.sliding_window_pattern": [False, True, False, True]}
    for architecture in ("gemma3", "mimo2", "an-unknown-one"):
        assert caches_of(spec_of(architecture, [DENSE] * 4, keys)) == [(FULL,), (WINDOW,), (FULL,), (WINDOW,)]


def test_a_number_as_window_pattern_is_a_period() -> None:
    keys = {"attention.sliding_window": 64, "attention.sliding_window_pattern": 2}
    assert caches_of(spec_of("gemma3", [DENSE] * 4, keys)) == [(WINDOW,), (FULL,), (WINDOW,), (FULL,)]


def test_gemma2_has_its_window_when_the_file_names_none() -> None:
    assert caches_of(spec_of("gemma2", [DENSE] * 2))[0] == (replace(WINDOW, window_tokens=4096),)


def test_gemma3_without_a_window_has_none() -> None:
    assert caches_of(spec_of("gemma3", [DENSE] * 2)) == [(FULL,)] * 2


def test_llama4_keeps_chunks_in_three_layers_of_four() -> None:
    chunk = ChunkedLocal(KV_HEADS, WIDTH, WIDTH, 8192)
    assert caches_of(spec_of("llama4", [DENSE] * 4)) == [(chunk,)] * 3 + [(FULL,)]


def test_gemma3n_shares_caches_after_the_twentieth_layer() -> None:
    spec = spec_of("gemma3n", [DENSE] * 25, {"attention.sliding_window": 64})
    assert caches_of(spec)[18:] == [(WINDOW,), (FULL,), *[(SharedKV(18),)] * 4, (SharedKV(19),)]


def test_gemma4_has_other_widths_in_windows_and_shares_its_last_layers() -> None:
    keys = {
        "attention.sliding_window": 64,
        "attention.sliding_window_pattern": [True, False, True, False],
        "attention.head_count_kv": [2, 1, 2, 1],
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.key_length_swa": 32,
        "attention.value_length_swa": 32,
        "attention.shared_kv_layers": 2,
    }
    spec = spec_of("gemma4", [DENSE] * 4, keys)
    assert caches_of(spec) == [(WINDOW,), (FullAttention(1, 64, 64),), (SharedKV(0),), (SharedKV(1),)]


LATENT_KEYS = {
    "attention.head_count_kv": 1,
    "attention.kv_lora_rank": 64,
    "attention.key_length": 80,
    "attention.value_length": 64,
    "attention.key_length_mla": 48,
    "attention.value_length_mla": 32,
}
MLA = {"attn_kv_a_mqa": (80, HIDDEN), "attn_q": (HIDDEN, HIDDEN), "attn_output": (HIDDEN, HIDDEN)}


@pytest.mark.parametrize("architecture", ["deepseek2", "mistral4"])
def test_latent_attention_keeps_one_latent_per_token(architecture: str) -> None:
    spec = spec_of(architecture, [{**MLA, **MLP}, {**MLA, **EXPERTS}], LATENT_KEYS)
    assert caches_of(spec) == [(LatentAttention(64, 16, HEADS, 48, 32),)] * 2
    assert [layer.kind for layer in spec.layers] == ["dense", "moe"]
    assert spec.layers[0].query_width == HEADS * 48


def test_a_sparse_attention_indexer_keeps_keys_of_its_own() -> None:
    keys = {**LATENT_KEYS, "attention.indexer.key_length": 128}
    assert IndexerKeys(128) in spec_of("deepseek32", [{**MLA, **MLP}], keys).layers[0].caches


@pytest.mark.parametrize("architecture", ["deepseek2", "minicpm3", "plm"])
def test_latent_attention_without_its_later_keys_is_cached_expanded(architecture: str) -> None:
    keys = {"attention.kv_lora_rank": 64, "attention.head_count_kv": 8, "attention.key_length": 48}
    spec = spec_of(architecture, [{**MLA, **MLP}], keys)
    assert caches_of(spec) == [(FullAttention(8, 48, 32),)]
    assert any("expanded" in note for note in spec.notes)


def test_deepseek_v4_keeps_a_window_and_compressed_latents() -> None:
    keys = {
        "attention.head_count_kv": 1,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "rope.dimension_count": 16,
        "attention.sliding_window": 128,
        "attention.compress_ratios": [0, 4, 128],
        "attention.indexer.key_length": 32,
    }
    window = LatentWindow(48, 16, 128)
    assert caches_of(spec_of("deepseek4", [{**MLA, **MLP}] * 3, keys)) == [
        (window,),
        (
            window,
            CompressedAttention(48, 16, 4, CompressorState(256, 8)),
            IndexerKeys(32, 4, CompressorState(128, 8)),
        ),
        (window, CompressedAttention(48, 16, 128, CompressorState(128, 128))),
    ]


def recurrent(kind: str, conv: int, state: int, units: int, kernel: int = 4) -> LinearState:
    return LinearState(kind, conv, state, units, DType.F32, DType.F32, kernel)  # type: ignore[arg-type]


def test_mamba_keeps_a_state_of_fixed_size() -> None:
    keys = {**SSM, "attention.head_count": 0, "attention.head_count_kv": 0, "feed_forward_length": 0}
    assert caches_of(spec_of("mamba", [STATE] * 2, keys)) == [(recurrent("mamba1", 3 * 512, 16 * 512, 512),)] * 2
    grouped = {**keys, "ssm.group_count": 2}
    assert caches_of(spec_of("mamba2", [STATE], grouped)) == [(recurrent("mamba2", 3 * (512 + 64), 16 * 512, 16),)]


@pytest.mark.parametrize("architecture", ["jamba", "granitehybrid", "plamo2"])
def test_layers_without_key_value_heads_are_recurrent_in_hybrids(architecture: str) -> None:
    keys = {**SSM, "attention.head_count_kv": [0, KV_HEADS, 0]}
    layers = [{**STATE, **MLP}, DENSE, {**STATE, **MLP}]
    state = recurrent("mamba1", 3 * 512, 16 * 512, 512)
    assert caches_of(spec_of(architecture, layers, keys)) == [(state,), (FULL,), (state,)]


def test_falcon_h1_attends_and_recurs_in_every_layer() -> None:
    spec = spec_of("falcon-h1", [{**STATE, **DENSE}], {**SSM, "ssm.group_count": 1})
    assert caches_of(spec) == [(FULL, recurrent("mamba2", 3 * (512 + 32), 16 * 512, 16))]
    assert spec.layers[0].num_heads == HEADS


def test_nemotron_h_has_layers_that_keep_nothing() -> None:
    keys = {**SSM, "attention.head_count_kv": [0, KV_HEADS, 0], "feed_forward_length": [0, 0, INNER]}
    spec = spec_of("nemotron_h", [STATE, ATTENTION, {"ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}], keys)
    assert caches_of(spec) == [(recurrent("mamba1", 3 * 512, 16 * 512, 512),), (FULL,), (NoCache(),)]
    assert spec.layers[2].mlp is not None
    assert not spec.layers[2].mlp.gated


@pytest.mark.parametrize("architecture", ["qwen3next", "qwen35"])
def test_gated_delta_nets_stand_between_full_attention(architecture: str) -> None:
    keys = {**SSM, "ssm.group_count": 4, "full_attention_interval": 2}
    delta = recurrent("gated_delta_net", 3 * (512 + 128), 16 * 512, 16)
    assert caches_of(spec_of(architecture, [{**STATE, **MLP}, DENSE] * 2, keys)) == [(delta,), (FULL,)] * 2


def test_lfm2_has_short_convolutions() -> None:
    keys = {"attention.head_count_kv": [0, KV_HEADS], "shortconv.l_cache": 3}
    spec = spec_of("lfm2", [{"shortconv.in_proj": (768, HIDDEN), **MLP}, DENSE], keys)
    assert caches_of(spec) == [(recurrent("short_conv", 2 * HIDDEN, 0, HIDDEN, 3),), (FULL,)]


def test_kimi_linear_mixes_latent_attention_and_linear_layers() -> None:
    keys = {**LATENT_KEYS, "attention.head_count_kv": [0, 1], "kda.head_dim": 32, "ssm.conv_kernel": 4}
    spec = spec_of("kimi-linear", [{**STATE, **MLP}, {**MLA, **MLP}], keys)
    state = recurrent("linear_attention", 3 * 3 * HEADS * 32, 32 * 32 * HEADS, HEADS)
    assert caches_of(spec) == [(state,), (LatentAttention(64, 16, HEADS, 48, 32),)]


def test_rwkv_keeps_shifted_tokens_and_a_matrix() -> None:
    keys = {"wkv.head_size": 64, "attention.head_count": 0, "attention.head_count_kv": None}
    spec = spec_of("rwkv7", [{"time_mix_key": (HIDDEN, HIDDEN)}], keys)
    assert caches_of(spec) == [(recurrent("rwkv", 2 * HIDDEN, 64 * HIDDEN, 4, 0),)]


def test_encoders_keep_nothing_and_generate_nothing() -> None:
    spec = spec_of("bert", [DENSE])
    assert caches_of(spec) == [(NoCache(),)]
    assert not spec.is_generative


def test_prediction_layers_are_apart_from_the_model() -> None:
    spec = spec_of("glm4moe", [DENSE] * 3, {"nextn_predict_layers": 1})
    assert spec.num_layers == 2
    assert {tensor.role for tensor in spec.mtp} == {Role.MTP}
    assert "blk.2.attn_q.weight" in {tensor.name for tensor in spec.mtp}


def test_an_unknown_architecture_is_read_by_the_standard_keys_and_says_so() -> None:
    spec = spec_of("brand-new", [DENSE] * 2)
    assert caches_of(spec) == [(FULL,)] * 2
    assert any("`brand-new`" in note for note in spec.notes)


def test_a_file_without_a_head_ties_it_to_the_embedding() -> None:
    assert spec_of("gemma", [DENSE], head=False).tied_embeddings
    assert not spec_of("gemma", [DENSE]).tied_embeddings


@pytest.mark.parametrize(
    ("number", "scheme", "dtype"),
    [(15, "gguf:q4_k_m", DType.F16), (7 | 1024, "gguf:q8_0", DType.F16), (1, None, DType.F16), (32, None, DType.BF16)],
)
def test_the_file_type_names_the_quantization(number: int, scheme: str | None, dtype: DType) -> None:
    spec = spec_of("llama", [DENSE], {"general.file_type": number})
    assert (spec.quantization, spec.dtype) == (scheme, dtype)


def test_a_file_that_names_no_type_is_named_after_most_of_its_bytes() -> None:
    assert spec_of("llama", [DENSE] * 8).quantization == "gguf:q4_k"


def test_projections_are_cut_by_their_heads() -> None:
    cuts = {tensor.name: tensor.shard for tensor in spec_of("llama", [DENSE]).layers[0].tensors}
    assert (cuts["attn_q.weight"].kind, cuts["attn_q.weight"].units) == (ShardKind.SPLIT, HEADS)
    assert (cuts["attn_k.weight"].kind, cuts["attn_k.weight"].units) == (ShardKind.KV_HEADS, KV_HEADS)
    assert (cuts["ffn_down.weight"].kind, cuts["ffn_down.weight"].units) == (ShardKind.SPLIT, INNER)
    assert cuts["attn_norm.weight"].kind is ShardKind.REPLICATED


def test_scales_beside_a_weight_are_part_of_its_storage() -> None:
    file = file_of("bitnet", [{}], {"block_count": 1})
    file.tensor("blk.0.ffn_down.weight", (HIDDEN, INNER), 35, HIDDEN * INNER // 256 * 66)
    file.tensor("blk.0.ffn_down.scale", (1,), 0, 4)
    gguf = parse_gguf(MemorySource(file.build(), "bitnet.gguf"))
    spec = gguf_to_spec(gguf, "name")
    assert checkpoint_bytes(spec) == gguf.tensor_bytes
    assert {tensor.name for tensor in spec.layers[0].tensors} == {"ffn_down.weight", "attn_norm.weight"}


def test_the_encoder_of_t5_is_a_tower() -> None:
    file = GgufBytes().key("general.architecture", "t5").key("t5.block_count", 1).key("t5.embedding_length", HIDDEN)
    file.key("t5.attention.head_count", HEADS)
    for side in ("enc", "dec"):
        file.tensor(f"{side}.blk.0.attn_q.weight", (HIDDEN, HIDDEN), 1, 2 * HIDDEN * HIDDEN)
    file.tensor("token_embd.weight", (VOCAB, HIDDEN), 1, 2 * VOCAB * HIDDEN)
    spec = gguf_to_spec(parse_gguf(MemorySource(file.build())), "t5")
    assert [tower.role for tower in spec.towers] == [Role.ENCODER]
    assert caches_of(spec) == [(FullAttention(HEADS, WIDTH, WIDTH),)]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"block_count": None}, "no key `llama.block_count`"),
        ({"embedding_length": None}, "no key `llama.embedding_length`"),
        ({"block_count": 0}, "`llama.block_count` must be a whole number from 1"),
        ({"block_count": 100_000}, "at most 4096"),
        ({"block_count": 9}, "no tensors of layer 1 of 9"),
        ({"block_count": "many"}, "not 'many'"),
        ({"attention.head_count_kv": [1, 2, 3][:0] or "x"}, "not 'x'"),
        ({"attention.head_count": 1.5}, "not 1.5"),
        ({"attention.shared_kv_layers": 1}, "to share"),
    ],
)
def test_a_key_that_is_missing_or_impossible_is_named(keys: dict[str, object], says: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        gguf_to_spec(header_of("llama", [DENSE], keys), "name")
    assert says in caught.value.message


def test_a_list_shorter_than_the_layers_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="lists 1 layers of 2"):
        spec_of("llama", [DENSE] * 2, {"attention.head_count_kv": [2]})


@pytest.mark.parametrize(
    ("architecture", "keys", "what"),
    [
        ("clip", {}, "projector"),
        ("llama", {"general.type": "adapter"}, "LoRA adapter"),
        ("llama", {"general.type": "imatrix"}, "importance matrix"),
    ],
)
def test_a_file_that_is_no_language_model_says_what_it_is(
    architecture: str, keys: dict[str, object], what: str
) -> None:
    with pytest.raises(UnsupportedModel, match=what):
        gguf_to_spec(header_of(architecture, [DENSE], keys), "name")


def test_a_vocabulary_alone_is_no_model() -> None:
    with pytest.raises(UnsupportedModel, match="without tensors"):
        gguf_to_spec(parse_gguf(MemorySource(GgufBytes().key("general.architecture", "llama").build())), "name")


def test_a_file_without_an_architecture_says_so() -> None:
    with pytest.raises(UnsupportedModel, match=r"general\.architecture"):
        gguf_to_spec(parse_gguf(MemorySource(GgufBytes().tensor("w", (32,), 0, 128).build())), "name")
