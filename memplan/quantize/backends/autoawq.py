"""AutoAWQ as a quantizer. Source: autoawq 0.2.9, `AutoAWQForCausalLM.quantize` and `save_quantized`.

Axes: N windows, T tokens.
"""

from __future__ import annotations

from pathlib import Path

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
    model.quantize(
        tokenizer,
        quant_config=config,
        calib_data=token_NT.tolist(),
        max_calib_samples=token_NT.shape[0],
        max_calib_seq_len=token_NT.shape[1],
    )
    model.save_quantized(str(output))
