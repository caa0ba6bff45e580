"""What a quantization will take, before it starts: memory, disk and work, step by step. Torch is not known here.

A run holds one block at a time, so its peak is that of the hungriest step of the widest block (`forecast_steps`); how
long it takes is in `forecast_time`. Memory is what the process itself holds: pages of mapped files, which the system
takes back when it needs them, are not counted.

Where the work runs on a GPU these are the GPU's, and the host holds a batch, the embeddings while the first inputs are
made, and a block while it is written.
"""

from __future__ import annotations

from memplan.budget.storage import checkpoint_bytes
from memplan.catalog.quant_schemes import parse_scheme
from memplan.domain.model import Layer, ModelSpec
from memplan.introspect.quantized import quantize_spec
from memplan.quantize.forecast_steps import FLOAT_BYTES, ITEM_BYTES, MOST_HIDDEN_BYTES, Step, steps_of, widths_of
from memplan.quantize.forecast_time import MachineSpeed, work_of
from memplan.quantize.request import QuantizeRequest
from memplan.records import dataclass
from memplan.units import MIB

# A process that has imported torch and transformers and built a model without weights holds 256 MiB itself (measured
# by benchmarks/quantize/memory.py, torch 2.13 on Linux). 64 MiB on top are for what libraries keep that passes call,
# and what the C library has not been told to give back yet (torch_memory.py).
RUNTIME_BYTES = 320 * MIB
# What a process on a GPU holds outside of torch: context, cuBLAS. Source: docs/memory-model.md, context.
_CONTEXT_BYTES = 500 * MIB
# The built-in texts to validate on are 22,600 tokens to the demo model, whose tokenizer is small; others have fewer.
PROOF_TOKENS = 25_000
_FIXED_SCHEMES = {"fp8": "fp8-channel", "fp8-static": "fp8", "fp8-block": "fp8-block"}
_FIXED_SCHEMES |= {"nvfp4": "nvfp4", "mxfp4": "mxfp4", "nf4": "bnb-nf4", "llm-int8": "bnb-int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a quantization of a model takes. `device_bytes` is 0 where the host does the work.

    `flops` are those of calibration passes, Hessians, factorisations, searches and the proof on `proof_tokens`;
    `output_bytes` is the checkpoint that comes out. `seconds` is None where the machine's speed is not known.
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
    proof_tokens: int
    seconds: float | None = None
    proof_seconds: float | None = None

    @property
    def hungriest(self) -> Step:
        """The step that needs the most."""
        return max(self.steps, key=lambda step: step.total_bytes)


def forecast(
    spec: ModelSpec,
    request: QuantizeRequest,
    *,
    proof_tokens: int = PROOF_TOKENS,
    speed: MachineSpeed | None = None,
    target_bytes: int | None = None,
) -> Forecast:
    """Return what quantizing `spec` takes, with the proof on `proof_tokens`; `speed` is the machine's, for the time.

    `target_bytes` is what a mix of widths may take: the checkpoint is as large then, if not smaller than in 16 bit.
    Not modelled: attention that is written out (a mask of N x N for every head), media towers, which are left alone.
    """
    tokens = request.num_samples * request.window_tokens
    hidden_bytes = tokens * spec.hidden_size * ITEM_BYTES if request.method.needs_calibration else 0
    proof_bytes = proof_tokens * spec.hidden_size * (FLOAT_BYTES if request.device == "cpu" else ITEM_BYTES)
    spilled_bytes = 4 * proof_bytes if proof_bytes > MOST_HIDDEN_BYTES else 0
    widest = max((layer for layer, _ in spec.distinct_layers()), key=lambda layer: layer.num_parameters)
    inputs_bytes = _inputs_bytes(request, widest, tokens)
    steps = steps_of(spec, request, widest, proof_tokens=proof_tokens)
    on_host = request.device == "cpu"
    peak_bytes = (RUNTIME_BYTES if on_host else _CONTEXT_BYTES) + max(step.total_bytes for step in steps)
    output_bytes = max(_output_bytes(spec, request), min(target_bytes or 0, checkpoint_bytes(spec)))
    blocks, proof = work_of(spec, request, tokens=tokens, proof_tokens=proof_tokens)
    beside_bytes = RUNTIME_BYTES + max(steps[0].total_bytes, 2 * widest.num_parameters * ITEM_BYTES)
    return Forecast(
        model_name=spec.name,
        device=request.device,
        steps=steps,
        host_bytes=peak_bytes if on_host else beside_bytes,
        device_bytes=0 if on_host else peak_bytes,
        disk_bytes=2 * output_bytes + max(2 * hidden_bytes + inputs_bytes, hidden_bytes + spilled_bytes),
        output_bytes=output_bytes,
        flops=(blocks + proof).flops,
        num_blocks=spec.num_layers,
        calibration_tokens=tokens if request.method.needs_calibration else 0,
        proof_tokens=proof_tokens,
        seconds=speed.seconds(blocks + proof) if speed else None,
        proof_seconds=speed.seconds(proof) if speed else None,
    )


def _inputs_bytes(request: QuantizeRequest, layer: Layer, tokens: int) -> int:
    """The inputs of layers that read alone and may end a module, which are written down to spare passes (passes.py)."""
    if request.method.rounding != "gptq" or not request.true_sequential:
        return 0
    alone = (each for each in widths_of(layer).readings if len(each.outs) == each.copies == 1)
    return tokens * sum(each.num_in for each in alone) * ITEM_BYTES


def _output_bytes(spec: ModelSpec, request: QuantizeRequest) -> int:
    """The checkpoint that comes out: rounded layers with their scales, the rest as it is."""
    return checkpoint_bytes(quantize_spec(spec, parse_scheme(scheme_name(request))))


def scheme_name(request: QuantizeRequest) -> str:
    """What `--quant` calls the result."""
    method = request.method
    if method.format == "gguf":
        return method.name
    if method.name in _FIXED_SCHEMES:
        return _FIXED_SCHEMES[method.name]
    if method.activation_bits < 16:
        return "w8a8-int8"
    family = {"gptq": "gptq", "awq": "awq", "compressed-tensors": "ct"}[request.format]
    group = f"-g{request.group_size}" if request.group_size else ""
    return f"{family}-int{request.bits}{group}"
