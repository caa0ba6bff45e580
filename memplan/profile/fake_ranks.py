"""One rank of several that are not there: a process group that moves nothing, and streams for the meta device.

PyTorch's own code of sharding runs as it is. On a GPU it asks `torch.cuda` for streams and events; for tensors of the
meta device it would ask a module `torch.meta`, and `_MetaDevice` stands there meanwhile. It tells the recorder which
stream is current, because the caching allocator of a GPU keeps the blocks of every stream apart. Events need nothing:
FSDP2 makes other streams wait by them and holds its buffers by references, never by `record_stream`, so that its memory
goes back to the allocator at the same line on a GPU as here.

Source: torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py and _fsdp_collectives.py of PyTorch 2.6 to 2.13.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed

from memplan.profile.recorder import Answer, Recorder

_MAIN_STREAM = 0


@contextlib.contextmanager
def among_fake_ranks(num_ranks: int, recorder: Recorder | None = None) -> Iterator[None]:
    """Be the first of several processes, without any other: collectives return at once.

    With a recorder the meta device has streams, and FSDP2 runs on it.
    """
    import torch.distributed._tools.fake_collectives  # noqa: F401  collectives of meta tensors
    from torch.testing._internal.distributed.fake_pg import FakeStore

    usual = sys.excepthook
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_ranks)
    sys.excepthook = usual  # else every line of a later error would begin with the rank
    try:
        if recorder is None:
            yield
            return
        with _streams_on_meta(recorder), _shapes_unseen(recorder):
            yield
    finally:
        distributed.destroy_process_group()


def collective_answers() -> dict[Any, Answer]:
    """Waiting for a collective gives the tensor itself, and so does the wrapper that waits later."""
    from torch.distributed import _functional_collectives as collectives

    found: dict[Any, Answer] = {torch.ops._c10d_functional.wait_tensor.default: lambda args, kwargs: args[0]}
    if hasattr(collectives, "_wrap_tensor_autograd"):
        wrap = torch.ops._c10d_functional._wrap_tensor_autograd.default
        found[wrap] = lambda args, kwargs: collectives.AsyncCollectiveTensor(args[0])
    return found


@contextlib.contextmanager
def _streams_on_meta(recorder: Recorder) -> Iterator[None]:
    vars(torch)["meta"] = _MetaDevice(recorder)
    try:
        with replaced_in_fsdp({"_validate_no_meta_params": lambda plain: lambda group: None}):
            yield
    finally:
        del vars(torch)["meta"]


@contextlib.contextmanager
def replaced_in_fsdp(makers: dict[str, Callable[[Any], Any]]) -> Iterator[None]:
    """Put what makers make of them in the place of methods of FSDP2's groups of weights; nothing without FSDP2."""
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
    except ImportError:
        yield
        return
    plain = {name: getattr(FSDPParamGroup, name) for name in makers}
    try:
        for name, make in makers.items():
            setattr(FSDPParamGroup, name, make(plain[name]))
        yield
    finally:
        for name, method in plain.items():
            setattr(FSDPParamGroup, name, method)


@contextlib.contextmanager
def _shapes_unseen(recorder: Recorder) -> Iterator[None]:
    """Transformers asks the meta device for strides; that tensor is not one of the model's."""
    try:
        from transformers.distributed.tensor_parallel import TensorParallelLayer
    except ImportError:
        yield
        return
    plain = TensorParallelLayer._from_local_last_dim_shard

    def unseen(local: Any, mesh: Any, size: int) -> Any:
        with recorder.unseen():
            return plain(local, mesh, size)

    TensorParallelLayer._from_local_last_dim_shard = staticmethod(unseen)
    try:
        yield
    finally:
        TensorParallelLayer._from_local_last_dim_shard = staticmethod(plain)


class _Stream:
    """A queue of work on the device. Nothing waits, because nothing runs."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> None:
        pass


class _Event:
    def record(self, stream: Any = None) -> None:
        pass


class _MetaDevice:
    """What `torch.cuda` is for a GPU, as far as sharding asks for it."""

    Event = _Event

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._streams = [_Stream(_MAIN_STREAM)]

    def Stream(self, priority: int = 0) -> _Stream:  # noqa: N802  as torch.cuda spells it
        """A stream of its own."""
        self._streams.append(_Stream(len(self._streams)))
        return self._streams[-1]

    def current_stream(self, device: Any = None) -> _Stream:
        """The stream that work goes to now."""
        return self._streams[self._recorder.stream]

    @contextlib.contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        """Send work to another stream meanwhile."""
        before = self._recorder.stream
        self._recorder.stream = stream.number
        try:
            yield
        finally:
            self._recorder.stream = before

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return int(distributed.get_world_size())

    def set_device(self, device: Any) -> None:
        pass

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True
