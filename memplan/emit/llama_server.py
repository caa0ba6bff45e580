"""llama-server as a script with its arguments, and as a preset file.

`--ctx-size` is for all slots together. What is not set is changed by the server to fit what is free, so everything is
set and --fit is off where a build has it.
Source: common/arg.cpp of builds b3972 to b11000.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.catalog.option_tables import EngineOptionTable, load_option_table
from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit.shell_text import shell_text
from memplan.emit.words import group_words, header
from memplan.emit.yaml_text import Entry, comment
from memplan.units import MIB, format_gib

SCRIPT_NAME = "llama-server.sh"
PRESET_NAME = "llama-presets.ini"


def emit(subject: EmitSubject) -> Emission:
    """Return llama-server.sh."""
    options = load_option_table("llama.cpp", subject.version)
    text = shell_text(header(subject, f"sh {SCRIPT_NAME}"), "llama-server", entries(subject, options))
    file = EmittedFile(name=SCRIPT_NAME, text=text, media_type="application/x-sh")
    return Emission(files=(file,), notes=conversion_notes(subject))


def emit_preset(subject: EmitSubject) -> Emission:
    """Return a preset file for `llama-server --models-preset`: one section, keys as options without dashes."""
    options = load_option_table("llama.cpp", subject.version)
    name = subject.spec_name.split("/")[-1]
    lines = [*comment(header(subject, f"llama-server --models-preset {PRESET_NAME}"), sign=";"), "", f"[{name}]"]
    for entry in entries(subject, options):
        lines += comment([entry.why], sign=";") if entry.why else []
        lines.append(f"{entry.key} = {'true' if entry.value is True else entry.value}")
    text = "\n".join(lines) + "\n"
    return Emission(files=(EmittedFile(name=PRESET_NAME, text=text),), notes=conversion_notes(subject))


def gguf_file(subject: EmitSubject) -> str:
    """The GGUF file that is loaded: the one that was named, else what a conversion of the checkpoint is called."""
    if subject.model_reference.lower().endswith(".gguf"):
        return subject.model_reference
    mix = (subject.spec.quantization or subject.budget.weights_scheme).removeprefix("gguf:").upper()
    kind = {"BFLOAT16": "BF16", "FLOAT16": "F16", "FLOAT32": "F32"}.get(mix, mix)
    return f"{subject.spec_name.split('/')[-1]}-{kind}.gguf"


def is_hub_gguf(subject: EmitSubject) -> bool:
    """Whether the model was named as a GGUF file on the hub: `org/name:Q4_K_M`."""
    return ":" in subject.model_reference and "/" in subject.model_reference and subject.model_reference[0] != "/"


def conversion_notes(subject: EmitSubject) -> tuple[str, ...]:
    """How the GGUF file comes about when a checkpoint in another form was named."""
    if is_hub_gguf(subject) or subject.model_reference.lower().endswith(".gguf"):
        return ()
    file = gguf_file(subject)
    return (f"{file} must be there: convert {subject.model_reference} with llama.cpp's convert_hf_to_gguf.py",)


def entries(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    """Yield every argument with its reason."""
    budget, settings = subject.budget, subject.budget.settings
    weights = group_words(budget, "weights", "weights on the fullest GPU")
    if is_hub_gguf(subject):
        yield Entry(key="hf-repo", value=subject.model_reference, why=weights)
    else:
        yield Entry(key="model", value=gguf_file(subject), why=weights)
    cache = format_gib(budget.group_bytes("kv_cache"))
    why = f"all slots together, {settings['slot_tokens']:,} tokens for each; KV cache {cache} on the fullest GPU"
    yield Entry(key="ctx-size", value=settings["ctx_size"], why=why)
    yield Entry(key="parallel", value=settings["slots"], why="requests at once")
    if options.has("kv-unified") and settings["slots"] != 1:
        key = "kv-unified" if settings["kv_unified"] else "no-kv-unified"
        yield Entry(key=key, value=True, why="whether slots share one cache")
    yield Entry(key="n-gpu-layers", value=settings["n_gpu_layers"], why="layers on the GPUs, the output layer counted")
    yield Entry(key="batch-size", value=settings["batch_size"])
    peak = group_words(budget, "activation_peak", "compute buffer")
    yield Entry(key="ubatch-size", value=settings["ubatch_size"], why=peak)
    yield from _attention(subject, options)
    yield from _placement(subject, options)
    yield from _host(subject, options)


def _attention(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    settings = subject.budget.settings
    if options.form("flash-attn") == "word":
        yield Entry(key="flash-attn", value="on" if settings["flash_attention"] else "off")
    elif settings["flash_attention"]:
        yield Entry(key="flash-attn", value=True)
    why = f"{subject.budget.kv.bytes_per_token:,} bytes a token over all layers"
    yield Entry(key="cache-type-k", value=settings["cache_type_k"], why=why)
    yield Entry(key="cache-type-v", value=settings["cache_type_v"])
    if settings["swa_full"]:
        yield Entry(key=options.require("swa-full"), value=True)


def _placement(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    settings = subject.budget.settings
    if subject.budget.num_gpus > 1:
        yield Entry(key="split-mode", value=settings["split_mode"], why=f"over {subject.budget.num_gpus} GPUs")
    shares = settings["tensor_split"]
    if isinstance(shares, (list, tuple)) and shares:
        yield Entry(key="tensor-split", value=",".join(f"{share:g}" for share in shares))
    if settings["main_gpu"]:
        yield Entry(key="main-gpu", value=settings["main_gpu"])
    if not settings["kv_offload"]:
        yield Entry(key="no-kv-offload", value=True, why="the cache stays in host memory")
    if not settings["op_offload"]:
        yield Entry(key=options.require("no-op-offload"), value=True)
    if settings["n_cpu_moe"]:
        why = "layers whose experts stay in host memory"
        yield Entry(key=options.require("n-cpu-moe"), value=settings["n_cpu_moe"], why=why)
    if settings["override_tensor"]:
        yield Entry(key=options.require("override-tensor"), value=settings["override_tensor"])
    if options.has("fit"):
        yield Entry(key="fit", value="off", why="nothing is changed at start: this was checked as it stands")


def _host(subject: EmitSubject, options: EngineOptionTable) -> Iterator[Entry]:
    settings = subject.budget.settings
    if not settings["mmap"]:
        if options.has("load-mode"):
            yield Entry(key="load-mode", value="none", why="weights are read, not mapped")
        else:
            yield Entry(key="no-mmap", value=True, why="weights are read, not mapped")
    ram = settings["cache_ram_mib"]
    if options.has("cache-ram") and isinstance(ram, int):
        size = format_gib(ram * MIB) if ram > 0 else str(ram)
        why = f"MiB of host memory for prompts ({size}): count it into a container's limit"
        yield Entry(key="cache-ram", value=ram, why=why)
