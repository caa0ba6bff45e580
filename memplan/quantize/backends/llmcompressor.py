"""llm-compressor as a quantizer. Source: llmcompressor 0.14, `oneshot` and its modifiers.

Axes: N windows, T tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memplan.quantize.formats import Layout
from memplan.quantize.formats.compressed_tensors import quantization_config
from memplan.quantize.request import QuantizeRequest


def quantize(request: QuantizeRequest, source: Path, token_NT: Tensor, output: Path) -> None:
    """Run `oneshot` over the model and save it compressed."""
    import transformers
    from datasets import Dataset
    from llmcompressor import oneshot

    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="auto", local_files_only=True)
    rows = token_NT.tolist()
    texts = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    oneshot(
        model=model,
        dataset=texts if request.method.needs_calibration else None,
        recipe=_recipe(request),
        max_seq_length=token_NT.shape[1],
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(output, save_compressed=True)


def _recipe(request: QuantizeRequest) -> list[Any]:
    """The library's modifiers for a method, with the scheme that the native pipeline writes for it."""
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    method = request.method
    layout = Layout(
        method=method,
        bits=request.bits,
        group_size=request.group_size,
        symmetric=request.symmetric,
        damping=request.damping,
    )
    group = quantization_config(layout)["config_groups"]["group_0"]
    scheme = {name: group[name] for name in ("targets", "weights", "input_activations") if group[name] is not None}
    settings: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head", *request.keeps]}
    recipe: list[Any] = []
    if method.scaling == "smooth":
        from llmcompressor.modifiers.transform import SmoothQuantModifier

        recipe.append(SmoothQuantModifier(smoothing_strength=0.5))
    if method.scaling == "awq":
        from llmcompressor.modifiers.transform import AWQModifier

        _leave_unpinned()
        recipe.append(AWQModifier(duo_scaling="both"))
    if method.rounding == "gptq" and method.element == "int":
        order = "static" if request.activation_order else None
        scheme["weights"]["actorder"] = order
        return [*recipe, GPTQModifier(**settings, dampening_frac=request.damping)]
    return [*recipe, QuantizationModifier(**settings)]


def _leave_unpinned() -> None:
    """Without an accelerator there is nothing to pin memory for, and 0.14 fails when it tries."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.cuda.is_available():
        IntermediatesCache.pin_memory = lambda *_args, **_kwargs: None
