"""Weight buffers: what every device holds of a model, and how much of the file the host maps.

The embedding stays in host memory; a tied head is a second copy where the output layer lies. CUDA pads the rows of
quantized tensors to 512 elements and places tensors at multiples of 128 bytes. A mapped file counts from its first to
its last tensor in host memory. With `-sm row`, matrices are cut over the GPUs by rows and the rest stays with its
layer.

Source: load_tensors / llm_load_tensors, ggml_backend_cuda_buffer_type_get_alloc_size, b2354 to b11000.
"""

from __future__ import annotations

from memplan.budget.storage import storage_bytes
from memplan.catalog.rules import Rules
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.tensors import Tensor
from memplan.engines.llama_cpp.ggml_graph import TYPES
from memplan.engines.llama_cpp.graph_builder import ggml_type
from memplan.engines.llama_cpp.graph_traits import ENCODERS
from memplan.engines.llama_cpp.placement import Devices
from memplan.records import dataclass
from memplan.units import round_up

_INPUT = ("token_embd", "position_embd", "token_types", "token_embd_norm")
_ALIGNMENT = {"CUDA": 128, "ROCm": 128, "SYCL": 128, "CANN": 128}
_ROW_ELEMENTS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBuffers:
    """Bytes of weights by device, the host last, and those of the embedding, the head and the experts among them."""

    by_device: tuple[int, ...]
    by_part: tuple[dict[str, int], ...]

    @property
    def host_bytes(self) -> int:
        return self.by_device[-1]


def weight_buffers(spec: ModelSpec, devices: Devices, backend: str, rules: Rules) -> WeightBuffers:
    """Return what every device holds of the weights of a model that goes by ggml's names."""
    held = _Held([{} for _ in range(devices.num_gpus + 1)], devices, backend)
    made: dict[object, list[dict[str, int]]] = {}
    for index, layer in enumerate(spec.layers):
        key = id(layer), devices.layers[index], index if devices.overrides else index in devices.experts_on_host
        if key not in made:
            made[key] = _layer_parts(layer, index, devices, backend)
        held.add_all(made[key])
    for tensor in spec.shared:
        for device, part in _shared_places(tensor, devices, rules):
            held.add(devices.shared_device(tensor.name, device), tensor, part)
    tied = tied_head(spec)
    output = devices.shared_device("output.weight", devices.output)
    if tied is not None and output != devices.host:
        held.add(output, tied, "head")
    return WeightBuffers(by_device=tuple(sum(parts.values()) for parts in held.parts), by_part=tuple(held.parts))


def tied_head(spec: ModelSpec) -> Tensor | None:
    """The embedding, where it serves as the head, too; encoders end without one."""
    if spec.model_type in ENCODERS:
        return None
    names = {tensor.name: tensor for tensor in spec.shared}
    return None if "output.weight" in names else names.get("token_embd.weight")


def _layer_parts(layer: Layer, index: int, devices: Devices, backend: str) -> list[dict[str, int]]:
    """What every device holds of one layer."""
    held = _Held([{} for _ in range(devices.num_gpus + 1)], devices, backend)
    for tensor in layer.tensors:
        routed = "exps." in tensor.name
        part = "routed experts" if routed else "layers"
        device = devices.weight_device(index, tensor.name)
        if devices.row_shares and device != devices.host and len(tensor.shape) > 1 and not routed:
            held.add_rows(tensor, part)
        else:
            held.add(device, tensor, part)
    return held.parts


@dataclass(frozen=True, slots=True)
class _Held:
    """Sums of bytes by device and part."""

    parts: list[dict[str, int]]
    devices: Devices
    backend: str

    def add(self, device: int, tensor: Tensor, part: str, fraction: float = 1.0) -> None:
        size = held_bytes(tensor, self.backend if device != self.devices.host else "CPU")
        self.parts[device][part] = self.parts[device].get(part, 0) + round(size * fraction)

    def add_all(self, parts: list[dict[str, int]]) -> None:
        """Add what devices hold of one layer."""
        for mine, more in zip(self.parts, parts, strict=True):
            for part, size in more.items():
                mine[part] = mine.get(part, 0) + size

    def add_rows(self, tensor: Tensor, part: str) -> None:
        """Cut a matrix over the GPUs by their shares."""
        begin = 0.0
        for device, end in enumerate(self.devices.row_shares):
            if end > begin:
                self.add(device, tensor, part, end - begin)
            begin = end


def _shared_places(tensor: Tensor, devices: Devices, rules: Rules) -> list[tuple[int, str]]:
    """Where a tensor outside the layers lies; rotary factors lie on every device that has layers."""
    base = tensor.name.split(".")[0]
    if base in _INPUT or (base == "per_layer_token_embd" and rules["per_layer_embeddings_on_host"]):
        return [(devices.host, "embedding")]
    if base.startswith("rope_f"):
        return [(device, "layers") for device in sorted(set(devices.layers))]
    return [(devices.output, "head" if base == "output" else "layers")]


def held_bytes(tensor: Tensor, backend: str) -> int:
    """The bytes that one tensor takes in a buffer, padding included."""
    kind = TYPES[ggml_type(tensor)]
    if tensor.storage is not None:
        size = storage_bytes(tensor.shape, tensor.storage, count=tensor.count)
    else:
        size = tensor.num_elements * kind.block_bytes // kind.block
    alignment = _ALIGNMENT.get(backend)
    if alignment is None:
        return round_up(size, 32)
    missing = -tensor.shape[-1] % _ROW_ELEMENTS if kind.block > 1 else 0
    return round_up(size + missing // kind.block * kind.block_bytes, alignment)


def file_bytes(spec: ModelSpec) -> int:
    """What the weights add up to in the file."""
    tensors = [tensor for layer in spec.layers for tensor in layer.tensors]
    return sum(held_bytes(tensor, "CPU") for tensor in (*tensors, *spec.shared))
