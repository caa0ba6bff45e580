"""AutoAWQ as a quantizer. Source: autoawq 0.2.9, `AutoAWQForCausalLM.quantize` and `save_quantized`.

Axes: N windows, T tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from memplan.quantize.request import QuantizeRequest


def quantize(request: QuantizeRequest, source: Path, token_NT: Tensor, output: Path) -> None:
    """Quantize with the library's defaults but for what the request names."""
    import transformers
    from awq import AutoAWQForCausalLM

    model = AutoAWQForCausalLM.from_pretrained(
        str(source), device_map=request.device, safetensors=True, low_cpu_mem_usage=True, torch_dtype="auto"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    config = {
        "zero_point": not request.symmetric,
        "q_group_size": request.group_size,
        "w_bit": request.bits,
        "version": "GEMM",
    }
    if request.device == "cpu":
        _copy_before_searching()
    model.quantize(
        tokenizer,
        quant_config=config,
        calib_data=token_NT.tolist(),
        max_calib_samples=token_NT.shape[0],
        max_calib_seq_len=token_NT.shape[1],
    )
    model.save_quantized(str(output))


def _copy_before_searching() -> None:
    """On the CPU its search changes the very weights that it means to restore from: `v.cpu()` is no copy there."""
    from awq.quantize.quantizer import AwqQuantizer

    search = AwqQuantizer._compute_best_scale

    def with_copies(self: Any, x: Any, w_mean: Any, x_mean: Any, inspected: Any, *others: Any, **named: Any) -> Any:
        held = inspected.state_dict
        inspected.state_dict = lambda *args, **kwargs: {name: v.clone() for name, v in held(*args, **kwargs).items()}
        try:
            return search(self, x, w_mean, x_mean, inspected, *others, **named)
        finally:
            del inspected.state_dict

    AwqQuantizer._compute_best_scale = with_copies
