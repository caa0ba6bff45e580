"""What is profiled: the module that transformers builds from a name, a folder, a config or the catalogue's facts.

On the meta device no weight is read, and the model is as large as it likes. With real devices the weights are made
(`dummy`) or read from the folder (`real`).
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch

from memplan.catalog.models import find_model
from memplan.errors import MissingExtra, SourceNotFound, UnsupportedModel, UsageError
from memplan.introspect.bytesource import show
from memplan.introspect.resolve import find_running_config
from memplan.introspect.torch_meta import build_model, quiet_transformers, read_config
from memplan.profile.kernels import FUSED, register_fused
from memplan.profile.recorder import local
from memplan.profile.request import ProfileRequest
from memplan.records import dataclass
from memplan.units import format_gib

SubjectKind = Literal["decoder", "encoder_decoder", "encoder", "vision", "sound", "denoiser"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model that can be run: the module, its config, and what it takes. Compared by identity."""

    model: Any
    config: Any
    name: str
    architecture: str
    kind: SubjectKind
    device: str
    runs_as: str
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The type that inputs of numbers have to have."""
        return next((each.dtype for each in self.model.parameters() if each.is_floating_point()), torch.float32)

    @property
    def text_config(self) -> Any:
        """The part of the config that describes the text decoder."""
        return self.config.get_text_config() if hasattr(self.config, "get_text_config") else self.config

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters and buffers by name, each storage once; of those that ranks share, what is here."""
        seen: set[int] = set()
        for named in (self.model.named_parameters(), self.model.named_buffers()):
            for name, tensor in named:
                here = local(tensor)
                key = here.untyped_storage()._cdata
                if key not in seen:
                    seen.add(key)
                    yield name, here


def load_subject(request: ProfileRequest, *, runs_as: str, device: str | None = None) -> Subject:
    """Build what a request names on `device`; without one on the request's, the meta device if it is simulated.

    Raises: MissingExtra, SourceNotFound, UnsupportedModel, as `resolve_model` and transformers have it.
    """
    import transformers

    if device is None:
        device = "meta" if request.device == "simulated" else request.device
    raw, source = find_running_config(request.model, revision=request.revision, offline=request.offline)
    with quiet_transformers(transformers), _placed(request, device):
        if "_class_name" in raw:
            config, model = _denoiser(raw, request, device)
        else:
            config = read_config(transformers, raw, source, request.trust_remote_code)
            _settle(config, request)
            if request.device == "cpu":
                _check_room(build_model(torch, transformers, config, request.trust_remote_code), request)
            if request.weights == "real" and device != "meta":
                model = _read(transformers, config, source, device)
            else:
                model = build_model(torch, transformers, config, request.trust_remote_code, device=device)
    if cut_before_load(request) and hasattr(model, "tie_weights"):
        model.tie_weights()  # which building without weights undoes
    return Subject(
        model=model,
        config=config,
        name=request.model,
        architecture=type(model).__name__,
        kind="denoiser" if "_class_name" in raw else _kind(config, model),
        device=device,
        runs_as=runs_as,
        notes=_notes(request, config, model),
    )


def cut_before_load(request: ProfileRequest) -> bool:
    """Whether a rank cuts a model that has no weights yet, and makes its shards alone, as large models are loaded."""
    return request.sharing in ("fsdp", "tp") and (request.device == "simulated" or request.weights == "dummy")


@contextlib.contextmanager
def _placed(request: ProfileRequest, device: str) -> Iterator[None]:
    """Build on a device, without the weights of a model that is cut before they are made; buffers are made."""
    if device == "meta" or not cut_before_load(request):
        yield
        return
    accelerate: Any = importlib.import_module("accelerate")
    with accelerate.init_empty_weights(include_buffers=False):
        yield


def _denoiser(raw: Mapping[str, object], request: ProfileRequest, device: str) -> tuple[Any, Any]:
    """A model of the diffusers package, which names its class in its config."""
    try:
        import diffusers
    except ImportError:
        raise MissingExtra("this model needs diffusers", hint="pip install diffusers") from None
    maker = getattr(diffusers, str(raw["_class_name"]), None)
    if maker is None:
        raise UnsupportedModel(f"diffusers does not know the class `{show(str(raw['_class_name']))}`")
    usual = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, request.dtype.value) if request.dtype else torch.float16)
    try:
        with torch.device(device):
            model = maker.from_config(dict(raw))
    finally:
        torch.set_default_dtype(usual)
    return model.config, model.eval()


def _settle(config: Any, request: ProfileRequest) -> None:
    """Set what a request changes of a config: its type, its attention."""
    if request.dtype is not None:
        _set_dtype(config, getattr(torch, request.dtype.value))
    elif getattr(config, "dtype", None) is None and _is_quantized(config):
        _set_dtype(config, torch.bfloat16)  # what transformers computes quantized checkpoints in that name no type
    if request.attention == "eager":
        config._attn_implementation = "eager"
    if request.attention in ("flash", "paged") and request.device == "simulated":
        register_fused()
        config._attn_implementation = FUSED
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
        config.pad_token_id = 0


def _read(transformers: Any, config: Any, source: str, device: str) -> Any:
    """The model with the weights of its folder.

    Raises: SourceNotFound when there are none.
    """
    try:
        maker = getattr(transformers, (getattr(config, "architectures", None) or ["AutoModel"])[0])
        return maker.from_pretrained(source, config=config, dtype=config.dtype or "auto").to(device).eval()
    except OSError as error:
        reason = str(error).strip().splitlines()[:1] or [""]
        hint = "give --weights dummy, which needs none"
        raise SourceNotFound(f"no weights to load: {show(reason[0])}", hint=hint) from None


def _check_room(model: Any, request: ProfileRequest) -> None:
    """Refuse a model that this machine has no memory for. Raises: UsageError."""
    weights_bytes = sum(each.numel() * each.element_size() for each in model.parameters())
    needed_bytes = weights_bytes * (4 if request.trains and request.lora_rank is None else 1)
    has_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else needed_bytes
    if needed_bytes > has_bytes:
        what = f"{request.model} needs {format_gib(needed_bytes)}, this machine has {format_gib(has_bytes)}"
        raise UsageError(f"too large for the CPU: {what}", hint="give --device simulated, which loads no weights")


def _is_quantized(config: Any) -> bool:
    return bool(getattr(config, "quantization_config", None))


def _notes(request: ProfileRequest, config: Any, model: Any) -> tuple[str, ...]:
    """What a person should know about a model that is not run as its checkpoint is stored."""
    known = find_model(request.model)
    if not _is_quantized(config) and (known is None or known.scheme is None):
        return ()
    kind = str(next(iter({each.dtype for each in model.parameters() if each.is_floating_point()}), "")).split(".")[-1]
    return (f"the checkpoint is quantized; the model is run with its weights in {kind}",)


def _set_dtype(config: Any, dtype: torch.dtype) -> None:
    config.dtype = dtype
    for name in getattr(config, "sub_configs", None) or ():
        if getattr(config, name, None) is not None:
            _set_dtype(getattr(config, name), dtype)


def _kind(config: Any, model: Any) -> SubjectKind:
    if getattr(config, "is_encoder_decoder", False):
        return "encoder_decoder"
    takes = inspect.signature(type(model).forward).parameters
    needs_picture = "pixel_values" in takes and takes["pixel_values"].default is inspect.Parameter.empty
    if hasattr(model, "generate") and model.can_generate() and not needs_picture:
        return "decoder"
    if getattr(model, "main_input_name", "") == "input_values":
        return "sound"
    return "vision" if "pixel_values" in takes else "encoder"
