"""A checkpoint as it was written, read back: quantized layers unpacked, so that what is judged is what will be loaded.

Axes: O out features, I in features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from memplan.introspect.quantization.rules import ancestors
from memplan.quantize.checkpoint import Checkpoint
from memplan.quantize.formats import Layout, format_named
from memplan.quantize.formats.bitsandbytes import NF4_STATE, state_shape
from memplan.quantize.forward import StreamedModel
from memplan.quantize.input_rounding import round_inputs
from memplan.quantize.methods import Method
from memplan.quantize.skeleton import Skeleton

# The tensor that every quantized layer has, by format.
_MARKS = (".weight_scale", ".scales", ".weight.absmax", ".SCB")


class WrittenCheckpoint(Checkpoint):
    """A quantized checkpoint that hands out plain weights, under the names that a 16-bit one has."""

    def __init__(self, path: Path, layout: Layout, format_name: str) -> None:
        super().__init__(path, may_be_quantized=True)
        self._layout, self._format = layout, format_named(format_name)
        self._parts: dict[str, list[str]] = {}
        self._module: dict[str, str] = {}
        for name in list(self.shapes):
            if name.endswith(_MARKS):
                self._parts[next(name.removesuffix(mark) for mark in _MARKS if name.endswith(mark))] = []
        for name in super().names():
            module = next((parent for parent in ancestors(name.rpartition(".")[0]) if parent in self._parts), None)
            if module is not None and not name.endswith(".bias"):
                self._module[name] = module
                self._parts[module].append(name.removeprefix(f"{module}."))
        for module in self._parts:
            self.shapes[f"{module}.weight"] = self._shape(module)

    @property
    def layers(self) -> tuple[str, ...]:
        """The quantized layers, by their names in the checkpoint."""
        return tuple(self._parts)

    def names(self) -> list[str]:
        """The names that a 16-bit checkpoint would have."""
        plain = [name for name in super().names() if name not in self._module]
        return plain + [f"{module}.weight" for module in self._parts]

    def is_unpacked(self, name: str) -> bool:
        """Whether a tensor comes out of a quantized layer, and so as out x in."""
        return name.rpartition(".")[0] in self._parts and name.endswith(".weight")

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def read(self, name: str) -> Tensor:
        """Return one tensor; the weights of a quantized layer as float32, O x I."""
        module, _, leaf = name.rpartition(".")
        if module not in self._parts or leaf == "bias":
            return super().read(name)
        tensors = {part: super(WrittenCheckpoint, self).read(f"{module}.{part}") for part in self._parts[module]}
        return self._format.unpack(tensors, self._layout.of(module))

    def input_scale(self, module: str) -> float:
        """The calibrated scale of a layer's inputs; 0 where there is none."""
        name = f"{module}.input_scale"
        return float(super().read(name)) if name in self.shapes else 0.0

    def _shape(self, module: str) -> tuple[int, int]:
        """The shape of the weights, from what is stored and without unpacking it."""
        stored = {part: self.shapes[f"{module}.{part}"] for part in self._parts[module]}
        if "weight_shape" in stored:
            num_out, num_in = super().read(f"{module}.weight_shape").tolist()
            return num_out, num_in
        if NF4_STATE in stored:
            return state_shape(super().read(f"{module}.{NF4_STATE}"))
        return self._format.shape(stored, self._layout.of(module))


def written_model(
    path: Path, layout: Layout, format_name: str, *, device: str = "cpu", spill: Path | None = None
) -> StreamedModel:
    """Return a model that runs from the files of a quantized checkpoint, a block at a time.

    Where the format says that an engine rounds activations, they are rounded here as well.
    """
    checkpoint = WrittenCheckpoint(path, layout, format_name)
    skeleton = Skeleton(path, device=device, checkpoint=checkpoint)
    if layout.method.activation_bits < 16:
        for name, module in skeleton.model.named_modules():
            if isinstance(module, nn.Linear) and checkpoint.is_unpacked(
                stored := skeleton.stored_name(f"{name}.weight")
            ):
                scale = checkpoint.input_scale(stored.removesuffix(".weight"))
                module.register_forward_pre_hook(_rounding(layout.method, scale))
    return StreamedModel(path, device=device, skeleton=skeleton, spill=spill)


def _rounding(method: Method, input_scale: float) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (round_inputs(args[0].float(), method, input_scale).to(args[0].dtype), *args[1:])

    return hook
