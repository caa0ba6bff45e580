"""Make a vLLM without CUDA kernels plan as if it stood on an NVIDIA GPU: for reading its planner, never for running it.

A CPU build of vLLM picks other attention backends and other block sizes than a GPU does. `pretend` installs, before
vLLM is imported, stand-ins for the compiled modules that only GPUs have, and a platform that says it is CUDA of a given
compute capability while tensors live on the meta device. Every decision about cache blocks is then vLLM's own code for
CUDA. Nothing that would run a kernel works afterwards.

Not pretended: FlashInfer and FlashMLA are taken as installed (they come with the CUDA wheels), their kernels are not
looked at.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from typing import Any

import torch

_OWN_NAMESPACES = (
    "_C",
    "_moe_C",
    "_rocm_C",
    "_flashmla_C",
    "_vllm_fa2_C",
    "_vllm_fa3_C",
    "_qutlass_C",
    "_flashkda_C",
    "torchvision",
)

_KERNEL_PACKAGES = ("humming", "cutlass", "cuda", "quack", "tilelang", "vllm.vllm_flash_attn.", "vllm._flashkda_C")
_FLASHMLA_FUNCTIONS = (
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_mla_sparse_fwd",
    "flash_mla_with_kvcache",
    "get_mla_metadata",
)


def pretend(capability: tuple[int, int], memory_bytes: int, name: str) -> None:
    """Turn this process into one that plans for CUDA. Call once, before anything imports vLLM.

    `capability` is the compute capability, `name` what the driver calls the GPU.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    _answer_for_missing_operators()
    _make_on_meta()
    torch.cuda.Stream = torch.cuda.Event = _Idle  # type: ignore[misc, assignment]
    torch.cuda.current_stream = torch.cuda.default_stream = _Idle  # type: ignore[assignment]
    torch.cuda.empty_cache = torch.accelerator.empty_cache = lambda: None
    for module in ("_C_stable_libtorch", "_moe_C_stable_libtorch", "_moe_C", "_flashmla_C", "_flashmla_extension_C"):
        _module(f"vllm.{module}")
    _module("deep_gemm")
    with contextlib.suppress(ImportError):
        import tvm_ffi  # noqa: F401 - looks for CUDA's bindings when it is imported, and must not find the stand-ins
    sys.meta_path.append(_AnythingFinder())
    _flash_attention(capability)
    _platform(capability, memory_bytes, name)
    _triton()
    _inspect_models_in_process()


class _Operator:
    """A compiled operator that is not there: says yes when it is asked what it supports, fails when it is run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> _Operator:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Operator(f"{self.name}.{name}")

    def __call__(self, *_: object, **__: object) -> bool:
        if "support" in self.name or "size" in self.name:
            return True
        raise RuntimeError(f"this process only pretends to have CUDA: {self.name} cannot run")


class _Idle:
    """A stream or event on which nothing happens."""

    def __init__(self, *_: object, **__: object) -> None:
        pass


class _Anything(types.ModuleType):
    """A package of kernels written in Python that is not installed: has every name and every submodule."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Decorator()


class _Decorator(_Idle):
    """What such a package exports: a base class, a decorator, a type, whatever its user takes it for."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Decorator()

    def __call__(self, *given: Any, **_: object) -> Any:
        return given[0] if len(given) == 1 and callable(given[0]) else _Decorator()

    def __mro_entries__(self, bases: object) -> tuple[type, ...]:
        return (object,)

    def __or__(self, other: object) -> object:
        return self

    __ror__ = __getitem__ = __or__


class _AnythingFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages of kernels that only GPU machines have installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if not name.startswith(_KERNEL_PACKAGES):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _answer_for_missing_operators() -> None:
    import torch._ops
    import torch.library

    known = torch._ops._OpNamespace.__getattr__
    register = torch.library.register_fake

    def look_up(namespace: Any, name: str) -> Any:
        try:
            return known(namespace, name)
        except AttributeError:
            if name.startswith("__") or not namespace.name.startswith(_OWN_NAMESPACES):
                raise
            return _Operator(name)

    def register_fake(operator: Any, function: Any = None, *args: Any, **settings: Any) -> Any:
        if isinstance(operator, str) and operator.startswith(_OWN_NAMESPACES):
            return function or (lambda given: given)
        return register(operator, function, *args, **settings)

    torch._ops._OpNamespace.__getattr__ = look_up  # type: ignore[method-assign]
    torch.library.register_fake = register_fake  # type: ignore[assignment]


def _make_on_meta() -> None:
    """Some backends make buffers on "cuda" when they are imported."""
    for name in ("empty", "zeros", "ones", "full"):
        made = getattr(torch, name)

        def make(*args: Any, made: Any = made, **settings: Any) -> Any:
            if str(settings.get("device", "")).startswith("cuda"):
                settings["device"] = "meta"
            return made(*args, **settings)

        setattr(torch, name, make)


def _module(name: str, **attributes: object) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(attributes)
    sys.modules[name] = module
    return module


def _flash_attention(capability: tuple[int, int]) -> None:
    """FlashAttention 2 everywhere, 3 on Hopper, 4 on Hopper and newer."""
    versions = {2} | ({3} if capability[0] == 9 else set()) | ({4} if capability[0] >= 9 else set())
    names = ("compile_flash_attn_varlen_func_from_specs", "flash_attn_varlen_func", "get_scheduler_metadata")
    parts: dict[str, object] = {name: _Operator(name) for name in names}
    parts |= {
        "FA2_AVAILABLE": True,
        "FA3_AVAILABLE": 3 in versions,
        "is_fa_version_supported": lambda version, *_, **__: version in versions,
        "fa_version_unsupported_reason": lambda version, *_, **__: None if version in versions else "not built",
        "sparse_attn_func": _Operator("sparse_attn_func"),
        "sparse_attn_varlen_func": _Operator("sparse_attn_varlen_func"),
    }
    _module(
        "vllm.third_party.flashmla.flash_mla_interface",
        FlashMLASchedMeta=_Idle,
        **{name: _Operator(name) for name in _FLASHMLA_FUNCTIONS},
    )
    package = _module("vllm.vllm_flash_attn", __path__=[], **parts)
    package.flash_attn_interface = _module(  # type: ignore[attr-defined]
        "vllm.vllm_flash_attn.flash_attn_interface", **parts
    )


def _platform(capability: tuple[int, int], memory_bytes: int, name: str) -> None:
    import vllm.platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class PretendedCuda(CudaPlatformBase):
        """CUDA in every decision; `device_type` is meta so that a model can be laid out without memory."""

        device_type = "meta"
        get_device_capability = classmethod(lambda cls, device_id=0: DeviceCapability(*capability))
        get_device_name = classmethod(lambda cls, device_id=0: name)
        get_device_uuid = classmethod(lambda cls, device_id=0: "0")
        get_device_total_memory = classmethod(lambda cls, device_id=0: memory_bytes)
        is_fully_connected = classmethod(lambda cls, device_ids: True)
        is_async_output_supported = classmethod(lambda cls, *_: True)
        device_count = classmethod(lambda cls: 64)
        num_compute_units = classmethod(lambda cls, device_id=0: 132)
        get_cuda_runtime_major = classmethod(lambda cls: 13)
        current_device = classmethod(lambda cls: torch.device("meta"))

    vllm.platforms._current_platform = PretendedCuda()


def _triton() -> None:
    """Triton's decorators do nothing without Triton; its presence is asked for when backends are chosen."""
    import vllm.triton_utils

    class Config:
        def __init__(self, kwargs: Any = None, num_warps: int = 4, num_stages: int = 2, **_: object) -> None:
            self.kwargs, self.num_warps, self.num_stages = kwargs or {}, num_warps, num_stages

    if not vllm.triton_utils.HAS_TRITON:
        vllm.triton_utils.triton.Config = Config
        vllm.triton_utils.HAS_TRITON = True
        vllm.triton_utils.importing.HAS_TRITON = True


def _inspect_models_in_process() -> None:
    """vLLM looks at model classes in a child process, which would not pretend."""
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()


class PretendedGroup:
    """A group of ranks that talks to nobody; this process is its rank 0."""

    def __init__(self, size: int) -> None:
        self.world_size, self.ranks = size, list(range(size))
        self.rank = self.local_rank = self.rank_in_group = self.first_rank = 0
        self.last_rank = size - 1
        self.next_rank = self.prev_rank = 0
        self.is_first_rank = self.is_last_rank = True
        self.device = torch.device("meta")
        self.device_group = self.cpu_group = types.SimpleNamespace(size=lambda: size, rank=lambda: 0)
        self.device_communicator = self.mq_broadcaster = None
        self.use_device_communicator = self.use_custom_op_call = False
        self.unique_name = "pretended"


def pretend_ranks(tensor: int) -> None:
    """Stand in for the process groups of `tensor` tensor-parallel ranks (experts are spread over the same ranks)."""
    from vllm.distributed import parallel_state

    for name in ("_WORLD", "_PP", "_DP", "_DCP", "_PCP", "_EPLB", "_INNER_DP_WORLD"):
        setattr(parallel_state, name, PretendedGroup(1))
    parallel_state._TP = PretendedGroup(tensor)
    parallel_state._EP = PretendedGroup(tensor)
    parallel_state._NODE_COUNT = 1
