"""The memory of a device as whoever keeps it reports it: levels, peaks, a history of requests, what lies outside.

`CudaMemory` asks PyTorch's allocator and the driver of a GPU. `RehearsedMemory` is a device that is not there: passes
run for real on the CPU, and what they allocate goes through the simulated allocator, so that everything above this file
runs on a machine without a GPU as it does on one.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch

from memplan.budget.caching_allocator.blocks import Block, DeviceFull
from memplan.budget.caching_allocator.kinds import make_allocator
from memplan.budget.caching_allocator.settings import AllocatorSettings, parse_settings
from memplan.catalog.local_gpus import read_local_gpus
from memplan.domain.timeline import Level
from memplan.errors import MissingExtra
from memplan.profile.memviz import snapshot_from
from memplan.profile.recorder import Recorder

# What a history is cut to, at its front, in entries of some hundred bytes each.
_MOST_ENTRIES = 2_000_000


class DeviceMemory(ABC):
    """One device. Levels are in bytes, and true when everything that was asked of the device is done."""

    device: str
    name: str
    capacity_bytes: int | None

    @abstractmethod
    def side_stream(self) -> contextlib.AbstractContextManager[None]:
        """What runs meanwhile goes to a stream of its own, which waits for what was before and is waited for."""

    @abstractmethod
    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Capture a step in a graph with a private pool, and return what replays it."""

    @abstractmethod
    def start(self) -> None:
        """Begin a history, from a cache that holds nothing."""

    @abstractmethod
    def stop(self) -> None:
        """End the history, and leave the device as it was found."""

    @abstractmethod
    def give_back(self) -> None:
        """Return what is cached."""

    @abstractmethod
    def level(self) -> Level:
        """What is held now."""

    @abstractmethod
    def peak(self) -> tuple[Level, int]:
        """The most that was allocated since `restart_peak`, as far as it is known, and the most that was reserved."""

    @abstractmethod
    def restart_peak(self) -> None:
        """Forget earlier peaks."""

    @abstractmethod
    def snapshot(self) -> dict[str, Any]:
        """Segments and history, in the form of torch.cuda.memory._snapshot()."""

    @abstractmethod
    def address_of(self, tensor: torch.Tensor) -> int | None:
        """Where a tensor's block begins; None for a tensor of another device."""

    @abstractmethod
    def now_us(self) -> int:
        """The time by the clock of the history."""

    @abstractmethod
    def outside_bytes(self) -> int | None:
        """What the process holds of the device beside the allocator's segments; None where nobody can tell."""


class CudaMemory(DeviceMemory):
    """The current CUDA device of this process. Raises: MissingExtra without one."""

    def __init__(self, allocator: str = "") -> None:
        if not torch.cuda.is_available():
            hint = "profile with --device simulated, which needs none"
            raise MissingExtra(f"no GPU that torch {torch.__version__} can use", hint=hint)
        # Before the first call that makes a context, so that the context counts as this process's.
        self._driver_used_bytes = driver_used_bytes()
        if allocator:
            torch.cuda.memory._set_allocator_settings(allocator)
        torch.cuda.init()
        self.device = f"cuda:{torch.cuda.current_device()}"
        self.name = torch.cuda.get_device_name()
        self.capacity_bytes = int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)

    def start(self) -> None:
        self.give_back()
        torch.cuda.memory._record_memory_history("all", stacks="python", max_entries=_MOST_ENTRIES)

    def stop(self) -> None:
        torch.cuda.memory._record_memory_history(None)
        self.give_back()
        torch.cuda.reset_peak_memory_stats()

    def level(self) -> Level:
        torch.cuda.synchronize()
        return _level(torch.cuda.memory_stats(), "current")

    def peak(self) -> tuple[Level, int]:
        stats = torch.cuda.memory_stats()
        return _level(stats, "peak"), int(stats.get("reserved_bytes.all.peak", 0))

    def restart_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def snapshot(self) -> dict[str, Any]:
        return dict(torch.cuda.memory._snapshot())

    def address_of(self, tensor: torch.Tensor) -> int | None:
        return int(tensor.untyped_storage().data_ptr()) if tensor.is_cuda else None

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def outside_bytes(self) -> int | None:
        if self._driver_used_bytes is None:
            return None
        free, total = torch.cuda.mem_get_info()
        held = int(total - free) - self._driver_used_bytes - int(torch.cuda.memory_reserved())
        return max(held, 0)

    def give_back(self) -> None:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    @contextlib.contextmanager
    def side_stream(self) -> Iterator[None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            yield
        torch.cuda.current_stream().wait_stream(side)

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()

        def replay() -> None:
            graph.replay()

        return replay


def _level(stats: dict[str, Any], which: str) -> Level:
    return Level(
        allocated_bytes=int(stats.get(f"allocated_bytes.all.{which}", 0)),
        reserved_bytes=int(stats.get(f"reserved_bytes.all.{which}", 0)),
        inactive_split_bytes=int(stats.get(f"inactive_split_bytes.all.{which}", 0)),
        requested_bytes=int(stats.get(f"requested_bytes.all.{which}", 0)),
    )


def driver_used_bytes() -> int | None:
    """What all processes hold of the GPU that this one will use, by the driver; None where it does not answer.

    Asking makes no context.
    """
    try:
        gpus = read_local_gpus()
    except MissingExtra:
        return None
    index = _driver_index()
    return gpus[index].total_bytes - gpus[index].free_bytes if index is not None and index < len(gpus) else None


def _driver_index() -> int | None:
    """The driver's number of this rank's GPU among those of CUDA_VISIBLE_DEVICES; None where that has ids."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return rank
    names = [name.strip() for name in visible.split(",")]
    return int(names[rank]) if rank < len(names) and names[rank].isdigit() else None


class RehearsedMemory(DeviceMemory):
    """The CPU, counted as if the simulated allocator served it."""

    device, name = "cpu", "rehearsal on the CPU"

    def __init__(self, allocator: str = "", *, capacity_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self._settings: AllocatorSettings = parse_settings(allocator)
        self._allocator = make_allocator(self._settings, capacity_bytes=capacity_bytes)
        self._recorder = Recorder("cpu")
        self._blocks: list[Block | None] = []
        self._done = 0
        self._is_full = False

    def start(self) -> None:
        self._recorder.__enter__()

    def stop(self) -> None:
        self._recorder.__exit__(None, None, None)

    def give_back(self) -> None:
        gc.collect()
        self._catch_up()
        self._recorder.log.empty_cache()
        self._allocator.empty_cache()

    def level(self) -> Level:
        self._catch_up()
        held = self._allocator
        return Level(
            allocated_bytes=held.allocated_bytes,
            reserved_bytes=held.reserved_bytes,
            inactive_split_bytes=held.inactive_split_bytes,
            requested_bytes=held.requested_bytes,
        )

    def peak(self) -> tuple[Level, int]:
        self._catch_up()
        held = self._allocator
        level = Level(
            allocated_bytes=held.peak_allocated_bytes,
            reserved_bytes=held.reserved_at_peak_bytes,
            inactive_split_bytes=held.peak_inactive_split_bytes,
            requested_bytes=held.peak_requested_bytes,
        )
        return level, held.peak_reserved_bytes

    def restart_peak(self) -> None:
        self._catch_up()
        self._allocator.reset_peak()

    def snapshot(self) -> dict[str, Any]:
        return snapshot_from(self._recorder.log, self._settings, capacity_bytes=self.capacity_bytes)

    def address_of(self, tensor: torch.Tensor) -> int | None:
        watch = self._recorder._alive.get(tensor.untyped_storage()._cdata)
        if watch is None:
            return None
        self._catch_up()
        block = self._blocks[watch.number] if watch.number < len(self._blocks) else None
        return None if block is None else block.start

    def now_us(self) -> int:
        """The events so far, by which `snapshot_from` tells the time."""
        return len(self._recorder.log.order)

    def side_stream(self) -> contextlib.AbstractContextManager[None]:
        return self._recorder.side_stream()

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        self._catch_up()
        self._recorder.log.begin("capture")
        self._allocator.begin_pool(0)
        replay = self._recorder.capture(step)
        self._catch_up()
        self._recorder.log.begin("run")
        self._allocator.end_pool()
        return replay

    def outside_bytes(self) -> int | None:
        return None

    def _catch_up(self) -> None:
        """Run what has been allocated and freed since the last look. Raises: OutOfMemoryError, once."""
        log = self._recorder.log
        try:
            for event in () if self._is_full else log.order[self._done :]:
                self._done += 1
                if event > 0:
                    self._blocks.append(self._allocator.allocate(log.sizes[event - 1], log.stream_of[event - 1]))
                    continue
                block, self._blocks[~event] = self._blocks[~event], None
                if block is not None:
                    self._allocator.free(block)
        except DeviceFull as full:
            self._is_full = True
            raise torch.cuda.OutOfMemoryError(f"rehearsed: {full.wanted_bytes} bytes are not there") from full
