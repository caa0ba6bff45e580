"""llama.cpp's settings with every default filled in, as the named build of `llama-server` fills them.

Names are those of its command line. memplan's common options map to them: `--context` is the context of one request
and `--concurrency` the number of slots (-np), each with that context; beside an explicit `parallel`, `--context` is
what `-c` is to the server, all slots together. `--kv-dtype` sets both cache types, `--max-num-batched-tokens` the
micro-batch (-ub). Everything else comes as an engine option:

    n_gpu_layers (-ngl) N or all     ctx_size (-c) all slots together  parallel (-np)       kv_unified (-kvu)
    batch_size (-b)                  ubatch_size (-ub)                 flash_attention (-fa) on, off or auto
    cache_type_k, cache_type_v       split_mode (-sm) layer, row, none tensor_split (-ts)   main_gpu (-mg)
    kv_offload or no_kv_offload (-nkvo)  op_offload (--no-op-offload)      swa_full             mmap (--no-mmap)
    cpu_moe (-cmoe), n_cpu_moe       cache_ram_mib (--cache-ram)       device (-dev) none, for the CPU alone
    build, instead of llama.cpp@bNNNN    override_tensor (-ot) PATTERN=DEVICE,... for weights by name
    fork (ik) and mla_attn (-mla)    for ik_llama.cpp, as far as it follows the same rules; expert_offload: false where
                                     its fused or repacked experts (-fmoe, -rtr) keep the GPU from taking large batches

Source: common/arg.cpp and tools/server of the builds that catalog/engines/llama.cpp.yaml names.
"""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.llama_cpp.overrides import Override, read_overrides
from memplan.engines.options import EngineOptions
from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass
from memplan.units import round_up

_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_IK_CACHE_TYPES = ("q6_0", "q8_kv")
_ALIASES = {
    "auto": "f16",
    "fp16": "f16",
    "float16": "f16",
    "half": "f16",
    "bfloat16": "bf16",
    "fp32": "f32",
    "float32": "f32",
}
_SPLIT_MODES = ("layer", "row", "none")
# What a machine without a GPU is run with: the host is then the device that the budget is of.
HOST_BACKEND = "CPU"
_BACKENDS = {"nvidia": "CUDA", "amd": "ROCm", "intel": "SYCL", "apple": "Metal", "cpu": HOST_BACKEND}
_DEFAULT_BATCH = 2048
_DEFAULT_MICRO_BATCH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSettings:
    """What a start of llama-server works with. `ctx_size` counts all slots, `slot_tokens` is what one may use."""

    backend: str
    num_gpus: int
    n_gpu_layers: int
    ctx_size: int
    slot_tokens: int
    slots: int
    kv_unified: bool
    batch_size: int
    ubatch_size: int
    flash_attention: bool
    cache_type_k: str
    cache_type_v: str
    split_mode: str
    tensor_split: tuple[float, ...]
    main_gpu: int
    kv_offload: bool
    op_offload: bool
    expert_offload: bool
    swa_full: bool
    mmap: bool
    n_cpu_moe: int
    override_tensor: tuple[Override, ...]
    cache_ram_mib: int
    fork: str
    mla_attn: int

    @property
    def streams(self) -> int:
        """Parts of the cache that sequences do not share."""
        return 1 if self.kv_unified else self.slots

    def as_dict(self) -> dict[str, object]:
        """The settings as a report shows them."""
        shown: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        shown["tensor_split"] = list(self.tensor_split)
        shown["override_tensor"] = ",".join(str(override) for override in self.override_tensor)
        if not self.fork:
            del shown["fork"], shown["mla_attn"], shown["expert_offload"]
        return shown


def backend_of(gpu: GpuSpec) -> str:
    """What llama.cpp calls the backend that a GPU is usually run with."""
    return _BACKENDS.get(gpu.vendor.lower(), "GPU")


def resolve(
    spec: ModelSpec, backend: str, asked: ServingSettings, rules: Rules
) -> tuple[LlamaSettings, tuple[str, ...]]:
    """Return the settings, and the names of engine options that memory does not depend on.

    Raises: UsageError for a value that the engine refuses.
    """
    options = EngineOptions("llama.cpp", asked.engine_options, ("build",))
    without = backend == HOST_BACKEND or (options.word("device", "dev") or "").lower() == "none"
    num_gpus = 0 if without else asked.layout.num_ranks
    fork = options.word("fork", among=("ik", "mainline")) or ""
    flash = _flash_attention(options, rules)
    key_type = _cache_type(options, "cache_type_k", asked.kv_dtype, fork)
    value_type = _cache_type(options, "cache_type_v", asked.kv_dtype, fork)
    if not flash and value_type not in ("f32", "f16", "bf16"):
        raise UsageError(
            f"cache_type_v {value_type} needs flash attention", hint="set flash_attention=on, or cache_type_v=f16"
        )
    slots, unified, total = _context(spec, asked, options, rules)
    ctx_size = _padded_context(total, slots, unified, flash, rules)
    batch, micro_batch = _batches(asked, options, ctx_size, rules)
    settings = LlamaSettings(
        backend=backend,
        num_gpus=num_gpus,
        n_gpu_layers=_gpu_layers(options, spec),
        ctx_size=ctx_size,
        slot_tokens=ctx_size if unified else ctx_size // slots,
        slots=slots,
        kv_unified=unified or not rules["streams"],
        batch_size=batch,
        ubatch_size=micro_batch,
        flash_attention=flash,
        cache_type_k=key_type,
        cache_type_v=value_type,
        split_mode=options.word("split_mode", among=_SPLIT_MODES) or "layer",
        tensor_split=_tensor_split(options, num_gpus),
        main_gpu=_main_gpu(options, num_gpus),
        kv_offload=_flag(options, "kv_offload", default=True)
        and not _flag(options, "no_kv_offload", "nkvo", default=False),
        op_offload=_flag(options, "op_offload", default=True) and not _flag(options, "no_op_offload", default=False),
        expert_offload=_flag(options, "expert_offload", default=True),
        swa_full=_flag(options, "swa_full", default=False),
        mmap=_flag(options, "mmap", default=True) and not _flag(options, "no_mmap", default=False),
        n_cpu_moe=_cpu_experts(options, spec),
        override_tensor=read_overrides(options.word("override_tensor", "ot"), num_gpus),
        cache_ram_mib=_number(
            options.count("cache_ram_mib", "cache_ram", "cram", minimum=-1), rules["prompt_cache_mib"]
        ),
        fork=fork if fork != "mainline" else "",
        mla_attn=_number(options.count("mla_attn", minimum=0), 0),
    )
    return settings, options.unused()


def _number(value: int | None, default: int) -> int:
    return default if value is None else value


def _flag(options: EngineOptions, *names: str, default: bool) -> bool:
    value = options.flag(*names)
    return default if value is None else value


def _gpu_layers(options: EngineOptions, spec: ModelSpec) -> int:
    """Layers on GPUs, the output layer counted: all of them unless a number is given."""
    everything = spec.num_layers + 1
    if not options.is_number("n_gpu_layers"):
        options.word("n_gpu_layers", among=("all", "auto"))
        return everything
    number = options.count("n_gpu_layers", minimum=-2)
    return everything if number is None or number < 0 else min(number, everything)


def _flash_attention(options: EngineOptions, rules: Rules) -> bool:
    """Whether attention runs fused. Since b6325 it does wherever the device can, which all current ones can."""
    asked = _flash_option(options)
    if rules["has_flash_attention"] == "never":
        if asked:
            raise UsageError(
                f"llama.cpp {rules.version} has no flash attention", hint="it came with b2772: name a newer build"
            )
        return False
    return rules["has_flash_attention"] == "auto" if asked is None else asked


def _flash_option(options: EngineOptions) -> bool | None:
    """On, off or None for auto: a flag, a word, or 1, 0 and -1 as the command line takes them."""
    name = "flash_attention"
    if options.is_number(name):
        number = options.count(name, minimum=-1)
        return None if number == -1 else bool(number)
    try:
        return options.flag(name)
    except UsageError:
        options.word(name, among=("on", "off", "auto"))
        return None


def _cache_type(options: EngineOptions, name: str, common: str | None, fork: str) -> str:
    value = options.word(name) or common or "f16"
    kind = _ALIASES.get(value.lower(), value.lower())
    known = (*_CACHE_TYPES, *_IK_CACHE_TYPES) if fork == "ik" else _CACHE_TYPES
    if kind not in known:
        near = did_you_mean(kind, list(known))
        raise UsageError(f"llama.cpp has no cache type `{value}`", hint=near or f"use one of {', '.join(known)}")
    return kind


def _context(spec: ModelSpec, asked: ServingSettings, options: EngineOptions, rules: Rules) -> tuple[int, bool, int]:
    """Slots, whether they share one cache, and the cells that they have together before padding."""
    wanted = asked.workload.context_tokens or spec.max_context_tokens
    concurrency = asked.workload.concurrency
    slots = options.count("parallel")
    unified = options.flag("kv_unified", "kvu")
    if options.flag("no_kv_unified", "no_kvu"):
        unified = False
    total = wanted * concurrency
    if slots is None:
        automatic = concurrency == 1
        slots = rules["default_slots"] if automatic else concurrency
        unified = (automatic and slots > 1) if unified is None else unified
    total = options.count("ctx_size") or total
    return slots, rules["streams"] and (bool(unified) or slots == 1), total


def _padded_context(total: int, slots: int, unified: bool, flash: bool, rules: Rules) -> int:
    """The cells that a context really gets."""
    padding = {"none": 1, "by_attention": 256 if flash else 32, "always_256": 256}[rules["context_padding"]]
    if rules["streams"] and not unified:
        return round_up(max(total // slots, 1), padding) * slots
    return round_up(total, padding)


def _batches(asked: ServingSettings, options: EngineOptions, ctx_size: int, rules: Rules) -> tuple[int, int]:
    """The logical batch and the micro-batch that one step runs."""
    micro_batch = options.count("ubatch_size") or asked.max_num_batched_tokens or _DEFAULT_MICRO_BATCH
    batch = options.count("batch_size") or max(_DEFAULT_BATCH, asked.max_num_batched_tokens or 0)
    if not rules["micro_batch"]:
        batch = micro_batch = options.count("batch_size") or _DEFAULT_MICRO_BATCH
    batch = min(batch, ctx_size)
    return batch, min(batch, micro_batch)


def _tensor_split(options: EngineOptions, num_gpus: int) -> tuple[float, ...]:
    """Shares of the GPUs, as `3,1` or one number; empty for shares by free memory."""
    if not options.has("tensor_split"):
        return ()
    text = str(options.fraction("tensor_split", maximum=1e9)) if options.is_number("tensor_split") else None
    text = text or options.word("tensor_split") or ""
    try:
        shares = tuple(float(part) for part in text.replace("/", ",").split(",") if part.strip())
    except ValueError:
        shares = ()
    if not shares or len(shares) > num_gpus or min(shares) < 0 or sum(shares) <= 0:
        raise UsageError(
            f"not a tensor_split of {num_gpus} GPUs: `{text}`", hint="write one share per GPU, such as 3,1"
        )
    return (*shares, *((0.0,) * (num_gpus - len(shares))))


def _main_gpu(options: EngineOptions, num_gpus: int) -> int:
    number = options.count("main_gpu", "mg", minimum=0) or 0
    if number >= max(num_gpus, 1):
        raise UsageError(f"main_gpu {number} of {num_gpus} GPUs", hint="GPUs are counted from 0")
    return number


def _cpu_experts(options: EngineOptions, spec: ModelSpec) -> int:
    """How many layers, from the first, leave their experts in host memory."""
    number = options.count("n_cpu_moe", "ncmoe", minimum=0)
    if number is None:
        return spec.num_layers if options.flag("cpu_moe", "cmoe") else 0
    return min(number, spec.num_layers)
