"""Print the catalogue entry of a model: from its config.json, only the keys that decide weights and cache.

    python benchmarks/catalogue/trim_config.py config.json --name org/model [--alias NAME ...] [--released 2024-07]

The family's reader runs over a config that notes which keys are asked for; those that are there are kept, with the few
that rebuild the model's code (rotary settings). Long periodic lists are written by their cycle or their runs, numbered
keys by ranges, long lists of unquantized modules by patterns, when the patterns leave exactly the same matrices alone.
Before anything is printed the trimmed config is read again and must give the same model as the whole one.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from memplan.catalog.models import unfold
from memplan.domain.model import ModelSpec
from memplan.errors import UnsupportedModel
from memplan.introspect.model_folder import spec_from_config
from memplan.introspect.quantized import find_quantization

WIDTH = 116
LONG_LIST = 8
LONG_NAMES = 12
# Kept where present though no reader of weights asks for them: they rebuild the model's code.
ALWAYS = {
    *("architectures", "model_type", "torch_dtype", "dtype", "tie_word_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "max_position_embeddings"),
    *("sliding_window", "layer_types", "hidden_act"),
}
WHOLE = {"rope_scaling", "rope_parameters"}
DROPPED = {"transformers_version", "auto_map", "_name_or_path", "name_or_path"}
# Settings of generation, training and old transformers, which some configs carry in full.
IDLE = {
    *("add_cross_attention", "attention_dropout", "attn_implementation", "aux_loss_alpha", "bad_words_ids"),
    *("begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward", "cross_attention_hidden_size"),
    *("decoder_start_token_id", "diversity_penalty", "do_sample", "dropout", "dropout_rate", "early_stopping"),
    *("embd_pdrop", "encoder_no_repeat_ngram_size", "eos_token_id", "ep_size", "exponential_decay_length_penalty"),
    *("finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label", "initializer_factor"),
    *("initializer_range", "is_decoder", "is_encoder_decoder", "label2id", "layer_norm_eps", "length_penalty"),
    *("max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences"),
    *("output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix", "pretraining_tp"),
    *("problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty", "resid_pdrop", "return_dict"),
    *("return_dict_in_generate", "rms_norm_eps", "seq_aux", "sep_token_id", "suppress_tokens"),
    *("task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k"),
    *("top_p", "torchscript", "typical_p", "use_bfloat16", "use_cache", "_attn_implementation"),
}
FIRST = (
    *("architectures", "model_type", "torch_dtype", "dtype", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings"),
)


class Recorded(dict[str, object]):
    """A config mapping that notes which of its keys were asked for, nested mappings included."""

    def __init__(self, raw: Mapping[str, object]) -> None:
        super().__init__({key: _recorded(value) for key, value in raw.items()})
        self.asked: set[str] = set()
        self.whole = False

    def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __len__(self) -> int:
        self.whole = True
        return super().__len__()

    def __getitem__(self, key: str) -> object:
        self.asked.add(key)
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        self.whole = True
        return super().__iter__()

    def keys(self):
        self.whole = True
        return super().keys()

    def items(self):
        self.whole = True
        return super().items()

    def values(self):
        self.whole = True
        return super().values()

    def trimmed(self, *, nulls: bool) -> dict[str, object]:
        """The keys that were asked for, or all when the mapping was walked through; null ones only with `nulls`."""
        kept = {}
        for key in dict.keys(self):
            value = dict.__getitem__(self, key)
            if key in DROPPED or not (self.whole or key in self.asked or key in ALWAYS):
                continue
            if value is None and not (nulls and key in self.asked):
                continue
            kept[key] = _plain(value, nulls=nulls) if key in WHOLE else _trimmed(value, nulls=nulls)
        return kept


def _recorded(value: object) -> object:
    if isinstance(value, dict):
        return Recorded(value)
    return [_recorded(item) for item in value] if isinstance(value, list) else value


def _trimmed(value: object, *, nulls: bool) -> object:
    if isinstance(value, Recorded):
        return value.trimmed(nulls=nulls)
    return [_plain(item, nulls=nulls) for item in value] if isinstance(value, list) else value


def _plain(value: object, *, nulls: bool) -> object:
    """An element of a list is kept whole but for nulls: lists are read through."""
    if isinstance(value, dict):
        items = {key: dict.__getitem__(value, key) for key in dict.keys(value)}
        return {key: _plain(item, nulls=nulls) for key, item in items.items() if nulls or item is not None}
    return [_plain(item, nulls=nulls) for item in value] if isinstance(value, list) else value


def read_raw(path: Path) -> dict[str, object]:
    """Return a config, with ModelOpt's own file beside it as its quantization when it has none itself."""
    raw: dict[str, object] = json.loads(path.read_text())
    beside = path.with_name("hf_quant_config.json")
    if find_quantization(raw) is None and beside.exists():
        raw["quantization_config"] = {**json.loads(beside.read_text()), "quant_method": "modelopt"}
    return raw


def trim(raw: Mapping[str, object], name: str) -> dict[str, object]:
    """Return the config less what no reader asks for. Raises: ValueError when less does not give the same model."""
    recorded = Recorded(raw)
    whole = spec_from_config(recorded, name)
    kept = recorded.trimmed(nulls=False)
    if not same_model(spec_from_config(kept, name), whole):  # a null may say more than a missing key
        kept = recorded.trimmed(nulls=True)
    kept = _with_short_names(kept, whole, name)
    for path in list(_walked_through(recorded, ())):
        kept = _without_idle_keys(kept, path, whole, name)
    if not same_model(spec_from_config(kept, name), whole):
        raise ValueError(f"the trimmed config of {name} is another model")
    folded = {key: fold(value) for key, value in kept.items()}
    if unfold(folded) != kept:
        raise ValueError(f"the shorthand of {name} does not unfold to what it stands for")
    return folded


def same_model(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two models have the same tensors, storage and caches, whatever they are called."""
    return replace(one, name="", source="", notes=()) == replace(other, name="", source="", notes=())


def _walked_through(mapping: Recorded, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the paths of mappings that were read as a whole, so that it is not known which keys mattered."""
    if path and mapping.whole and not set(path) & {"quantization_config", *WHOLE}:
        yield path
    for key in dict.keys(mapping):
        value = dict.__getitem__(mapping, key)
        if isinstance(value, Recorded):
            yield from _walked_through(value, (*path, key))


def _without_idle_keys(
    kept: dict[str, object], path: tuple[str, ...], whole: ModelSpec, name: str
) -> dict[str, object]:
    """Return the config without those keys of one mapping that say nothing of weights and change none."""
    for key in list(_at(kept, path).keys() & IDLE):
        rest = {other: item for other, item in _at(kept, path).items() if other != key}
        shorter = _replaced(kept, path, rest)
        if _is_same(shorter, whole, name):
            kept = shorter
    return kept


def _at(value: object, path: tuple[str, ...]) -> dict[str, object]:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _is_same(kept: dict[str, object], whole: ModelSpec, name: str) -> bool:
    try:
        return same_model(spec_from_config(kept, name), whole)
    except UnsupportedModel:
        return False


def _with_short_names(kept: dict[str, object], whole: ModelSpec, name: str) -> dict[str, object]:
    """Return the config with long lists of module names written as patterns, where these choose the same modules."""
    for path, names in list(_name_lists(kept, ())):
        for patterns in _patterns(names):
            if len(patterns) >= len(names):
                continue
            shorter = _replaced(kept, path, patterns)
            if _is_same(shorter, whole, name):
                kept = shorter
                break
    return kept


def _name_lists(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield every long list of texts inside a quantization config, with the keys that lead to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _name_lists(item, (*path, key))
    elif isinstance(value, list) and len(value) > LONG_NAMES and "quantization_config" in path:
        names = [item for item in value if isinstance(item, str)]
        if len(names) == len(value):
            yield path, names


def _replaced(value: dict[str, object], path: tuple[str, ...], item: object) -> dict[str, object]:
    if len(path) == 1:
        return {**value, path[0]: item}
    nested = value[path[0]]
    assert isinstance(nested, dict)
    return {**value, path[0]: _replaced(nested, path[1:], item)}


def _patterns(names: list[str]) -> Iterator[list[str]]:
    """Yield shorter lists that may mean the same: by suffix, by wildcard, by regular expression."""
    common = Counter(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names)
    yield sorted({re.sub(r"^.*\.\d+\.", "", name) for name in names})
    yield sorted({re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names})
    yield sorted({many if common[many := re.sub(r"\.\d+(?=\.)", ".*", name)] > LONG_LIST else name for name in names})
    yield sorted({"re:.*" + re.escape(re.sub(r"^.*\.\d+\.", "", name)) + "$" for name in names})
    yield sorted({"re:" + re.sub(r"\\\.\d+(?=\\\.|$)", r"\\.\\d+", re.escape(name)) for name in names})


def fold(value: object) -> object:
    """Return a value with long lists written by their cycle or their runs, where that is shorter."""
    if isinstance(value, dict):
        return {key: fold(item) for key, item in _with_ranges(value).items()}
    if not isinstance(value, list) or len(value) <= LONG_LIST:
        return value
    for period in range(1, min(12, len(value) // 2) + 1):
        if all(item == value[index % period] for index, item in enumerate(value)):
            return {"cycle": value[:period], "length": len(value)}
    runs: list[list[object]] = []
    for item in value:
        if runs and runs[-1][1] == item:
            runs[-1][0] = int(str(runs[-1][0])) + 1
        else:
            runs.append([1, item])
    return {"runs": [[count, fold(item)] for count, item in runs]} if 2 * len(runs) < len(value) else value


def _with_ranges(value: dict[str, object]) -> dict[str, object]:
    """Return a long mapping with the keys that differ in a number, and mean the same, written as one.

    The last number goes first: of `layers.3.experts.<0-127>.up` it is the layers' turn next.
    """
    for _ in range(3):
        if len(value) <= LONG_NAMES:
            break
        groups: dict[tuple[str, str, str], list[int]] = {}
        rest: dict[str, object] = {}
        for key, item in value.items():
            match = re.fullmatch(r"(.*\.)(\d+)(\.(?:[^.\d][^.]*|<[^>]*>)(?:\.(?:[^.\d][^.]*|<[^>]*>))*)", key)
            if match:
                groups.setdefault((match[1], match[3], json.dumps(item)), []).append(int(match[2]))
            else:
                rest[key] = item
        ranges = {
            f"{head}<{_ranges(numbers)}>{tail}": json.loads(item) for (head, tail, item), numbers in groups.items()
        }
        value = {**ranges, **rest}
    return value


def _ranges(numbers: list[int]) -> str:
    """Write numbers as `0-3,7`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def flow(value: object) -> str:
    """Return a value as one line of flow-style YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)}: {flow(item)}" for key, item in ordered(value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if isinstance(value, str):
        return value if re.fullmatch(r"[A-Za-z_][\w./-]*", value) and not _is_word(value) else json.dumps(value)
    return json.dumps(value)


def _key(key: str) -> str:
    """A key as YAML reads it back: quoted where a bare one could be something else."""
    return key if re.fullmatch(r"[A-Za-z_][\w.-]*", key) and not _is_word(key) else json.dumps(key)


def _is_word(text: str) -> bool:
    """Whether YAML 1.1 reads a bare text as something else."""
    return text.lower() in {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def ordered(mapping: Mapping[str, object]) -> list[tuple[str, object]]:
    """The best known keys first, the others in the alphabet's order, nested mappings last."""
    rank = {key: number for number, key in enumerate(FIRST)}
    return sorted(mapping.items(), key=lambda item: (isinstance(item[1], dict), rank.get(item[0], 99), item[0]))


def wrapped(key: str, value: object, indent: int = 2) -> list[str]:
    """Return `key: value` in flow style, over as many lines as it takes."""
    pieces = re.split(r', (?=(?:[^"]*"[^"]*")*[^"]*$)', f"{key}: {flow(value)}")
    lines, line = [], " " * indent + pieces[0]
    for piece in pieces[1:]:
        if len(line) + len(piece) + 3 > WIDTH:
            lines.append(f"{line},")
            line = " " * (indent + 2) + piece
        else:
            line += f", {piece}"
    return [*lines, line]


def entry(name: str, config: Mapping[str, object], parameters: int, **facts: object) -> str:
    """Return the YAML text of a catalogue entry."""
    lines = [f"{name}:"]
    for key in ("aliases", "bare", "released", "parameters", "license", "gated"):
        value = parameters if key == "parameters" else facts.get(key)
        if value:
            lines += wrapped(key, value)
    lines += wrapped("config", config)
    lines.append(f"  source: {facts.get('source', 'the config.json of the checkpoint')}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--name", required=True, help="the hub id")
    parser.add_argument("--alias", action="append", default=[])
    parser.add_argument("--released", help="year and month")
    parser.add_argument("--license")
    parser.add_argument("--source", default="the config.json of the checkpoint")
    options = parser.parse_args()
    raw = read_raw(options.config)
    config = trim(raw, options.name)
    parameters = spec_from_config(raw, options.name).parameters
    facts = {
        "aliases": options.alias,
        "released": options.released,
        "license": options.license,
        "source": options.source,
    }
    print(entry(options.name, config, parameters, **facts), end="")


if __name__ == "__main__":
    main()
