"""What is asked of a profile: a model, a device, the phases to run and how. Torch is not known here."""

from __future__ import annotations

from typing import Literal, get_args

from memplan.domain.dtypes import DType
from memplan.domain.timeline import PHASES, Device, Phase
from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass

Weights = Literal["dummy", "real"]
Kernel = Literal["auto", "flash", "efficient", "math", "eager", "paged"]
CacheKind = Literal["dynamic", "static"]
Optimizer = Literal["adamw", "adamw-foreach", "adamw-loop", "adamw-fused", "adamw-8bit", "sgd", "sgd-momentum"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
Sharing = Literal["none", "ddp", "fsdp", "tp"]
Execution = Literal["eager", "compiled", "graph"]
EXECUTIONS: tuple[Execution, ...] = get_args(Execution)
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
CACHE_KINDS: tuple[CacheKind, ...] = get_args(CacheKind)
INFERENCE: tuple[Phase, ...] = ("load", "prefill", "decode")
_LARGEST_SIDE = 16384
TRAINING: tuple[Phase, ...] = ("load", "forward", "backward", "optimizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """One profile to make.

    `model` is anything that `estimate` takes as MODEL. `batch` sequences of `prompt_tokens` each; inference writes
    `output_tokens` for each of them, training takes the prompt for its text. `dtype` None is the checkpoint's own.
    `attention` names the kernel: `auto` is what PyTorch's scaled_dot_product_attention takes by itself on a GPU,
    `eager` the model's own formula, `paged` a kernel that reads its keys and values from a pool of blocks.
    `iterations` repeats every phase but load, after `warmup` repetitions that are not shown. `allocator` is written as
    in PYTORCH_CUDA_ALLOC_CONF, `capacity_bytes` None does not limit the device. `compute_capability` is the GPU's that
    is simulated: cuBLAS sizes its workspace by it, and kernels choose by it. `lora_targets` are last names of the
    modules that get an adapter, none for every linear layer but the output head. `resolution` is the side of a picture
    in pixels, None for the model's own; `images` pictures are in every text that a model of texts and pictures trains
    on. `sharing` says how `num_ranks` processes share the model; each has a batch of
    its own, but under `tp`, where all have the same. FSDP gathers weights in `mixed_precision` and computes in it, if
    it is named, and reduces gradients in `reduced_in` then; `reshard` frees gathered weights after the forward pass.
    `bucket_view` lets DDP's gradients lie in its buckets.

    `execution` says how the model's code is run: as it is written, by torch.compile, or with its decoding step captured
    in a CUDA graph. The last two have a first run, which compiles or warms up, and runs after it.
    """

    model: str
    device: Device = "simulated"
    phases: tuple[Phase, ...] = INFERENCE
    batch: int = 1
    prompt_tokens: int = 2048
    output_tokens: int = 128
    resolution: int | None = None
    images: int = 0
    dtype: DType | None = None
    weights: Weights = "dummy"
    attention: Kernel = "auto"
    cache: CacheKind = "dynamic"
    execution: Execution = "eager"
    optimizer: Optimizer = "adamw"
    checkpointing: bool = False
    lora_rank: int | None = None
    lora_targets: tuple[str, ...] = ()
    sharing: Sharing = "none"
    num_ranks: int = 1
    mixed_precision: DType | None = None
    reduced_in: DType = DType.F32
    reshard: bool = True
    bucket_view: bool = False
    iterations: int = 1
    warmup: int = 0
    allocator: str = ""
    capacity_bytes: int | None = None
    compute_capability: tuple[int, int] = (8, 0)
    seed: int = 0
    revision: str | None = None
    offline: bool = False
    trust_remote_code: bool = False

    @property
    def trains(self) -> bool:
        """Whether any phase needs gradients, or what follows from them."""
        return "backward" in self.phases or "optimizer" in self.phases


def parse_phases(text: str) -> tuple[Phase, ...]:
    """Return the phases of a comma-separated list, or of `inference` or `training`, in the order that they run in.

    Raises: UsageError for an unknown one.
    """
    named: set[Phase] = set()
    for word in (part.strip().lower() for part in text.split(",")):
        if word in ("inference", "training"):
            named.update(INFERENCE if word == "inference" else TRAINING)
        elif word in PHASES:
            named.add(word)
        else:
            hint = did_you_mean(word, [*PHASES, "inference", "training"]) or f"one of {', '.join(PHASES)}"
            raise UsageError(f"unknown phase: `{word:.60}`", hint=hint)
    return tuple(phase for phase in PHASES if phase in named)


def check_request(request: ProfileRequest) -> None:
    """Refuse what cannot be run. Raises: UsageError."""
    if not request.phases:
        raise UsageError("no phase to profile", hint=f"name some of {', '.join(PHASES)}")
    for name in ("batch", "prompt_tokens", "output_tokens", "iterations"):
        if getattr(request, name) < 1:
            raise UsageError(f"not a count: `{name}` is {getattr(request, name)}", hint="give 1 or more")
    _check_sharing(request)
    _check_images(request)
    _check_execution(request)
    if request.warmup < 0:
        raise UsageError(f"not a count: `warmup` is {request.warmup}", hint="give 0 or more")
    if request.lora_rank is not None and request.lora_rank < 1:
        raise UsageError(f"not a LoRA rank: {request.lora_rank}", hint="give 1 or more, such as 16")
    if request.lora_targets and request.lora_rank is None:
        raise UsageError("--lora-targets names no rank", hint="give --lora-rank 16")
    if request.trains and request.attention == "paged":
        raise UsageError("paged attention only serves: it has no backward pass", hint="give flash, efficient or math")
    if request.device == "cuda" and request.attention == "paged":
        raise UsageError("paged attention is simulated", hint="give --device simulated, or flash, efficient or math")
    if request.device == "cpu" and request.attention in ("flash", "efficient", "paged"):
        raise UsageError(f"no such attention on the CPU: `{request.attention}`", hint="give auto, math or eager")
    if request.trains and request.dtype is not None and not request.dtype.is_float:
        raise UsageError(f"not a type to train in: {request.dtype.value}", hint="give bfloat16, float16 or float32")


def _check_images(request: ProfileRequest) -> None:
    if request.images < 0:
        raise UsageError(f"not a count: `images` is {request.images}", hint="give 0 or more")
    if request.resolution is not None and not 1 <= request.resolution <= _LARGEST_SIDE:
        raise UsageError(f"--resolution out of range: {request.resolution}", hint=f"give 1 to {_LARGEST_SIDE}")


def _check_sharing(request: ProfileRequest) -> None:
    if request.sharing == "tp" and request.lora_rank is not None:
        raise UsageError("adapters are not split by tensors", hint="give --fsdp in place of --tp")
    if request.sharing == "ddp" and not request.trains:
        raise UsageError("DDP is for training", hint="give --phase training")
    if request.mixed_precision is not None and request.sharing != "fsdp":
        raise UsageError("--mixed-precision is FSDP's", hint="give --fsdp 8, or --dtype")
    if request.mixed_precision not in (None, DType.BF16, DType.F16):
        raise UsageError(f"not a type to compute in: {request.mixed_precision}", hint="give bfloat16 or float16")
    if request.reduced_in not in (DType.F32, DType.BF16, DType.F16):
        raise UsageError(f"not a type to reduce in: {request.reduced_in}", hint="give float32, or what is computed in")
    if not request.reshard and request.sharing != "fsdp":
        raise UsageError("--no-reshard is FSDP's", hint="give --fsdp 8")
    if request.bucket_view and request.sharing != "ddp":
        raise UsageError("--bucket-view is DDP's", hint="give --ddp 8")


def _check_execution(request: ProfileRequest) -> None:
    kind = request.execution
    if "capture" in request.phases and kind != "graph":
        raise UsageError("nothing is captured without a graph", hint="give --execution graph")
    if kind == "eager":
        return
    if kind == "compiled" and request.device == "simulated":
        what = "what it makes follows from the kernels that the compiler fuses on a device"
        hint = "give --device cpu, or cuda where there is a GPU"
        raise UsageError(f"compiled code is not simulated: {what}", hint=hint)
    if kind == "graph" and request.device == "cpu":
        raise UsageError("CUDA graphs are a GPU's", hint="give --device simulated, or cuda where there is a GPU")
    if kind == "graph" and (request.trains or not {"capture", "decode"} & set(request.phases)):
        raise UsageError("a graph is captured of a decoding step", hint="give --phase prefill,capture,decode")
    if kind == "graph" and "generate" in request.phases:
        raise UsageError("generate is run without a graph", hint="give --phase prefill,capture,decode")
    if request.sharing != "none":
        raise UsageError(f"several processes are not run with --execution {kind}", hint="leave out --execution")
    if request.iterations < 2:
        raise UsageError(
            f"--execution {kind} has a first run and runs after it: --iterations is {request.iterations}",
            hint="give 2 or more",
        )


def settings_of(request: ProfileRequest) -> dict[str, object]:
    """The settings of a request that a page shows."""
    left_out = ("model", "device", "capacity_bytes", "trust_remote_code", "offline", "revision")
    names = (name for name in request.__dataclass_fields__ if name not in left_out)
    return {name: getattr(request, name) for name in names}
