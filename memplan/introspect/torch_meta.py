"""The slow path: transformers builds the model on the meta device, and its modules are read instead of its config.

No weight is read and none allocated. It takes seconds and needs the `profile` extra, and it knows every family that
transformers does; code from a repository is run only when the user says so. Roles go by the names of modules, the cuts
of tensor parallelism by roles, and the cache by running the model on a few meta tokens and looking at what it kept.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memplan.domain.attention import LinearState
from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, Mlp, ModelSpec, Tower
from memplan.domain.tensors import REPLICATED, Role, Shard, ShardKind, Tensor
from memplan.errors import MissingExtra, UnsupportedModel
from memplan.introspect.bytesource import show
from memplan.introspect.torch_caches import Kept, attribute, kept_caches

_LAYER = re.compile(r"(?P<list>(?:.*\.)?(?:layers|h|blocks|block|layer))\.(?P<number>\d+)\.(?P<name>.+)")
_TOWER_ROLES = (
    (re.compile(r"vision|visual|image|vit"), Role.VISION),
    (re.compile(r"audio|speech"), Role.AUDIO),
    (re.compile(r"project|connector|aligner"), Role.PROJECTOR),
    (re.compile(r"(^|\.)encoder\."), Role.ENCODER),
)
_ROLES = (
    (re.compile(r"norm|(^|\.)ln_?\w*\.(weight|bias)$"), Role.NORM),
    (re.compile(r"shared_expert|shared_mlp"), Role.SHARED_EXPERT),
    (re.compile(r"experts?\b"), Role.EXPERT),
    (re.compile(r"router|(^|\.)gate\.|e_score"), Role.ROUTER),
    (re.compile(r"indexer"), Role.INDEXER),
    (re.compile(r"mamba|ssm|conv1d|linear_attn|A_log|dt_bias|short_?conv|\.conv\."), Role.STATE),
    (re.compile(r"attn|attention|[qkvo]_proj|query_key_value|sinks"), Role.ATTENTION),
    (re.compile(r"mlp|ffn|feed_forward|gate_proj|up_proj|down_proj|gate_up|\bfc\d|dense"), Role.MLP),
)
_DOWN = re.compile(r"(o_proj|out_proj|c_proj|down_proj|dense_4h_to_h|fc2|w2|wo)\.weight$|attention\.dense\.weight$")
_KEY_VALUE = re.compile(r"(^|[._])(k|v|key|value)(_proj)?\.(weight|bias)$")


def spec_from_transformers(
    raw: Mapping[str, object], name: str, *, source: str, trust_remote_code: bool = False
) -> ModelSpec:
    """Return the ModelSpec of the model that transformers builds from a config.

    `source` is where the config is from: a directory, whose own code may be run under `trust_remote_code`.

    Raises: MissingExtra without transformers; UnsupportedModel when it cannot build the model.
    """
    torch = _import("torch")
    transformers = _import("transformers")
    with quiet_transformers(transformers):
        config = read_config(transformers, raw, source, trust_remote_code)
        model = build_model(torch, transformers, config, trust_remote_code)
        try:
            return _spec(torch, model, config, name, source)
        except Exception as error:
            raise _cannot("build a model that can be read", error) from None


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        hint = "pip install 'memplan[profile]', or leave --introspect torch out"
        raise MissingExtra(f"--introspect torch needs {package}", hint=hint) from None


@contextlib.contextmanager
def quiet_transformers(transformers: Any) -> Iterator[None]:
    """Keep what transformers and a model's own code print off the terminal."""
    logger = logging.getLogger("transformers")
    level = logger.level
    transformers.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def read_config(transformers: Any, raw: Mapping[str, object], source: str, trust_remote_code: bool) -> Any:
    """The config object that transformers makes of a raw config; `source` as in `spec_from_transformers`.

    Raises: UnsupportedModel for a family that it does not know, or a config that it refuses.
    """
    model_type = raw.get("model_type")
    is_known = isinstance(model_type, str) and model_type in transformers.CONFIG_MAPPING
    if not is_known and not (trust_remote_code and (Path(source) / "config.json").is_file()):
        hint = "download the repository, name its directory and give --trust-remote-code, if you trust its code"
        raise UnsupportedModel(f"transformers does not know the family `{show(str(model_type))}`", hint=hint)
    try:
        if not is_known:
            return transformers.AutoConfig.from_pretrained(source, trust_remote_code=True)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(dict(raw)), "utf-8")
            return transformers.AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise _cannot("read the config", error) from None


def build_model(torch: Any, transformers: Any, config: Any, trust_remote_code: bool, *, device: str = "meta") -> Any:
    """The model on a device, with weights that were never trained, by its own class where transformers has that.

    Raises: UnsupportedModel when no class can be built from the config.
    """
    names = getattr(config, "architectures", None) or []
    classes = [getattr(transformers, str(each), None) for each in names]
    makers = [each._from_config for each in classes if each is not None and hasattr(each, "_from_config")]
    for auto in ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM", "AutoModel"):
        maker = getattr(getattr(transformers, auto, None), "from_config", None)
        if maker is not None:
            makers.append(lambda config, maker=maker: maker(config, trust_remote_code=trust_remote_code))
    problem: Exception | None = None
    for make in makers:
        try:
            with torch.device(device):
                return make(config).eval()
        except Exception as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            problem = problem or error
    raise _cannot("build the model", problem or ValueError("no class for it")) from None


def _cannot(what: str, error: Exception) -> UnsupportedModel:
    reason = str(error).strip().splitlines()[:1] or [""]
    return UnsupportedModel(f"transformers cannot {what}: {type(error).__name__}: {show(reason[0])}")


def _spec(torch: Any, model: Any, config: Any, name: str, source: str) -> ModelSpec:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    stored = dict(model.named_parameters())
    buffers = {key for key in model.state_dict() if key not in stored} - _tied_names(model)
    prefix, numbered, rest = _by_layer(stored)
    num_heads = _attribute(text, "num_attention_heads", "n_head", "num_heads")
    kept = kept_caches(torch, model, text, [numbered[index] for index in sorted(numbered)])
    made: dict[object, Layer] = {}
    layers = []
    for index in sorted(numbered):
        signature = tuple((key, tuple(each.shape), each.dtype) for key, each in numbered[index].items())
        memo = (signature, kept.layers[index] if index < len(kept.layers) else ())
        if memo not in made:
            made[memo] = _layer(numbered[index], memo[1], text, num_heads)
        layers.append(made[memo])
    towers, shared = _split_towers(rest)
    dtype = _dtype(attribute(text, "dtype")) or _dtype(attribute(config, "dtype")) or DType.F32
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return ModelSpec(
        name=name,
        model_type=str(getattr(config, "model_type", "")),
        architecture=type(model).__name__,
        dtype=dtype,
        hidden_size=_attribute(text, "hidden_size", "n_embd", "d_model") or 1,
        vocab_size=_attribute(text, "vocab_size") or (embedding.weight.shape[0] if embedding is not None else 1),
        num_heads=num_heads or 1,
        max_context_tokens=_attribute(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
        or 2048,
        layers=tuple(layers),
        layer_prefix=f"{prefix}.",
        shared=(
            *(_tensor(key, each, num_heads, 0, outside=True) for key, each in shared.items()),
            *(_buffer(key, each) for key, each in model.state_dict().items() if key in buffers),
        ),
        towers=towers,
        tied_embeddings=attribute(text, "tie_word_embeddings") is True,
        is_generative=hasattr(model, "generate") and kept.grows,
        source=source,
        notes=("read from the modules that transformers builds, not from memplan's own tables", *kept.notes),
    )


def _tied_names(model: Any) -> set[str]:
    """Names under which the state dictionary repeats a parameter that has another name already."""
    seen = {id(each) for each in model.parameters()}
    kept = {key for key, _ in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {key for key, each in every if id(each) in seen and key not in kept}


def _by_layer(stored: Mapping[str, Any]) -> tuple[str, dict[int, dict[str, Any]], dict[str, Any]]:
    """Split parameters into the decoder's numbered layers and the rest. The decoder is the list with most elements."""
    lists: dict[str, int] = {}
    for key, each in stored.items():
        match = _LAYER.fullmatch(key)
        if match and not any(pattern.search(match["list"] + ".") for pattern, _ in _TOWER_ROLES):
            lists[match["list"]] = lists.get(match["list"], 0) + each.numel()
    chosen = max(lists, key=lambda each: lists[each], default="")
    layers: dict[int, dict[str, Any]] = {}
    rest: dict[str, Any] = {}
    for key, each in stored.items():
        match = _LAYER.fullmatch(key)
        if match and match["list"] == chosen:
            layers.setdefault(int(match["number"]), {})[match["name"]] = each
        else:
            rest[key] = each
    return chosen, layers, rest


def _layer(own: Mapping[str, Any], kept: Kept, text: Any, num_heads: int) -> Layer:
    state = next((cache for cache in kept if isinstance(cache, LinearState)), None)
    kv_heads = next((cache.num_kv_heads for cache in kept if hasattr(cache, "num_kv_heads")), 0)
    tensors = tuple(_tensor(key, each, num_heads, kv_heads) for key, each in own.items())
    attends = any(tensor.role is Role.ATTENTION for tensor in tensors)
    query = next((each.shape[0] for key, each in own.items() if key.endswith("q_proj.weight")), 0)
    head_width = _attribute(text, "head_dim") or (_attribute(text, "hidden_size", "n_embd") or 0) // max(num_heads, 1)
    mlp = _mlp(tensors, text)
    return Layer(
        kind=state.kind if state is not None and not attends else "moe" if mlp and mlp.num_experts else "dense",
        caches=kept,
        tensors=tensors,
        query_width=(query or num_heads * head_width) if attends else 0,
        num_heads=num_heads if attends else 0,
        mlp=mlp,
    )


def _mlp(tensors: tuple[Tensor, ...], text: Any) -> Mlp | None:
    experts = [tensor for tensor in tensors if tensor.role is Role.EXPERT]
    intermediate = _attribute(text, "intermediate_size", "n_inner", "ffn_dim") or 0
    gated = any(re.search(r"gate_proj|gate_up", tensor.name) for tensor in tensors)
    if not experts:
        return Mlp(intermediate=intermediate, gated=gated) if any(each.role is Role.MLP for each in tensors) else None
    routed = _attribute(text, "moe_intermediate_size") or intermediate
    shared = _attribute(text, "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size") or 0
    return Mlp(
        intermediate=routed,
        gated=gated,
        num_experts=_attribute(text, "num_experts", "num_local_experts", "n_routed_experts") or experts[0].count,
        experts_per_token=_attribute(text, "num_experts_per_tok", "top_k", "moe_k") or 1,
        shared_intermediate=shared or routed * (_attribute(text, "n_shared_experts") or 0),
    )


def _split_towers(rest: Mapping[str, Any]) -> tuple[tuple[Tower, ...], dict[str, Any]]:
    towers: dict[Role, list[Tensor]] = {}
    shared: dict[str, Any] = {}
    for key, each in rest.items():
        role = next((role for pattern, role in _TOWER_ROLES if pattern.search(key)), None)
        if role is None:
            shared[key] = each
        else:
            towers.setdefault(role, []).append(Tensor(name=key, shape=tuple(each.shape), role=role))
    return tuple(Tower(role=role, tensors=tuple(tensors)) for role, tensors in towers.items()), shared


def _tensor(key: str, each: Any, num_heads: int, kv_heads: int, *, outside: bool = False) -> Tensor:
    shape = tuple(int(axis) for axis in each.shape)
    if outside:
        role = Role.LM_HEAD if re.search(r"lm_head|embed_out|output_layer", key) else Role.OTHER
        role = Role.EMBEDDING if re.search(r"embed_tokens|wte|word_embeddings|embed_in", key) else role
        role = Role.NORM if len(shape) == 1 else role
    else:
        role = next((role for pattern, role in _ROLES if pattern.search(key)), Role.OTHER)
    count = shape[0] if role is Role.EXPERT and len(shape) == 3 else 1
    shape = shape[1:] if count > 1 else shape
    linear = len(shape) == 2 and role not in (Role.EMBEDDING, Role.NORM, Role.POSITION)
    return Tensor(
        name=key,
        shape=shape,
        role=role,
        shard=_shard(key, role, shape, num_heads, kv_heads),
        count=count,
        linear=linear,
    )


def _shard(key: str, role: Role, shape: tuple[int, ...], num_heads: int, kv_heads: int) -> Shard:
    if role in (Role.EMBEDDING, Role.LM_HEAD) and shape:
        return Shard(ShardKind.VOCAB, shape[0])
    if len(shape) < 2:
        return REPLICATED
    if role is Role.ATTENTION and num_heads:
        if _KEY_VALUE.search(key) and kv_heads:
            return Shard(ShardKind.KV_HEADS, kv_heads)
        return Shard(ShardKind.SPLIT, num_heads)
    width = shape[1] if _DOWN.search(key) else shape[0]
    if role in (Role.MLP, Role.SHARED_EXPERT):
        return Shard(ShardKind.SPLIT, max(width, 1))
    return Shard(ShardKind.EXPERTS, max(width, 1)) if role is Role.EXPERT else REPLICATED


def _buffer(key: str, each: Any) -> Tensor:
    return Tensor(name=key, shape=tuple(each.shape), role=Role.OTHER, dtype=_dtype(each.dtype), is_buffer=True)


def _attribute(config: Any, *names: str) -> int:
    """The first of these attributes that is a whole number; 0 for none."""
    values = (attribute(config, name) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), 0)


def _dtype(dtype: Any) -> DType | None:
    name = str(dtype).removeprefix("torch.")
    names = {each.value: each for each in DType} | {"uint8": DType.UINT8}
    return names.get(name)
