"""GPTQModel as a quantizer. Source: gptqmodel 7.7, `GPTQModel.load`, `quantize` and `save`.

Axes: N windows, T tokens.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from memplan.quantize.request import QuantizeRequest


def quantize(request: QuantizeRequest, source: Path, token_NT: Tensor, output: Path) -> None:
    """Quantize with the library's defaults but for what the request names; groups in order, as engines want them."""
    # It asks for two workers on the CPU, and allows itself one where there are two cores.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=request.bits,
        group_size=request.group_size or -1,
        sym=request.symmetric,
        desc_act=False,
        damp_percent=request.damping,
    )
    model = GPTQModel.load(str(source), config, device=request.device)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in token_NT.tolist()]
    model.quantize(rows, batch_size=request.batch_size)
    model.save(str(output))
