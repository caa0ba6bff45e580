"""Passes over one block: all batches run through it, but for what need not run again.

GPTQ runs a block once for every subset of its layers, because a layer's inputs are those that rounded layers before it
leave. What the last layer of a module reads (attention's output projection, the down projection) stays as it is from
the moment that its statistics are taken, for all that runs before it is rounded by then. So it is written down, and in
the passes that follow the module is that layer alone: attention is computed once and not four times. The bits of a
result are the same with and without.

Which modules are such is seen in a run: what the module returns is the very tensor that the layer returned, and beside
it nothing but None.

Axes: B windows of a batch, N tokens of a window, H hidden features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memplan.quantize.calls import Call
from memplan.quantize.linears import is_linear
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The module `module` returns what `layer` in it does: alone, or at `place` in a tuple of `length`."""

    module: str
    layer: str
    place: int = -1
    length: int = 0

    def output(self, value: Any) -> Any:
        """What the module returns where the layer returns `value`."""
        if self.place < 0:
            return value
        return tuple(value if place == self.place else None for place in range(self.length))


def find_tails(block: nn.Module, run: Callable[[nn.Module], object]) -> tuple[Tail, ...]:
    """Return the tails of a block. `run` calls it with an input of its own."""
    made: dict[int, str] = {}
    kept: list[Tensor] = []
    found: dict[str, Tail] = {}
    num_calls: Counter[str] = Counter()

    def note_layer(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            num_calls[name] += 1
            if isinstance(output, Tensor):
                kept.append(output)
                made[id(output)] = name

        return hook

    def note_module(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tail = _tail(name, output, made)
            if tail is not None and tail.layer.startswith(f"{name}."):
                found[name] = tail

        return hook

    hooks = []
    for name, module in block.named_modules():
        if is_linear(module):
            hooks.append(module.register_forward_hook(note_layer(name)))
        elif name:
            hooks.append(module.register_forward_hook(note_module(name)))
    try:
        run(block)
    finally:
        for hook in hooks:
            hook.remove()
    # Of modules in one another the outermost says it all.
    return tuple(
        tail
        for name, tail in found.items()
        if not any(name.startswith(f"{other}.") for other in found if other != name)
    )


def _tail(module: str, output: Any, made: dict[int, str]) -> Tail | None:
    if isinstance(output, Tensor):
        return Tail(module=module, layer=made[id(output)]) if id(output) in made else None
    if type(output) is not tuple:
        return None
    places = [place for place, value in enumerate(output) if value is not None]
    if len(places) != 1 or id(output[places[0]]) not in made:
        return None
    return Tail(module=module, layer=made[id(output[places[0]])], place=places[0], length=len(output))


Batches = Sequence[tuple[Tensor, Call]]


class Passes:
    """A block and the batches that go through it. Inputs of `tails` are in files of `folder`, gone after `with`.

    Without a folder nothing is written down, and every pass runs all of the block.
    """

    def __init__(
        self, block: nn.Module, batches: Batches, tails: Sequence[Tail] = (), folder: Path | None = None, rank: int = 0
    ) -> None:
        self.block, self.batches = block, batches
        self._tails = {tail.layer: tail for tail in tails} if folder is not None else {}
        self._folder, self._rank = folder, rank
        self._batch = 0
        self._known: dict[str, _Inputs] = {}

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *_: object) -> None:
        for inputs in self._known.values():
            inputs.path.unlink(missing_ok=True)
        self._known = {}

    @contextmanager
    def once(self, measured: str = "") -> Iterator[Iterator[Callable[[], Tensor]]]:
        """One pass: a run of the block for every batch.

        Whatever the layer `measured` reads is what it will read in all later passes: everything before it is rounded.
        """
        modules = [self._shorten(self._tails[layer], inputs) for layer, inputs in self._known.items()]
        noted, hook = None, None
        if measured in self._tails and measured not in self._known and self._folder is not None:
            noted = _Inputs(self._folder / f"replay-{measured}-rank{self._rank}.bin")
            hook = self.block.get_submodule(measured).register_forward_pre_hook(noted.hook, with_kwargs=True)
        try:
            yield self._runs()
        finally:
            if hook is not None:
                hook.remove()
            for module in modules:
                del module.forward
            if noted is not None:
                noted.end()
        if noted is not None:
            self._known[measured] = noted

    def outputs(self) -> Iterator[Tensor]:
        """Yield the output of the block (B x N x H) for every batch."""
        with self.once() as runs:
            for run in runs:
                with torch.no_grad():
                    yield run()

    def _runs(self) -> Iterator[Callable[[], Tensor]]:
        for index, (input_BNH, call) in enumerate(self.batches):
            self._batch = index
            yield partial(call.run, self.block, input_BNH)

    def _shorten(self, tail: Tail, inputs: _Inputs) -> nn.Module:
        module, layer = self.block.get_submodule(tail.module), self.block.get_submodule(tail.layer)

        def forward(*_args: Any, **_named: Any) -> Any:
            return tail.output(layer(inputs.read(self._batch)))

        setattr(module, "forward", forward)  # noqa: B010 - a method, to mypy
        return module


class _Inputs:
    """Tensors one after another in a file, which may be lost with the process: it is made anew then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._places: list[tuple[int, torch.Size, torch.dtype, torch.device]] = []

    def hook(self, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Before a layer runs: keep what it reads."""
        value: Tensor = args[0] if args else next(iter(kwargs.values()))
        self._places.append((self._file.tell(), value.shape, value.dtype, value.device))
        plain = value.detach().cpu().contiguous()
        self._file.write(memoryview(plain.view(torch.uint8).numpy()).cast("B"))

    def end(self) -> None:
        """All are written."""
        self._file.close()

    def read(self, index: int) -> Tensor:
        """The tensor of a batch."""
        place, shape, dtype, device = self._places[index]
        data = bytearray(shape.numel() * dtype.itemsize)
        with self.path.open("rb") as file:
            file.seek(place)
            file.readinto(data)
        return torch.frombuffer(data, dtype=dtype).reshape(shape).to(device)
