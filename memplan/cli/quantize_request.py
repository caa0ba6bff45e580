"""What a command line asks of a quantization: the model, the request, the forecast, and the limits it is held to."""

from __future__ import annotations

from pathlib import Path

from memplan.cli.options import Given
from memplan.domain.model import ModelSpec
from memplan.errors import UsageError
from memplan.quantize.forecast import Forecast, forecast
from memplan.quantize.request import QuantizeRequest, quantize_request
from memplan.records import dataclass
from memplan.units import format_gib, parse_fraction, parse_size_bytes

_DEVICES = ("cpu", "cuda")
_SETTINGS = {"window": "window_tokens", "num_samples": "num_samples", "batch_size": "batch_size"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedQuantization:
    """A quantization that was asked for. `folder` holds the weights, None where they are not on this disk."""

    name: str
    spec: ModelSpec
    folder: Path | None
    request: QuantizeRequest
    forecast: Forecast
    limit_bytes: int | None
    output: Path | None
    max_increase_fraction: float

    @property
    def where(self) -> str:
        """What does the work."""
        return "memory" if self.request.device == "cpu" else "GPU memory"

    @property
    def needed_bytes(self) -> int:
        """What the limited device must hold."""
        return self.forecast.host_bytes if self.request.device == "cpu" else self.forecast.device_bytes

    def shortage(self) -> str:
        """How much is missing, in words."""
        step = self.forecast.hungriest.name
        return (
            f"needs {format_gib(self.needed_bytes)} of {self.where} ({step}); "
            f"{format_gib(self.limit_bytes or 0)} may be used"
        )

    def mend(self) -> str:
        """What needs less."""
        if self.request.method.rounding == "gptq":
            return "--method awq holds one Hessian less, --method int8 none"
        if self.request.method.needs_calibration:
            return "a smaller --batch-size or --window, or --method rtn, which needs no calibration"
        return "it is the widest block that must be held; a larger machine"


def ask(given: Given) -> AskedQuantization:
    """Return what a command asks. Raises: MemplanError for a bad value, an unknown model or a quantized one."""
    from memplan.introspect.resolve import weights_folder
    from memplan.pipeline import load_model

    request = _request(given)
    name, revision = str(given["model"]), given.get("revision")
    spec = load_model(name, revision=revision, offline=bool(given.get("offline")), introspect="auto")
    if spec.quantization:
        raise UsageError(f"{spec.name} is quantized already ({spec.quantization})", hint="give the 16-bit model")
    return AskedQuantization(
        name=name,
        spec=spec,
        folder=weights_folder(name, revision=revision),
        request=request,
        forecast=forecast(spec, request),
        limit_bytes=_limit(given, request.device),
        output=given.get("output") or Path(f"{_plain_name(name)}-{request.method.name.replace('+', '-')}"),
        max_increase_fraction=parse_fraction(str(given.get("max_perplexity_increase", "2%"))),
    )


def _request(given: Given) -> QuantizeRequest:
    device = str(given.get("device", "cpu"))
    if device not in _DEVICES:
        raise UsageError(f"not a device to quantize on: `{device}`", hint=f"use one of {', '.join(_DEVICES)}")
    named = {ours: given[theirs] for theirs, ours in _SETTINGS.items() if theirs in given}
    for name in ("calibration", "damping", "seed"):
        if name in given:
            named[name] = given[name]
    return quantize_request(
        str(given.get("method", "awq")),
        bits=given.get("bits"),
        group_size=given.get("group_size"),
        symmetric=given.get("symmetric"),
        weights_only=bool(given.get("weights_only")),
        format=given.get("format"),
        keeps=tuple(given.get("keep", ())),
        device=device,
        **named,
    )


def _limit(given: Given, device: str) -> int | None:
    name = "max_ram" if device == "cpu" else "max_gpu_memory"
    if name in given:
        return parse_size_bytes(str(given[name]), what=f"--{name.replace('_', '-')}")
    return _free_memory() if device == "cpu" else None


def _free_memory() -> int | None:
    """What Linux says is available; None elsewhere."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _plain_name(name: str) -> str:
    return Path(name).name.lower() or "model"
