"""A transformers script that loads the model as budgeted, with a BitsAndBytesConfig where bitsandbytes quantizes it.

Source: docs of transformers 4.x and 5.x, `from_pretrained` and BitsAndBytesConfig.
"""

from __future__ import annotations

import json

from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit.words import group_words, header
from memplan.emit.yaml_text import comment
from memplan.errors import UsageError
from memplan.units import format_gib

FILE_NAME = "load.py"
_DTYPE_RENAMED = (4, 56)  # torch_dtype before


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
        *(f"    {line}" for line in _arguments(subject, bool(quantization))),
        ")",
        "tokenizer = AutoTokenizer.from_pretrained(MODEL)",
        *_generation(subject),
    ]
    return Emission(files=(EmittedFile(name=FILE_NAME, text="\n".join(lines) + "\n", media_type="text/x-python"),))


def _bitsandbytes(subject: EmitSubject) -> list[str]:
    scheme = subject.settings.quant
    if scheme not in ("bnb-nf4", "bnb-int8"):
        raise UsageError(f"transformers does not quantize to {scheme} while it loads", hint="use --quant bnb-nf4")
    compute = f"torch.{subject.budget.settings['dtype']}"
    options = (
        ["load_in_8bit=True"]
        if scheme == "bnb-int8"
        else [
            "load_in_4bit=True",
            'bnb_4bit_quant_type="nf4"',
            "bnb_4bit_use_double_quant=True",
            f"bnb_4bit_compute_dtype={compute}",
        ]
    )
    return ["quantization = BitsAndBytesConfig(", *(f"    {option}," for option in options), ")"]


def _arguments(subject: EmitSubject, is_quantized: bool) -> list[str]:
    budget, settings = subject.budget, subject.budget.settings
    release = tuple(int(part) for part in subject.version.split(".")[:2] if part.isdigit())
    dtype = "dtype" if release >= _DTYPE_RENAMED else "torch_dtype"
    lines = comment([group_words(budget, "weights", "weights on the fullest GPU")])
    lines.append(f"{dtype}=torch.{settings['dtype']},")
    lines.append(f"device_map={json.dumps(settings['device_map'])},")
    lines.append(f"attn_implementation={json.dumps(settings['attn_implementation'])},")
    if subject.revision:
        lines.append(f"revision={json.dumps(subject.revision)},")
    if is_quantized:
        lines.append("quantization_config=quantization,")
    limits = settings["max_memory"]
    if isinstance(limits, (list, tuple)) and limits:
        sizes = {index: int(size) for index, size in enumerate(limits)}
        lines.append(f"max_memory={sizes!r},")
    return lines


def _generation(subject: EmitSubject) -> list[str]:
    budget, settings = subject.budget, subject.budget.settings
    cache = settings["cache_implementation"]
    peak = group_words(budget, "activation_peak", "the pass")
    length = f"prompts of {settings['prompt_tokens']:,} tokens, {settings['batch_size']} at once"
    reserved = format_gib(budget.group_bytes("kv_cache"))
    arguments = [f"max_new_tokens={settings['max_new_tokens']}"]
    if cache not in ("dynamic", "none"):
        arguments.append(f"cache_implementation={json.dumps(cache)}")
    if cache == "none":
        arguments.append("use_cache=False")
    return [
        "",
        *comment([f"checked for {length}; cache {reserved}, {peak}"]),
        'inputs = tokenizer(["Why is the sky blue?"], return_tensors="pt").to(model.device)',
        f"outputs = model.generate(**inputs, {', '.join(arguments)})",
        "print(tokenizer.batch_decode(outputs, skip_special_tokens=True)[0])",
    ]
