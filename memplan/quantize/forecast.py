"""What a quantization will take, before it starts: memory, disk and work, step by step. Torch is not known here.

A run holds one block at a time, so its peak is that of the hungriest step of the widest block. The steps are those of
`pipeline` and `block`, and the sizes what they hold: a Hessian is in features squared in float32, GPTQ holds two of
them and the weights in float32, statistics for a scaling hold one for every input of the block.

Where the work runs on a GPU these are the GPU's, and the host holds a batch, the embeddings while the first inputs are
made, and a block while it is written.
"""

from __future__ import annotations

from memplan.budget.storage import checkpoint_bytes
from memplan.catalog.quant_schemes import parse_scheme
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.tensors import Role
from memplan.introspect.quantized import quantize_spec
from memplan.quantize.request import QuantizeRequest
from memplan.records import dataclass
from memplan.units import MIB

# A process that has imported torch and transformers and built a model without weights holds 512 MiB (measured by
# benchmarks/quantize/memory.py, torch 2.13 on Linux); 48 MiB on top is assumed for what passes leave with malloc.
RUNTIME_BYTES = 560 * MIB
# What a process on a GPU holds outside of torch: context, cuBLAS. Source: docs/memory-model.md, context.
_CONTEXT_BYTES = 500 * MIB
_FLOAT = 4
_FLOAT_SCHEMES = {"fp8": "fp8-channel", "fp8-static": "fp8", "fp8-block": "fp8-block"}
_FLOAT_SCHEMES |= {"nvfp4": "nvfp4", "mxfp4": "mxfp4"}
_ROUNDED = frozenset({Role.ATTENTION, Role.STATE, Role.MLP, Role.EXPERT, Role.SHARED_EXPERT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the work on the widest block, with what it holds at its peak, in bytes by what it is."""

    name: str
    holds: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """All that the step holds."""
        return sum(self.holds.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a quantization of a model takes. `device_bytes` is 0 where the host does the work.

    `flops` are those of calibration passes, Hessians, factorisations and searches; `output_bytes` is the checkpoint
    that comes out.
    """

    model_name: str
    device: str
    steps: tuple[Step, ...]
    host_bytes: int
    device_bytes: int
    disk_bytes: int
    output_bytes: int
    flops: int
    num_blocks: int
    calibration_tokens: int

    @property
    def hungriest(self) -> Step:
        """The step that needs the most."""
        return max(self.steps, key=lambda step: step.total_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Widths:
    """The linear layers of a block that are rounded: their inputs, each with the out features that read it."""

    readers: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def weights(self) -> int:
        """How many weights there are."""
        return sum(num_in * sum(outs) for num_in, outs in self.readers)

    @property
    def largest(self) -> int:
        """The weights of the largest layer."""
        return max((num_in * max(outs) for num_in, outs in self.readers), default=0)

    @property
    def widest(self) -> int:
        """The most in features of a layer."""
        return max((num_in for num_in, _ in self.readers), default=0)


def forecast(spec: ModelSpec, request: QuantizeRequest) -> Forecast:
    """Return what quantizing `spec` takes.

    Not modelled: attention that is written out (a mask of N x N for every head), media towers, which are left alone.
    """
    item_bytes = 2
    tokens = request.num_samples * request.window_tokens
    hidden_bytes = tokens * spec.hidden_size * item_bytes
    layers = spec.distinct_layers()
    widest = max((layer for layer, _ in layers), key=lambda layer: layer.num_parameters)
    steps = _steps(spec, request, widest, item_bytes)
    base = RUNTIME_BYTES if request.device == "cpu" else _CONTEXT_BYTES
    peak_bytes = base + max(step.total_bytes for step in steps)
    output_bytes = _output_bytes(spec, request)
    flops = sum(copies * _flops(_widths(layer), layer, request, tokens) for layer, copies in layers)
    on_host = request.device == "cpu"
    beside_bytes = RUNTIME_BYTES + max(steps[0].total_bytes, 2 * widest.num_parameters * item_bytes)
    return Forecast(
        model_name=spec.name,
        device=request.device,
        steps=steps,
        host_bytes=peak_bytes if on_host else beside_bytes,
        device_bytes=0 if on_host else peak_bytes,
        disk_bytes=2 * output_bytes + 2 * hidden_bytes,
        output_bytes=output_bytes,
        flops=flops,
        num_blocks=spec.num_layers,
        calibration_tokens=tokens if request.method.needs_calibration else 0,
    )


def _steps(spec: ModelSpec, request: QuantizeRequest, layer: Layer, item_bytes: int) -> tuple[Step, ...]:
    widths = _widths(layer)
    block_bytes = layer.num_parameters * item_bytes
    batch = min(request.batch_size, request.num_samples) * request.window_tokens
    hessian_bytes = widths.widest**2 * _FLOAT
    every_hessian_bytes = sum(num_in**2 for num_in, _ in widths.readers) * _FLOAT
    pass_bytes = batch * (2 * spec.hidden_size + 3 * widths.widest) * item_bytes
    rounded_bytes = widths.weights + widths.weights // max(request.group_size, 128) * 2 * _FLOAT
    shared_bytes = sum(tensor.num_elements for tensor in spec.shared if tensor.role is not Role.LM_HEAD) * item_bytes
    steps = [Step(name="first inputs", holds={"embeddings": shared_bytes, "a batch": pass_bytes})]
    method = request.method
    if method.scaling != "none":
        trial_bytes = layer.num_parameters * _FLOAT
        touched_bytes = max(num_in * sum(outs) for num_in, outs in widths.readers) * _FLOAT
        holds = {"the block": block_bytes, "a copy in float32": trial_bytes, "layers put aside": touched_bytes}
        steps.append(Step(name="trial of scalings", holds=holds))
    if method.needs_calibration:
        together = method.scaling == "awq" or (method.rounding == "gptq" and not request.true_sequential)
        held = every_hessian_bytes if together else hessian_bytes if method.rounding == "gptq" else 0
        inputs_bytes = 2 * batch * widths.widest * _FLOAT
        holds = {"the block": block_bytes, "Hessians": held, "a batch": pass_bytes, "inputs in float32": inputs_bytes}
        steps.append(Step(name="statistics", holds=holds))
    float_bytes = widths.largest * _FLOAT
    holds = {"the block": block_bytes, "rounded layers": rounded_bytes, "weights in float32": float_bytes}
    if method.rounding == "gptq":
        holds["Hessians"] = 2 * hessian_bytes + (every_hessian_bytes - hessian_bytes if method.scaling == "awq" else 0)
    elif method.needs_calibration and method.scaling == "awq":
        holds["Hessians"] = every_hessian_bytes
        holds["weights in float32"] = 2 * float_bytes
    steps.append(Step(name="rounding", holds=holds))
    holds = {"the block": block_bytes, "rounded layers": rounded_bytes, "a batch": pass_bytes}
    steps.append(Step(name="outputs", holds=holds))
    return tuple(steps)


def _widths(layer: Layer) -> _Widths:
    """Layers that read the same input have the same role and width in every family that is known."""
    readers: dict[tuple[Role, int, str], list[int]] = {}
    for tensor in layer.tensors:
        if tensor.linear and tensor.role in _ROUNDED and len(tensor.shape) == 2:
            expert = tensor.name if tensor.count > 1 else ""
            outs = readers.setdefault((tensor.role, tensor.shape[1], expert), [])
            outs.extend([tensor.shape[0]] * tensor.count)
    return _Widths(readers=tuple((num_in, tuple(outs)) for (_, num_in, _), outs in readers.items()))


def _output_bytes(spec: ModelSpec, request: QuantizeRequest) -> int:
    """The checkpoint that comes out: rounded layers with their scales, the rest as it is."""
    return checkpoint_bytes(quantize_spec(spec, parse_scheme(scheme_name(request))))


def scheme_name(request: QuantizeRequest) -> str:
    """What `--quant` calls the result."""
    method = request.method
    if method.element != "int":
        return _FLOAT_SCHEMES[method.name]
    if method.activation_bits < 16:
        return "w8a8-int8"
    family = {"gptq": "gptq", "awq": "awq", "compressed-tensors": "ct"}[request.format]
    group = f"-g{request.group_size}" if request.group_size else ""
    return f"{family}-int{request.bits}{group}"


def _flops(widths: _Widths, layer: Layer, request: QuantizeRequest, tokens: int) -> int:
    """Calibration passes over a block, Hessians, factorisations and searches."""
    method = request.method
    if not method.needs_calibration:
        return 0
    one_pass = 2 * tokens * layer.num_parameters
    flops = 2 * one_pass
    if method.rounding == "gptq" and request.true_sequential:
        flops += one_pass
    for num_in, outs in widths.readers:
        if method.rounding != "nearest" or method.scaling == "awq":
            flops += 2 * tokens * num_in**2
        if method.rounding == "gptq":
            flops += (4 * num_in**3 // 3 + 2 * num_in**2 * max(outs)) * len(outs)
        if method.scaling == "awq":
            flops += 40 * 2 * 512 * len(outs) * num_in**2
    return flops
