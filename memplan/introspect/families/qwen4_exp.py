"""Qwen4-Exp: delta nets and gated attention between hyper-connections, and embeddings of n-grams inside some layers.

Source: the modelling code and configuration defaults of transformers 5.23; vLLM 0.33.0, `models/qwen4_exp`, for the
states (those of the n-gram layers are whole on every rank). Not modelled: the raw keys that the indexer keeps for the
group of tokens it has not closed yet, a kilobyte a layer and sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.attention import IndexerKeys, LinearState
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, windows
from memplan.introspect.config import Config
from memplan.introspect.families.decoder import Decoder, Frame
from memplan.introspect.families.delta_net import MOE_35, every_fourth, qwen_attention, read_delta_net, split_inputs
from memplan.introspect.recurrent import delta_net
from memplan.introspect.stack import Mixer, per_layer
from memplan.records import replace
from memplan.units import round_up

_INDEXED = "indexed_attention"
_LINEAR = "linear_attention"
_MAX_TABLES = 4096
_LARGEST_TABLE = 3_215_031_751  # below it the four bases of `_is_prime` leave no doubt


def _indexed_attention(config: Config) -> Mixer:
    """Gated attention, whose indexer keeps one key for a group of tokens."""
    made = qwen_attention(config, kv=2)
    heads = config.optional_int("indexer_n_heads", minimum=1)
    if heads is None:
        return made
    width, hidden = config.int("indexer_head_dim"), config.int(*blocks.HIDDEN)
    rows = (heads + config.int("indexer_kv_heads", default=1)) * width
    name = "self_attn.indexer"
    tensors = (
        *blocks.replicated(f"{name}.index_qk_proj", rows, hidden, Role.INDEXER),
        *blocks.norms((f"{name}.q_layernorm", f"{name}.k_layernorm"), width),
    )
    keys = IndexerKeys(width, config.int("indexer_compress_ratio", default=1))
    return replace(made, tensors=(*made.tensors, *tensors), caches=(*made.caches, keys))


def _is_prime(number: int) -> bool:
    """Miller and Rabin's test with bases that decide it below 3.2 billion."""
    if number < 2 or any(number % small == 0 for small in (2, 3, 5, 7)):
        return number in (2, 3, 5, 7)
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7):
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def _table_rows(config: Config, num_tables: int) -> list[int]:
    """Every hashed table has a prime number of rows of its own, in ascending order from the base."""
    base = config.int("ngram_vocab_size_base", default=20_000_000)
    if num_tables > _MAX_TABLES or base > _LARGEST_TABLE // 2:
        raise UnsupportedModel("config keys `ngram_vocab_size_base` and `ple_layer_ids` ask for too many tables")
    rows: list[int] = []
    number = base
    while len(rows) < num_tables:
        if _is_prime(number):
            rows.append(number)
        number += 1
    return rows


def _ngram_layer(config: Config, position: int) -> tuple[tuple[Tensor, ...], LinearState]:
    """The n-gram embeddings of the layer that is at `position` among those that have them, and their state."""
    hidden, streams = config.int(*blocks.HIDDEN), config.int("hc_count", default=4)
    width = hidden * streams
    embedding = config.nullable_int("ple_embed_dim", default=hidden, minimum=1) or hidden
    order, kernel = config.int("ngram_size", default=3), config.int("ple_conv_kernel_size", default=4)
    tables = (order - 1) * config.int("heads_per_ngram", default=8)
    if not tables or kernel < 2:
        raise UnsupportedModel("config keys `ngram_size` and `ple_conv_kernel_size` must be 2 or more")
    rows = _table_rows(config, (position + 1) * tables)[position * tables :]
    padded = round_up(sum(rows), config.int("make_ngram_vocab_size_divisible_by", default=128))
    role = Role.EMBEDDING
    tensors = (
        blocks.embedding("ple.ple_embedding.ngram_embedding", padded, embedding // tables),
        *blocks.replicated("ple.key_proj", width, embedding, role),
        *blocks.replicated("ple.value_proj", hidden, embedding, role),
        *blocks.norms(("ple.norm_key", "ple.norm_query", "ple.norm_conv"), width),
        *blocks.conv1d("ple.conv1d", width, kernel, 1),
    )
    inputs = (kernel - 1) * order
    state = LinearState(
        kind="short_conv", conv_elements=width * inputs, state_elements=0, shard_units=1, conv_kernel=inputs + 1
    )
    return tensors, state


def _mixers(config: Config) -> Sequence[Mixer]:
    num_layers = config.num_layers()
    numbers = sorted({number - 1 for number in config.ints("ple_layer_ids", default=())})
    positions: list[int | None] = [numbers.index(index) if index in numbers else None for index in range(num_layers)]
    kinds = windows.layer_types(config, num_layers, every_fourth)

    def mixer(layer: tuple[str, int | None]) -> Mixer:
        kind, position = layer
        if kind in (_INDEXED, windows.FULL):
            made = _indexed_attention(config)
        elif kind == _LINEAR:
            net = read_delta_net(config)
            made = delta_net(net, split_inputs(net))
        else:
            raise windows.unknown_kind(kind, (_INDEXED, windows.FULL, _LINEAR))
        if position is None:
            return made
        tensors, state = _ngram_layer(config, position)
        return replace(made, tensors=(*made.tensors, *tensors), caches=(*made.caches, state))

    return per_layer(list(zip(kinds, positions, strict=True)), mixer)


def _connection(config: Config, name: str, *, injects: bool = True) -> tuple[Tensor, ...]:
    """What mixes the residual streams into one, through a bottleneck, and weighs what comes back."""
    streams, rank = config.int("hc_count", default=4), config.int("hc_lowrank", default=320)
    width, role = streams * config.int(*blocks.HIDDEN), Role.OTHER
    return (
        *blocks.norm(f"{name}.hc_norm", width),
        *blocks.replicated(f"{name}.input_mix_weight_down", rank, width, role),
        *blocks.replicated(f"{name}.input_mix_weight_up", width, rank, role),
        *(blocks.replicated(f"{name}.block_inject_weight", streams, width, role) if injects else ()),
    )


QWEN4_EXP = Decoder(
    mixers=_mixers,
    routed=MOE_35,
    layer_norms=lambda config: (
        *_connection(config, "attn_hyper_connection"),
        *_connection(config, "mlp_hyper_connection"),
    ),
    frame=Frame(final_norm="", extra=lambda config: _connection(config, "model.hyper_connection_mixer", injects=False)),
)
