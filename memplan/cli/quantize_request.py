"""What a command line asks of a quantization: the model, the request, the forecast, and the limits it is held to."""

from __future__ import annotations

from pathlib import Path

from memplan.cli.options import Given
from memplan.cli.quantize_limits import Limits, limits_of, mends, shortage
from memplan.cli.quantize_output import output_of
from memplan.cli.quantize_target import fitted_to
from memplan.cli.serving_options import split_names
from memplan.domain.model import ModelSpec
from memplan.errors import DoesNotFit, SourceNotFound, UnsupportedModel, UsageError
from memplan.quantize.backends import BACKENDS, check_backend
from memplan.quantize.forecast import Forecast, forecast
from memplan.quantize.request import QuantizeRequest, quantize_request
from memplan.records import dataclass, replace
from memplan.units import parse_fraction, parse_size_bytes

_DEVICES = ("cpu", "cuda")
# Options that say something of one method, and nothing of another that is tried when it lost too much.
_OF_METHOD = ("method", "bits", "group_size", "symmetric", "weights_only", "format", "target_memory")
_AS_GIVEN = (
    *("calibration", "damping", "min_expert_tokens", "seed"),
    *("activation_order", "static_groups", "true_sequential", "scale_search"),
)
_SETTINGS = {"window": "window_tokens", "num_samples": "num_samples", "batch_size": "batch_size"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedQuantization:
    """A quantization that was asked for. `folder` holds the weights, None where they are not on this disk.

    `fallbacks` are tried in their order when the gate is missed; with `keeps_base` the 16-bit model is kept in the end.
    """

    name: str
    spec: ModelSpec
    folder: Path | None
    request: QuantizeRequest
    forecast: Forecast
    limits: Limits
    output: Path
    max_increase_fraction: float
    target_bytes: int | None = None
    target_note: str = ""
    fallbacks: tuple[QuantizeRequest, ...] = ()
    keeps_base: bool = False

    @property
    def spare_bytes(self) -> int:
        """What the device that does the work may use beyond what is forecast."""
        limit = self.limits.ram_bytes if self.request.device == "cpu" else self.limits.gpu_bytes
        needed = self.forecast.host_bytes if self.request.device == "cpu" else self.forecast.device_bytes
        return max(0, (limit or 0) - needed)

    def check(self) -> None:
        """Raises: DoesNotFit for what is over a limit, with what would fit."""
        for request in (self.request, *self.fallbacks):
            found = self.forecast if request is self.request else forecast(self.spec, request)
            if (missing := shortage(found, self.limits)) is not None:
                name = "" if request is self.request else f"--fallback {request.method.name} "
                raise DoesNotFit(f"{name}{missing}", hint=mends(self.spec, request, found, self.limits))


def ask(given: Given) -> AskedQuantization:
    """Return what a command asks. Raises: MemplanError for a bad value, an unknown model or a quantized one."""
    from memplan.introspect.resolve import weights_folder

    request = _request(given)
    name, revision = str(given["model"]), given.get("revision")
    folder = weights_folder(name, revision=revision)
    output = output_of(given, name, request.method.name, folder)
    spec = _spec(name, revision, offline=bool(given.get("offline")))
    if folder is not None and not (folder / "config.json").is_file():
        raise SourceNotFound(f"no config.json in {folder}", hint="download the whole repository")
    if spec.quantization:
        raise UsageError(f"{spec.name} is quantized already ({spec.quantization})", hint="give the 16-bit model")
    request = replace(request, window_tokens=_window_tokens(given, spec, request))
    target_note = ""
    if "target" in given:
        request, target_note = fitted_to(str(given["target"]), spec, request, given)
    fallbacks, keeps_base = _fallbacks(given, request)
    target_bytes = _target(given, request)
    return AskedQuantization(
        name=name,
        spec=spec,
        folder=folder,
        request=request,
        forecast=forecast(spec, request, target_bytes=target_bytes),
        limits=limits_of(given, output),
        output=output,
        max_increase_fraction=parse_fraction(str(given.get("max_perplexity_increase", "2%"))),
        target_bytes=target_bytes,
        target_note=target_note,
        fallbacks=fallbacks,
        keeps_base=keeps_base,
    )


def _spec(name: str, revision: str | None, *, offline: bool) -> ModelSpec:
    """The model; of a family that memplan has no rules for, as transformers builds it, which does the work anyway."""
    from memplan.pipeline import load_model

    try:
        return load_model(name, revision=revision, offline=offline, introspect="auto")
    except UnsupportedModel as error:
        try:
            return load_model(name, revision=revision, offline=offline, introspect="torch")
        except UnsupportedModel as again:
            raise UnsupportedModel(f"{error.message}; {again.message}", hint=again.hint) from None


def _window_tokens(given: Given, spec: ModelSpec, request: QuantizeRequest) -> int:
    """As asked, else as long as the model's context lets them be. Raises: UsageError for windows that are longer."""
    if "window" in given and request.window_tokens > spec.max_context_tokens > 0:
        longest = spec.max_context_tokens
        raise UsageError(
            f"windows of {request.window_tokens:,} tokens are longer than the model's context of {longest:,}",
            hint="give a --window within its context",
        )
    return min(request.window_tokens, spec.max_context_tokens or request.window_tokens)


def with_time(asked: AskedQuantization) -> AskedQuantization:
    """The same with the time it takes, where torch and the device are there to measure how fast they are."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return asked
    from memplan.quantize.speed import is_there, probe

    if not is_there(asked.request.device):
        return asked
    speed = probe(asked.request.device)
    return replace(asked, forecast=forecast(asked.spec, asked.request, speed=speed, target_bytes=asked.target_bytes))


def _fallbacks(given: Given, request: QuantizeRequest) -> tuple[tuple[QuantizeRequest, ...], bool]:
    """What is tried next when the gate is missed, and whether in the end the 16-bit model is kept.

    Raises: UsageError for an unknown method, and for one behind `none`.
    """
    names = split_names(str(given["fallback"]), "--fallback") if "fallback" in given else ()
    if "none" in names[:-1]:
        raise UsageError("nothing is tried behind `none`", hint="--fallback int8,none")
    found = []
    for name in (name for name in names if name != "none"):
        if name == request.method.name:
            raise UsageError(f"--fallback {name} is what is tried first", hint="name a more careful one, such as int8")
        found.append(_request({key: value for key, value in given.items() if key not in _OF_METHOD} | {"method": name}))
    return tuple(found), "none" in names


def _request(given: Given) -> QuantizeRequest:
    device = str(given.get("device", "cpu"))
    if device not in _DEVICES:
        raise UsageError(f"not a device to quantize on: `{device}`", hint=f"use one of {', '.join(_DEVICES)}")
    if "max_gpu_memory" in given and device == "cpu":
        raise UsageError("--max-gpu-memory without a GPU to work on", hint="add --device cuda, or give --max-ram")
    named = {ours: given[theirs] for theirs, ours in _SETTINGS.items() if theirs in given}
    named.update({name: given[name] for name in _AS_GIVEN if name in given})
    library = BACKENDS.get(str(given.get("backend", "native")))
    request = quantize_request(
        str(given.get("method", library.methods[0] if library else "awq")),
        bits=given.get("bits"),
        group_size=given.get("group_size"),
        symmetric=given.get("symmetric"),
        weights_only=bool(given.get("weights_only")),
        format=given.get("format") or (library.format if library else None),
        keeps=tuple(pattern for each in given.get("keep", ()) for pattern in split_names(each, "--keep")),
        device=device,
        **named,
    )
    if given.get("backend", "native") != "native":
        check_backend(str(given["backend"]), request)
    return request


def _target(given: Given, request: QuantizeRequest) -> int | None:
    """What the weights of a mix may take. Raises: UsageError where it is missing, or has no meaning."""
    is_auto, text = request.method.name == "auto", given.get("target_memory")
    if is_auto and request.format != "compressed-tensors":
        raise UsageError(f"--format {request.format} holds one width", hint="--method auto writes compressed-tensors")
    if is_auto and text is None:
        raise UsageError("--method auto needs a size to fit", hint="--target-memory 24GiB")
    if text is None:
        return None
    if not is_auto:
        raise UsageError("--target-memory is for --method auto", hint="leave it out, or give --method auto")
    return parse_size_bytes(str(text), what="--target-memory")
