"""The options that commands share, each declared once: its name, type, flags and help.

`accepts` turns a function that takes a mapping of given values into a command that has these options. A value that was
not given is not in the mapping, so that a config file, memplan.yaml or the last estimate can fill it in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from memplan.records import dataclass

Given = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option. `name` is its name in memplan.yaml and in the mapping; `flags` default to `--name`.

    `kind` is str, int, float, bool, Path or list[str]. A text option may have a unit; it is read where it is used.
    `is_workload` marks what memplan.yaml may hold and an estimate leaves behind for the next command. `panel` is the
    heading that it stands below in --help.
    """

    name: str
    help: str
    kind: Any = str
    flags: tuple[str, ...] = ()
    is_workload: bool = True
    panel: str = ""


MODEL = Option(name="model", help="Alias, hub id, directory, config.json, .safetensors, .gguf, or demo.")

SOURCE_OPTIONS = (
    Option(name="revision", help="Hub revision."),
    Option(name="introspect", help="auto, or torch to ask transformers."),
    Option(
        name="trust_remote_code",
        kind=bool,
        flags=("--trust-remote-code",),
        help="Let --introspect torch run a repository's code.",
        is_workload=False,
    ),
    Option(name="offline", kind=bool, flags=("--offline",), help="Never use the network.", is_workload=False),
)

DEVICE_OPTIONS = (
    Option(name="gpu", help="GPU, NAMExN, several with commas, or auto."),
    Option(name="gpu_memory", help="What CUDA sees in all, such as 79.2GiB."),
    Option(name="gpu_free", help="What is free on a shared card."),
    Option(name="sharing", kind=int, help="Engines like this one on every GPU."),
)

SERVING_OPTIONS = (
    Option(name="engine", help="Engine and version, such as vllm@0.10.2; several with commas."),
    Option(name="config", kind=Path, help="Budget an engine's config file, or a file with its command line."),
    Option(name="tp", kind=int, help="Tensor-parallel ranks."),
    Option(name="pp", kind=int, help="Pipeline stages."),
    Option(name="dp", kind=int, help="Data-parallel replicas."),
    Option(name="ep", kind=bool, flags=("--ep",), help="Shard experts whole over the ranks."),
    Option(name="context", help="Longest request: 8192, 8k (8,000), 8K (8,192)."),
    Option(name="concurrency", help="Requests of that length at once (default 1)."),
    Option(name="mean_length", help="Mean length, for the waste of contiguous caches."),
    Option(name="dtype", help="auto, float16, bfloat16, float32."),
    Option(name="quant", help="Weight scheme, such as awq-int4-g128; several with commas."),
    Option(name="kv_dtype", help="KV cache type, such as fp8."),
    Option(name="max_num_seqs", help="Sequences in one step."),
    Option(name="max_num_batched_tokens", help="Tokens in one step."),
    Option(name="gpu_memory_utilization", kind=float, help="Part of the GPU the engine may take."),
    Option(name="kv_cache_memory", help="Cache size given outright."),
    Option(name="block_size", kind=int, help="Tokens in a cache page."),
    Option(name="eager", kind=bool, help="No CUDA graphs."),
    Option(name="chunked_prefill", kind=bool, help="Cut long prompts into steps."),
    Option(name="prefix_caching", kind=bool, help="Keep shared prefixes."),
    Option(name="cpu_offload", help="Weights kept in host memory, per GPU."),
    Option(name="limit_mm", help="Media per prompt: image=2,video=0."),
    Option(name="language_model_only", kind=bool, flags=("--language-model-only",), help="Leave media towers out."),
    Option(name="prompt_logprobs", kind=bool, flags=("--prompt-logprobs",), help="Reserve for prompt logprobs."),
    Option(name="max_loras", kind=int, help="LoRA adapters on the GPU at once."),
    Option(name="max_lora_rank", kind=int, help="Largest LoRA rank (default 16)."),
    Option(name="draft_model", help="Draft model for speculative decoding, or mtp for the model's own layers."),
    Option(name="num_speculative_tokens", kind=int, help="Tokens drafted per step."),
    Option(name="kv_keep", kind=float, help="Part of the cache kept by pruning or eviction."),
    Option(name="offline_batch", kind=bool, flags=("--offline-batch",), help="The engine's batch class, not a server."),
    Option(name="set", kind=list[str], flags=("--set",), help="An engine's own option, KEY=VALUE."),
)

LLAMA_CPP_OPTIONS = (
    Option(name="n_gpu_layers", flags=("-ngl", "--n-gpu-layers"), help="llama.cpp: layers on the GPUs."),
    Option(name="batch_size", flags=("--batch-size",), help="llama.cpp: logical batch (-b)."),
    Option(name="ubatch_size", flags=("--ubatch-size",), help="llama.cpp: physical batch (-ub)."),
    Option(name="flash_attention", flags=("--flash-attn",), help="llama.cpp: on, off or auto (-fa)."),
    Option(name="parallel", flags=("--parallel",), help="llama.cpp: slots (-np)."),
)

TRAINING_OPTIONS = tuple(
    Option(name=name, kind=kind, help=text, panel="Training", flags=flags)
    for name, kind, text, flags in (
        ("train", str, "Budget training: full, lora, dora or qlora.", ()),
        ("seq_len", str, "Tokens of a sequence (default 2048).", ()),
        ("cp", int, "Context-parallel ranks: every sequence is cut over them.", ()),
        ("micro_batch", int, "Sequences that one rank works on at once (default 1).", ()),
        ("grad_accum", int, "Micro-batches of a step (default 1).", ()),
        ("optimizer", str, "adamw, adamw-8bit, paged-adamw-8bit, adafactor, sgd, lion or muon.", ()),
        ("optimizer_form", str, "foreach, fused or for-loop.", ()),
        ("sharding", str, "none, ddp, zero1, zero2, zero3, fsdp, fsdp1, fsdp2 or hsdp.", ()),
        ("checkpointing", str, "Of activations: none, selective or full.", ()),
        ("lora_rank", int, "Rank of the adapters (default 16).", ()),
        ("lora_targets", str, "Layers with adapters: q_proj,v_proj (default: all linear ones).", ()),
        ("mixed_precision", str, "bf16, fp16, fp8, or none: all in the weights' own type.", ()),
        ("fp8_recipe", str, "With FP8: tensorwise, tensorwise-gather, rowwise or delayed.", ()),
        ("loss", str, "plain, fused, linear (with the head, Liger's) or chunked.", ()),
        ("attention", str, "sdpa, flash, efficient, math or eager.", ()),
        ("compile", bool, "torch.compile.", ("--compile",)),
        ("offload", str, "To the host: optimizer, parameters, activations; several with commas.", ()),
        ("resolution", int, "Side of a picture in pixels: vision and diffusion models.", ()),
        ("images", int, "Pictures in every sequence of a model that sees.", ()),
        ("trainer", str, "transformers, trl, torchtitan, torchtune, litgpt, megatron, deepspeed or axolotl.", ()),
    )
)

PLAN_TRAINING_OPTIONS = (
    Option(name="global_batch", kind=int, help="Sequences of a step over all GPUs.", panel="Training"),
)

PLAN_OPTIONS = (
    Option(
        name="goal",
        help="cost, throughput, latency, long-context, multi-tenant or single-gpu; training: throughput, cost, memory.",
    ),
    Option(name="budget", help="US dollars an hour at most, such as 10/h."),
    Option(name="prompt_tokens", help="Tokens of a prompt: 1200, 200..2000, mean:1200,p95:4000, or FILE[:COLUMN]."),
    Option(name="output_tokens", help="Tokens of an answer, likewise."),
    Option(name="request_rate", kind=float, help="Requests a second to keep up with, in place of --concurrency."),
    Option(name="shared_prefix", help="Tokens that all prompts begin with."),
    Option(name="max_ttft", help="Longest wait for the first token, such as 500ms."),
    Option(name="max_tpot", help="Longest wait for each further token, such as 50ms."),
    Option(name="max_perplexity_increase", help="Largest rise of perplexity, such as 2%."),
    Option(name="precision", help="Widths of weights that are allowed, such as 16,8."),
    Option(name="draft_acceptance", kind=float, help="Part of drafted tokens that is accepted, such as 0.7."),
    Option(name="disaggregated", kind=bool, help="Prefill and decode on GPUs of their own, or not."),
)

_OF_ONE_RUN = ("trace_speed", "requests", "seed")
SIMULATE_OPTIONS = (
    *(
        Option(name=name, kind=kind, help=text, flags=flags, panel="Traffic", is_workload=name not in _OF_ONE_RUN)
        for name, kind, text, flags in (
            ("request_rate", float, "Requests a second that arrive.", ("--rate", "--request-rate")),
            (
                "prompt_tokens",
                str,
                "Tokens of a prompt: 1200, 200..2000, mean:1200,p95:4000, or FILE[:COLUMN].",
                ("--prompt-len", "--prompt-tokens"),
            ),
            ("output_tokens", str, "Tokens of an answer, likewise.", ("--output-len", "--output-tokens")),
            ("trace", Path, "Recorded requests: JSON lines, CSV, or a log of vLLM.", ()),
            ("trace_speed", float, "A trace's own times, so many times as fast (default 1).", ()),
            ("requests", str, "Requests to simulate (default 2,000; of a trace, all).", ()),
            ("burstiness", float, "1: Poisson (default); less comes in bursts, more is more even.", ()),
            ("bursts", str, "Seconds of traffic and of silence by turns, such as 10s,50s.", ()),
            ("shared_prefix", str, "Tokens that all prompts begin with, such as a system prompt.", ()),
            ("turns", str, "Turns of a conversation, each with all before it as its prompt: 4, 1..8.", ()),
            ("think_time", str, "Mean pause before a next turn or request of a user, such as 20s.", ()),
            ("seed", int, "Which traffic is drawn (default 0).", ()),
        )
    ),
    *(
        Option(name=name, kind=kind, help=text, is_workload=False, panel="Scheduler")
        for name, kind, text in (
            ("batching", str, "continuous, or static: a batch ends before the next begins."),
            ("allocation", str, "paged, or contiguous: longest, power or exact reserved for every request."),
            ("preemption", str, "recompute or swap."),
            ("swap_space", str, "Host memory for swapped caches (default 4GiB)."),
            ("watermark", float, "Part of the cache left free when a request is taken in."),
            ("max_queue", int, "Requests that may wait; more are rejected."),
            ("routing", str, "Among replicas: round-robin, least-loaded or kv-aware."),
            ("prefill_replicas", int, "Replicas that only read prompts, beside --dp that answer."),
            ("step_times", Path, "Measured step times in place of the speed model: CSV or JSON lines."),
        )
    ),
    Option(name="max_ttft", help="Longest wait for the first token, such as 500ms.", panel="Limits"),
    Option(name="max_tpot", help="Longest wait for each further token, such as 50ms.", panel="Limits"),
    Option(
        name="what_if",
        kind=list[str],
        flags=("--what-if",),
        help="The same traffic under another setting: block-size=8,32, kv-dtype=fp8+max-num-seqs=64, or usual.",
        is_workload=False,
        panel="Limits",
    ),
)

PROFILE_OPTIONS = (
    Option(name="device", help="simulated, cpu or cuda; a named --gpu is simulated.", is_workload=False),
    Option(name="phase", help="Phases, with commas: inference, training, load, decode ...", is_workload=False),
    Option(name="batch", help="Sequences at once; several with commas.", is_workload=False),
    Option(name="prompt_tokens", help="Tokens of a prompt; several with commas.", is_workload=False),
    Option(name="output_tokens", help="Tokens of an answer.", is_workload=False),
    Option(name="mean_length", help="Mean length, for what padding wastes.", is_workload=False),
    Option(name="resolution", kind=int, help="Side of a picture in pixels.", is_workload=False),
    Option(name="images", kind=int, help="Pictures in every text that a model that sees trains on.", is_workload=False),
    Option(name="dtype", help="auto, float16, bfloat16, float32.", is_workload=False),
    Option(name="attention", help="auto, flash, efficient, math, eager or paged; several too.", is_workload=False),
    Option(name="cache", help="dynamic or static.", is_workload=False),
    Option(name="execution", help="eager, compiled or graph; several too.", is_workload=False),
    Option(name="weights", help="dummy, or real ones where they are at hand.", is_workload=False),
    Option(name="optimizer", help="adamw, adamw-fused, adamw-8bit, sgd ...", is_workload=False),
    Option(name="checkpointing", kind=bool, help="Recompute activations in the backward pass.", is_workload=False),
    Option(name="lora_rank", kind=int, help="Train LoRA adapters of this rank alone.", is_workload=False),
    Option(name="lora_targets", help="Linear layers to adapt: q_proj,v_proj (default: all).", is_workload=False),
    Option(name="ddp", kind=int, help="Processes that replicate the model.", is_workload=False),
    Option(name="fsdp", kind=int, help="Processes that share the model in shards (FSDP2).", is_workload=False),
    Option(name="tp", kind=int, help="Processes that split its tensors.", is_workload=False),
    Option(name="mixed_precision", help="FSDP: gather and compute in bfloat16 or float16.", is_workload=False),
    Option(name="reshard", kind=bool, help="FSDP: free gathered weights after the forward pass.", is_workload=False),
    Option(name="bucket_view", kind=bool, help="DDP: gradients lie in its buckets.", is_workload=False),
    Option(name="iterations", kind=int, help="Runs of every phase (default 1); 3 show what grows.", is_workload=False),
    Option(name="warmup", kind=int, help="Runs before those.", is_workload=False),
    Option(name="allocator", help="As in PYTORCH_CUDA_ALLOC_CONF.", is_workload=False),
    Option(name="snapshot", kind=Path, help="Read a snapshot of torch.cuda.memory instead.", is_workload=False),
    Option(name="memory_viz", kind=Path, help="Write a snapshot for pytorch.org/memory_viz.", is_workload=False),
    Option(name="compare", kind=tuple[Path, Path], help="Two JSON profiles: before and after.", is_workload=False),
    Option(
        name="save_correction",
        kind=bool,
        flags=("--save-correction",),
        help="Let estimate learn what this GPU and model really take.",
        is_workload=False,
    ),
)

QUANTIZE_OPTIONS = (
    Option(name="method", help="gptq, awq, awq+gptq, int8, fp8, nvfp4, auto ... (default awq).", is_workload=False),
    Option(name="target_memory", help="auto: what the weights may take, as vLLM loads them.", is_workload=False),
    Option(name="bits", kind=int, help="Bits of a weight, 2 to 8.", is_workload=False),
    Option(name="group_size", kind=int, help="In features that share a scale; 0 for whole rows.", is_workload=False),
    Option(name="symmetric", kind=bool, help="No zero points.", is_workload=False),
    Option(
        name="weights_only", kind=bool, flags=("--weights-only",), help="int8: leave activations.", is_workload=False
    ),
    Option(name="format", help="compressed-tensors, gptq, awq ... (default: the method's).", is_workload=False),
    Option(name="backend", help="native, autoawq, gptqmodel or llmcompressor.", is_workload=False),
    Option(name="keep", kind=list[str], help="Layers to leave in 16 bit, such as '*.down_proj'.", is_workload=False),
    Option(name="calibration", help="Texts: a set, FILE.jsonl or a folder.", is_workload=False),
    Option(name="num_samples", kind=int, help="Windows of text to calibrate on (default 128).", is_workload=False),
    Option(name="window", kind=int, help="Tokens of a window (default 512).", is_workload=False),
    Option(name="batch_size", kind=int, help="Windows at once (default 8).", is_workload=False),
    Option(
        name="min_expert_tokens",
        kind=int,
        help="An expert with fewer is shown other tokens too (default: as it has in features).",
        is_workload=False,
    ),
    Option(name="damping", kind=float, help="GPTQ: added to the Hessian (default 0.01).", is_workload=False),
    Option(name="activation_order", kind=bool, help="GPTQ: features that matter most first.", is_workload=False),
    Option(name="static_groups", kind=bool, help="GPTQ: all scales are found beforehand.", is_workload=False),
    Option(name="true_sequential", kind=bool, help="GPTQ: inputs measured after earlier layers.", is_workload=False),
    Option(name="scale_search", help="GPTQ: scales for errors of outputs (inputs), mse, none.", is_workload=False),
    Option(name="seed", kind=int, help="Which windows are drawn (default 0).", is_workload=False),
    Option(name="device", help="cpu or cuda.", is_workload=False),
    Option(name="max_ram", help="Host memory that may be used, such as 12GiB.", is_workload=False),
    Option(name="max_gpu_memory", help="GPU memory that may be used.", is_workload=False),
    Option(
        name="max_perplexity_increase", help="Largest rise of perplexity in any domain (default 2%).", is_workload=False
    ),
    Option(name="fallback", help="Tried when that is missed: int8,none (none keeps 16 bit).", is_workload=False),
    Option(name="target", help="What will serve it: vllm@X, sglang@X, transformers@X.", is_workload=False),
    Option(name="devices", kind=int, help="Processes that share the work.", is_workload=False),
    Option(name="html", kind=bool, flags=("--html",), help="The report as a page, too.", is_workload=False),
    Option(name="resume", kind=bool, flags=("--resume",), help="Go on with unfinished work.", is_workload=False),
    Option(name="dry_run", kind=bool, flags=("--dry-run",), help="Only the forecast.", is_workload=False),
    Option(name="output", kind=Path, flags=("--output", "-o"), help="Folder of the result.", is_workload=False),
)

EVALUATE_OPTIONS = (
    Option(name="against", help="The model to compare with: the one that MODEL was made from.", is_workload=False),
    Option(name="text", help="Text set: builtin, code, wikitext-2, FILE.jsonl, a folder ...", is_workload=False),
    Option(name="calibration", help="Text that the scales of --kv-dtype are measured on.", is_workload=False),
    Option(
        name="write_kv_scales",
        kind=bool,
        flags=("--write-kv-scales",),
        help="Write those scales into MODEL, where vLLM reads them.",
        is_workload=False,
    ),
    Option(name="tasks", help="Tasks of lm-eval, with commas: hellaswag, FILE.yaml ...", is_workload=False),
    Option(name="window", kind=int, help="Tokens of a window (default 2048, or the context).", is_workload=False),
    Option(name="stride", kind=int, help="Windows start this far apart (default: no overlap).", is_workload=False),
    Option(name="max_documents", kind=int, help="Documents of every domain at most.", is_workload=False),
    Option(name="max_perplexity_increase", help="Exit 6 above this rise (default 2%).", is_workload=False),
    Option(name="max_ram", help="Memory to run in; block by block where it is short.", is_workload=False),
    Option(name="device", help="auto, cpu or cuda.", is_workload=False),
    Option(name="seed", kind=int, help="Order of documents (default 0).", is_workload=False),
)

OUTPUT_OPTIONS = (
    Option(name="json", kind=bool, flags=("--json",), help="One JSON object.", is_workload=False),
    Option(name="output", kind=Path, flags=("--output", "-o"), help="Write to a file.", is_workload=False),
    Option(name="force", kind=bool, flags=("--force",), help="Overwrite it.", is_workload=False),
    Option(name="quiet", kind=bool, flags=("--quiet", "-q"), help="Only the verdict.", is_workload=False),
    Option(name="no_color", kind=bool, flags=("--no-color",), help="No colour.", is_workload=False),
)

REPORT_OPTIONS = (
    Option(name="markdown", kind=bool, flags=("--markdown",), help="A Markdown report.", is_workload=False),
    Option(name="html", kind=bool, flags=("--html",), help="One self-contained HTML page.", is_workload=False),
    Option(name="fail_on", help="tight: exit 1 when it is tight, too. never: always exit 0.", is_workload=False),
)

EMIT_OPTIONS = (
    Option(name="format", flags=("--format", "-f"), help="What to write; list shows them all.", is_workload=False),
    Option(name="strict", kind=bool, flags=("--strict",), help="Refuse what does not fit.", is_workload=False),
    Option(
        name="from_simulation",
        kind=Path,
        help="The setup of a `memplan simulate --json`: what keeps the limits with the least GPU.",
        is_workload=False,
    ),
)

TRAINING = frozenset(option.name for option in TRAINING_OPTIONS)

WORKLOAD: Mapping[str, Option] = {
    option.name: option
    for option in (
        MODEL,
        *SOURCE_OPTIONS,
        *DEVICE_OPTIONS,
        *SERVING_OPTIONS,
        *LLAMA_CPP_OPTIONS,
        *TRAINING_OPTIONS,
        *PLAN_TRAINING_OPTIONS,
        *SIMULATE_OPTIONS,
        *PLAN_OPTIONS,
    )
    if option.is_workload
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command: what it does with what was given, and the options that it has, after an optional `argument`.

    A value that was not given is None, or an empty list, and the command never sees it.
    """

    work: Callable[[Given], None]
    options: tuple[Option, ...]
    argument: Option | None

    def __call__(self, **values: Any) -> None:
        """Do the work, with the real stdout kept for the answer."""
        from memplan.cli.output import guarded_stdout

        with guarded_stdout():
            self.work({name: value for name, value in values.items() if value is not None and value != []})


def accepts(
    *options: Option, model: bool = True, argument: Option = MODEL
) -> Callable[[Callable[[Given], None]], Command]:
    """Return a decorator that gives a command these options, after an optional MODEL, or another `argument`."""
    return lambda work: Command(work=work, options=options, argument=argument if model else None)


def flags_of(option: Option) -> tuple[tuple[str, ...], str | None]:
    """How an option is written on a command line, and how its opposite is, where it has one."""
    if option.flags:
        return option.flags, None
    name = option.name.replace("_", "-")
    return (f"--{name}",), f"--no-{name}" if option.kind is bool else None
