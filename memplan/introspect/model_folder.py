"""From the files of one folder, on disk or on the hub, to a ModelSpec.

A config gives the family; headers, when there are any, the exact bytes. Without a config, headers alone do, with a
note. A folder may also hold a diffusion pipeline (`model_index.json`) or GGUF files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from memplan.domain.model import ModelSpec
from memplan.errors import CorruptFile, SourceNotFound, UnsupportedModel, UsageError, did_you_mean
from memplan.introspect import checkpoint, inventory
from memplan.introspect.bytesource import show
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec
from memplan.introspect.folder import PIPELINE_FILE, Folder, PartFolder
from memplan.introspect.inventory import Inventory
from memplan.introspect.jsonfile import MAX_CONFIG_BYTES, MAX_JSON_BYTES, parse_json_object
from memplan.records import dataclass, replace

if TYPE_CHECKING:
    from memplan.introspect.gguf import Gguf

CONFIG_FILE = "config.json"
_QUANT_FILES = ("hf_quant_config.json",)
_LEGACY_QUANT_FILES = ("quantize_config.json", "quant_config.json")
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.safetensors")
_MAX_NAMED = 6
# The mix that llama.cpp itself takes when a repository has several and none is named.
_USUAL_GGUF = ("q4_k_m", "q4_k_s", "q4_0", "q8_0")
_PIPELINE_CONFIG = re.compile(r"[\w-]{1,64}/config\.json", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is wanted of a folder: the name that the model will carry, and which GGUF file where there are several."""

    name: str
    gguf: str | None = None


def spec_from_folder(folder: Folder, wish: Wish) -> ModelSpec:
    """Return the ModelSpec of the model in a folder.

    Raises: SourceNotFound when it holds no model; CorruptFile, UnsupportedModel, UsageError.
    """
    if wish.gguf is not None:
        return _from_gguf(folder, wish)
    if PIPELINE_FILE in folder.names:
        return _from_pipeline(folder, wish)
    if CONFIG_FILE in folder.names and not _is_gguf_only(folder):
        raw = read_object(folder, CONFIG_FILE)
        if raw.get("model_type") is not None or raw.get("architectures") is not None:
            return _from_config(folder, raw, wish)
    if "adapter_config.json" in folder.names and CONFIG_FILE not in folder.names:
        raise _adapter(folder)
    if any(name.endswith(".gguf") for name in folder.names):
        return _from_gguf(folder, wish)
    headers = find_headers(folder)
    if headers is not None:
        from memplan.introspect.bare_spec import bare_spec

        return bare_spec(headers, wish.name)
    if CONFIG_FILE in folder.names:
        return _from_config(folder, read_object(folder, CONFIG_FILE), wish)
    raise _no_model(folder)


def _is_gguf_only(folder: Folder) -> bool:
    """Whether the only weights are GGUF files; repositories of those often carry the original's config as well."""
    suffixes = {name.rpartition(".")[2] for name in folder.names}
    return "gguf" in suffixes and not suffixes & {"safetensors", "bin", "pt", "pth"}


def spec_from_config(
    raw: Mapping[str, object], name: str, *, hf_quant_config: Mapping[str, object] | None = None
) -> ModelSpec:
    """Return the ModelSpec of a config's mapping, stored as its own quantization says.

    Raises: UnsupportedModel when the family, a key or the quantization is not understood.
    """
    from memplan.introspect.quantized import apply_quantization, find_quantization

    for key in ("quantization_config", "compression_config"):
        if raw.get(key) is not None and not isinstance(raw[key], Mapping):
            raise UnsupportedModel(f"config key `{key}` must be a mapping, not {show(repr(raw[key]))}")
    spec = build_spec(Config(raw), name)
    return apply_quantization(spec, find_quantization(raw), hf_quant_config=hf_quant_config, config=raw)


def read_object(folder: Folder, name: str) -> dict[str, object]:
    """Return a JSON object of a folder."""
    return parse_json_object(folder.read(name, limit_bytes=MAX_CONFIG_BYTES), f"{folder.label}/{name}")


def find_headers(folder: Folder) -> Inventory | None:
    """Return the headers of a folder's safetensors; None when it has none.

    Raises: SourceNotFound when some shards of an index are there and others are not; CorruptFile.
    """
    index = next((name for name in checkpoint.INDEX_NAMES if name in folder.names), None)
    if index is not None:
        return _remembered(folder, index, lambda: checkpoint.read_index(folder, index))
    files = _weights_files(folder)
    if not files:
        return None
    return _remembered(folder, files[0], lambda: _joined(folder, files))


def _remembered(folder: Folder, name: str, read: Callable[[], Inventory]) -> Inventory:
    """The headers that were kept of these files, or read now and kept."""
    kept = inventory.from_json(folder.recall(f"headers:{name}"))
    if kept is not None:
        return kept
    headers = read()
    folder.keep(f"headers:{name}", lambda: inventory.to_json(headers))
    return headers


def _weights_files(folder: Folder) -> list[str]:
    """The safetensors of a folder without an index: one under its usual name, all shards of a set, or the only one."""
    usual = [name for name in checkpoint.SINGLE_NAMES if name in folder.names]
    files = sorted(name for name in folder.names if name.endswith(".safetensors") and "/" not in name)
    shards = [name for name in files if _SHARD.fullmatch(name)]
    named = [name for name in files if not name.startswith(("adapter_", "consolidated"))]
    return usual[:1] or shards or (named if len(named) == 1 else []) or (files if len(files) == 1 else [])


def _joined(folder: Folder, files: Sequence[str]) -> Inventory:
    folder.check_shards(files if len(files) > 1 else ())
    parts = folder.each(lambda name: checkpoint.read_weights(folder, name), files)
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    if len(tensors) != sum(len(part.tensors) for part in parts):
        raise CorruptFile(f"damaged checkpoint: `{folder.label}`: a tensor is in two of its {len(files)} files")
    names = tuple(file for part in parts for file in part.files)
    return Inventory(tensors=tensors, files=names, metadata=parts[0].metadata)


def _from_config(folder: Folder, raw: Mapping[str, object], wish: Wish) -> ModelSpec:
    from memplan.introspect.header_spec import merge_headers

    hf_quant_config = next((read_object(folder, name) for name in _QUANT_FILES if name in folder.names), None)
    spec = spec_from_config(_with_legacy_quantization(folder, raw), wish.name, hf_quant_config=hf_quant_config)
    headers, note = _headers_or_note(folder)
    if headers is None:
        return replace(spec, source=folder.label, notes=(*spec.notes, *note))
    names_dtype = any(Config(part).has(key) for part in _parts(raw) for key in ("torch_dtype", "dtype"))
    return replace(merge_headers(spec, headers, dtype_is_known=names_dtype), source=folder.label)


def _parts(raw: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The config and the nested ones that may name a type for all of it."""
    return [raw, *(cast("Mapping[str, object]", part) for part in raw.values() if isinstance(part, Mapping))]


def _with_legacy_quantization(folder: Folder, raw: Mapping[str, object]) -> Mapping[str, object]:
    """The config with a quantization that older tools wrote beside it (AutoGPTQ, AutoAWQ)."""
    if any(raw.get(key) for key in ("quantization_config", "compression_config", "quantization")):
        return raw
    name = next((name for name in _LEGACY_QUANT_FILES if name in folder.names), None)
    if name is None:
        return raw
    found = read_object(folder, name)
    method = "awq" if "w_bit" in found or "q_group_size" in found else "gptq"
    return {**raw, "quantization_config": {"quant_method": method, **found}}


def _headers_or_note(folder: Folder) -> tuple[Inventory | None, tuple[str, ...]]:
    """The headers, or why there are none. A download that stopped half-way is an error, one that never began is not."""
    index_name = next((name for name in checkpoint.INDEX_NAMES if name in folder.names), None)
    if index_name is not None:
        index = checkpoint.parse_index(
            folder.read(index_name, limit_bytes=MAX_JSON_BYTES), f"{folder.label}/{index_name}"
        )
        if len(checkpoint.missing_shards(folder, index)) == len(index.shards):
            claimed = f", which the index puts at {index.claimed_bytes} bytes" if index.claimed_bytes else ""
            return None, (f"no weights here{claimed}: sizes are from the config",)
    headers = find_headers(folder)
    if headers is not None:
        return headers, ()
    if any(name.endswith((".bin", ".pt", ".pth")) for name in folder.names):
        return None, ("the weights are pickled, which is not read: sizes are from the config",)
    return None, ()


def _from_gguf(folder: Folder, wish: Wish) -> ModelSpec:
    from memplan.introspect import gguf_json
    from memplan.introspect.gguf import parse_gguf, read_splits
    from memplan.introspect.gguf_spec import gguf_to_spec

    name, others = choose_gguf(folder, wish.gguf)

    def read_one(part: str) -> Gguf:
        if part not in folder.names:
            raise SourceNotFound(f"no such file: `{folder.label}/{part}`")
        folder.check_shards([part] if part != name else ())
        with folder.open(part) as source:
            return parse_gguf(source)

    gguf = gguf_json.from_json(folder.recall(f"gguf:{name}"))
    if gguf is None:
        gguf = read = read_splits(name, read_one)
        folder.keep(f"gguf:{name}", lambda: gguf_json.to_json(read))
    spec = gguf_to_spec(gguf, wish.name)
    note = (f"took {name}; the folder also has {_some(others)}",) if others and wish.gguf is None else ()
    return replace(spec, source=f"{folder.label}/{name}", notes=(*spec.notes, *note))


def choose_gguf(folder: Folder, wanted: str | None) -> tuple[str, list[str]]:
    """Return the GGUF file that is wanted, by its name or its type (`Q4_K_M`), and the others.

    Raises: SourceNotFound when there is none, or none of that type.
    """
    if wanted is not None and wanted in folder.names:
        return wanted, []
    files = sorted(
        name
        for name in folder.names
        if name.endswith(".gguf") and "mmproj" not in name.lower() and "imatrix" not in name.lower()
    )
    firsts = [name for name in files if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", name)]
    if not firsts:
        raise SourceNotFound(f"no GGUF model in `{folder.label}`")
    if wanted is None:
        chosen = next((name for kind in _USUAL_GGUF for name in firsts if _is_of_type(name, kind)), firsts[0])
    else:
        found = [name for name in firsts if _is_of_type(name, wanted)]
        if not found:
            hint = did_you_mean(wanted, [_type_in(name) for name in firsts]) or f"it has {_some(firsts)}"
            raise SourceNotFound(f"no GGUF file of type `{show(wanted)}` in `{folder.label}`", hint=hint)
        chosen = found[0]
    return chosen, [name for name in firsts if name != chosen]


def _is_of_type(name: str, kind: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(kind.lower())}(?![a-z0-9_])", name.lower()) is not None


def _type_in(name: str) -> str:
    """The part of a file's name that tells its type, in lower case."""
    match = re.search(r"(?:iq|q|tq|mxfp|bf|f)\d+(?:_[a-z0-9]+)*", name.lower())
    return match[0] if match else name.lower()


def _from_pipeline(folder: Folder, wish: Wish) -> ModelSpec:
    """A diffusion pipeline: its parts' configs, and their headers where all of them are there."""
    from memplan.introspect.families.diffusion import build_pipeline
    from memplan.introspect.header_spec import merge_headers

    index = read_object(folder, PIPELINE_FILE)
    configs = {
        name.partition("/")[0]: read_object(folder, name)
        for name in sorted(folder.names)
        if _PIPELINE_CONFIG.fullmatch(name)
    }
    spec = replace(build_pipeline(index, configs, wish.name), source=folder.label)
    parts = sorted({tensor.name.partition("/")[0] for tower in spec.towers for tensor in tower.tensors})
    headers = {part: find_headers(PartFolder(folder, part)) for part in parts}
    absent = [part for part, found in headers.items() if found is None]
    if absent:
        note = () if len(absent) == len(parts) else (f"no weights of {_some(absent)}: sizes are from the configs",)
        return replace(spec, notes=(*spec.notes, *note))
    found = {part: each for part, each in headers.items() if each is not None}
    joined = Inventory(
        tensors={f"{part}/{name}": tensor for part, each in found.items() for name, tensor in each.tensors.items()},
        files=tuple(file for each in found.values() for file in each.files),
        metadata={},
    )
    names_dtype = any(config.get("torch_dtype") or config.get("dtype") for config in configs.values())
    return merge_headers(spec, joined, dtype_is_known=names_dtype)


def _adapter(folder: Folder) -> UnsupportedModel:
    base = read_object(folder, "adapter_config.json").get("base_model_name_or_path")
    hint = f"name its base model, `{show(base)}`" if isinstance(base, str) and base else "name its base model"
    return UnsupportedModel(f"an adapter, not a model: `{folder.label}`", hint=hint)


def _no_model(folder: Folder) -> SourceNotFound | UsageError:
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in folder.names):
        return SourceNotFound(
            f"only pickled weights and no config.json in `{folder.label}`", hint="add the model's config.json"
        )
    return SourceNotFound(
        f"no model in `{folder.label}`", hint="it should have a config.json, .safetensors or .gguf files"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")
