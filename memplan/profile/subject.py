"""What is profiled: the module that transformers builds from a name, a folder, a config or the catalogue's facts.

On the meta device no weight is read, and the model is as large as it likes. With real devices the weights are made
(`dummy`) or read from the folder (`real`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch

from memplan.introspect.resolve import find_config
from memplan.introspect.torch_meta import build_on_meta, quiet_transformers, read_config
from memplan.profile.request import ProfileRequest
from memplan.records import dataclass

SubjectKind = Literal["decoder", "encoder_decoder", "encoder", "vision", "denoiser"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model that can be run: the module, its config, and what it takes. Compared by identity."""

    model: Any
    config: Any
    name: str
    architecture: str
    kind: SubjectKind
    device: str

    @property
    def text_config(self) -> Any:
        """The part of the config that describes the text decoder."""
        return self.config.get_text_config() if hasattr(self.config, "get_text_config") else self.config

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters and buffers by name, each storage once."""
        seen: set[int] = set()
        for named in (self.model.named_parameters(), self.model.named_buffers()):
            for name, tensor in named:
                key = tensor.untyped_storage()._cdata
                if key not in seen:
                    seen.add(key)
                    yield name, tensor


def load_subject(request: ProfileRequest) -> Subject:
    """Build what a request names.

    Raises: MissingExtra, SourceNotFound, UnsupportedModel, as `resolve_model` and transformers have it.
    """
    import transformers

    raw, source = find_config(request.model, revision=request.revision, offline=request.offline)
    with quiet_transformers(transformers):
        config = read_config(transformers, raw, source, request.trust_remote_code)
        if request.dtype is not None:
            _set_dtype(config, getattr(torch, request.dtype.value))
        model = build_on_meta(torch, transformers, config, request.trust_remote_code)
    return Subject(
        model=model,
        config=config,
        name=request.model,
        architecture=type(model).__name__,
        kind=_kind(config, model),
        device="meta",
    )


def _set_dtype(config: Any, dtype: torch.dtype) -> None:
    config.dtype = dtype
    for name in getattr(config, "sub_configs", None) or ():
        if getattr(config, name, None) is not None:
            _set_dtype(getattr(config, name), dtype)


def _kind(config: Any, model: Any) -> SubjectKind:
    if getattr(config, "is_encoder_decoder", False):
        return "encoder_decoder"
    if hasattr(model, "generate") and model.can_generate():
        return "decoder"
    return "vision" if getattr(model, "main_input_name", "") == "pixel_values" else "encoder"
