"""A transformers script that loads the model and generates as budgeted, with a BitsAndBytesConfig where bitsandbytes
quantizes it.

It prefills whole prompts of a batch and keeps no pool of blocks: for many users at once a server is the better choice.
What the budget was computed for is in the calls themselves: prompts that are longer are cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit.words import group_words, header
from memplan.emit.yaml_text import comment
from memplan.errors import UsageError
from memplan.units import format_gib, parse_count

FILE_NAME = "load.py"
_DTYPE_RENAMED = (4, 56)  # `torch_dtype` before, and from 5.0 on no longer taken
# Engine options that `generate` takes as parts of its `cache_config`.
_CACHE_COUNTS = {
    "cache_nbits": "nbits",
    "cache_group_size": "q_group_size",
    "cache_residual_length": "residual_length",
}


def emit(subject: EmitSubject) -> Emission:
    """Return load.py. Raises: UsageError for weights that transformers is not told to quantize."""
    scheme = subject.settings.quant
    classes = ["AutoModelForCausalLM", "AutoTokenizer"]
    quantization = _bitsandbytes(subject) if scheme and scheme != "none" else []
    if quantization:
        classes.append("BitsAndBytesConfig")
    lines = [
        *comment(header(subject, f"python {FILE_NAME}")),
        "import torch",
        f"from transformers import {', '.join(classes)}",
        "",
        f"MODEL = {json.dumps(subject.model_reference)}",
        *quantization,
        "model = AutoModelForCausalLM.from_pretrained(",
        "    MODEL,",
        *(f"    {line}" for line in comment([group_words(subject.budget, "weights", "weights on the fullest GPU")])),
        *(f"    {line}," for line in _loading(subject, bool(quantization))),
        ")",
        *_generation(subject),
    ]
    return Emission(files=(EmittedFile(name=FILE_NAME, text="\n".join(lines) + "\n", media_type="text/x-python"),))


def _bitsandbytes(subject: EmitSubject) -> list[str]:
    scheme = subject.settings.quant or ""
    if scheme == "bnb-int8":
        return ["quantization = BitsAndBytesConfig(load_in_8bit=True)"]
    kind, _, rest = scheme.removeprefix("bnb-").partition("-")
    if not scheme.startswith("bnb-") or kind not in ("nf4", "fp4"):
        raise UsageError(f"transformers does not quantize to {scheme} while it loads", hint="use --quant bnb-nf4")
    options = (
        "load_in_4bit=True",
        f"bnb_4bit_quant_type={json.dumps(kind)}",
        f"bnb_4bit_use_double_quant={rest == 'dq'}",
        f"bnb_4bit_compute_dtype=torch.{subject.budget.settings['dtype']}",
    )
    return ["quantization = BitsAndBytesConfig(", *(f"    {option}," for option in options), ")"]


def _loading(subject: EmitSubject, is_quantized: bool) -> Iterator[str]:
    """The arguments of `from_pretrained` behind the model's name."""
    settings, own = subject.budget.settings, subject.settings.engine_options
    release = tuple(int(part) for part in subject.version.split(".")[:2] if part.isdigit())
    yield f"{'dtype' if release >= _DTYPE_RENAMED else 'torch_dtype'}=torch.{settings['dtype']}"
    yield f"device_map={json.dumps(settings['device_map'])}"
    yield f"attn_implementation={json.dumps(settings['attn_implementation'])}"
    if subject.revision:
        yield f"revision={json.dumps(subject.revision)}"
    if is_quantized:
        yield "quantization_config=quantization"
    limits = settings["max_memory"]
    sizes: dict[object, object] = dict(enumerate(limits)) if isinstance(limits, (list, tuple)) else {}
    if "cpu_memory" in own:
        sizes["cpu"] = settings["cpu_memory"]
    if sizes:
        yield f"max_memory={sizes!r}"
    if settings["offload_folder"]:
        yield f"offload_folder={json.dumps(str(own['offload_folder']))}"
    if own.get("offload_buffers"):
        yield "offload_buffers=True"
    if settings["kernels"]:
        yield "use_kernels=True"


def _generation(subject: EmitSubject) -> list[str]:
    budget, settings = subject.budget, subject.budget.settings
    peak = group_words(budget, "activation_peak", "the pass")
    reserved = format_gib(budget.group_bytes("kv_cache"))
    length = f"prompts of {settings['prompt_tokens']:,} tokens, {settings['batch_size']} at once"
    return [
        'tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left", truncation_side="left")',
        "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token",
        "",
        *comment([f"checked for {length}, longer ones are cut; cache {reserved}, {peak}"]),
        'prompts = ["Why is the sky blue?"]',
        "inputs = tokenizer(",
        f'    prompts, return_tensors="pt", padding=True, truncation=True, max_length={settings["prompt_tokens"]}',
        ").to(model.device)",
        "outputs = model.generate(",
        "    **inputs,",
        *(f"    {line}," for line in _generating(subject)),
        ")",
        "print(tokenizer.batch_decode(outputs, skip_special_tokens=True)[0])",
    ]


def _generating(subject: EmitSubject) -> Iterator[str]:
    """The arguments of `generate` behind the inputs."""
    settings, own = subject.budget.settings, subject.settings.engine_options
    yield f"max_new_tokens={settings['max_new_tokens']}"
    for name in ("num_beams", "num_return_sequences", "prefill_chunk_size"):
        if own.get(name) is not None:
            yield f"{name}={_count(name, own[name])}"
    fp8 = subject.settings.kv_dtype == "fp8"
    cache = own.get("cache_implementation") or ("quantized" if fp8 else None)
    if cache == "none":
        yield "use_cache=False"
    elif cache is not None:
        yield f"cache_implementation={json.dumps(cache)}"
    parts: dict[str, object] = {"backend": str(own["cache_backend"])} if "cache_backend" in own else {}
    parts |= {"backend": "fp8"} if fp8 and not parts else {}
    parts |= {key: _count(name, own[name]) for name, key in _CACHE_COUNTS.items() if own.get(name) is not None}
    if parts:
        yield f"cache_config={parts!r}"


def _count(name: str, value: object) -> int:
    return parse_count(str(value), what=name, minimum=0)
