"""An Ollama Modelfile, and the environment of its server.

A Modelfile has the context and where layers go; the type of the cache, the slots and flash attention are the server's
own, for all models, and come as environment variables. Ollama starts llama-server with num_ctx x slots.
Source: parser/parser.go, api/types.go and envconfig/config.go of Ollama, August 2026.
"""

from __future__ import annotations

import json

from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit.llama_server import conversion_notes, gguf_file, is_hub_gguf
from memplan.emit.words import group_words, header
from memplan.emit.yaml_text import comment
from memplan.errors import UsageError
from memplan.units import format_gib

MODELFILE = "Modelfile"
ENVIRONMENT = "ollama.env"
_CACHE_TYPES = ("f16", "q8_0", "q4_0")


def emit(subject: EmitSubject) -> Emission:
    """Return the Modelfile and ollama.env. Raises: UsageError for what Ollama cannot be told."""
    files = (
        EmittedFile(name=MODELFILE, text=_modelfile(subject)),
        EmittedFile(name=ENVIRONMENT, text=_environment_file(subject)),
    )
    return Emission(files=files, notes=conversion_notes(subject))


def environment(subject: EmitSubject) -> dict[str, str]:
    """The variables of `ollama serve` that the budget rests on."""
    settings = subject.budget.settings
    key, value = str(settings["cache_type_k"]), str(settings["cache_type_v"])
    if key != value or key not in _CACHE_TYPES:
        raise UsageError(f"Ollama has no cache of {key} keys and {value} values", hint="use --kv-dtype f16 or q8_0")
    found = {
        "OLLAMA_FLASH_ATTENTION": "1" if settings["flash_attention"] else "0",
        "OLLAMA_KV_CACHE_TYPE": key,
        "OLLAMA_NUM_PARALLEL": str(subject.settings.workload.concurrency),
        "OLLAMA_MAX_LOADED_MODELS": "1",
    }
    if isinstance(settings["cache_ram_mib"], int):
        found["LLAMA_ARG_CACHE_RAM"] = str(settings["cache_ram_mib"])
    return found


def _modelfile(subject: EmitSubject) -> str:
    budget, settings = subject.budget, subject.budget.settings
    # The hub is one of Ollama's registries.
    source = f"hf.co/{subject.model_reference}" if is_hub_gguf(subject) else _local(gguf_file(subject))
    slots = subject.settings.workload.concurrency
    total = settings["ctx_size"]
    assert isinstance(total, int)
    name = subject.spec_name.split("/")[-1].lower()
    cache = format_gib(budget.group_bytes("kv_cache"))
    parts: list[tuple[str, str]] = [
        (f"FROM {source}", group_words(budget, "weights", "weights on the fullest GPU")),
        (f"PARAMETER num_ctx {total // slots}", f"for each of {slots} slots; KV cache {cache} on the fullest GPU"),
        (f"PARAMETER num_batch {settings['ubatch_size']}", group_words(budget, "activation_peak", "compute buffer")),
        (f"PARAMETER num_gpu {settings['n_gpu_layers']}", "layers on the GPUs, the output layer counted"),
    ]
    if not settings["mmap"]:
        parts.append(("PARAMETER use_mmap false", "weights are read, not mapped"))
    lines = comment(header(subject, f"ollama create {name} -f {MODELFILE}"))
    lines += comment(["The server needs, as in ollama.env:"])
    lines += comment(f"{key}={value}" for key, value in environment(subject).items())
    for text, why in parts:
        lines += ["", *comment([why]), text]
    return "\n".join(lines) + "\n"


def _local(path: str) -> str:
    """A path as FROM takes it: with a slash in it, quoted when it has blanks."""
    spelled = path if "/" in path else f"./{path}"
    return json.dumps(spelled) if " " in spelled else spelled


def _environment_file(subject: EmitSubject) -> str:
    lines = comment(header(subject, "the environment of `ollama serve`, for all of its models"))
    return "\n".join([*lines, *(f"{key}={value}" for key, value in environment(subject).items())]) + "\n"
