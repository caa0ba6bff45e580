"""Perplexities on WikiText-2 that papers print, in windows of 2,048 tokens without overlap.

AWQ's table 4 was held against five transcriptions of it, the others against one each; the papers themselves were not at
hand when they were written down. Gaps are where a figure could not be confirmed.
"""

from __future__ import annotations

from dataclasses import dataclass

SAME_MODEL = 0.004  # of the 16-bit perplexity; the nearest two models here are 1 % apart


@dataclass(frozen=True, kw_only=True)
class Printed:
    """What one table says of one width. `perplexity` is by method and then by model, in 16 bit under `base`.

    Weights have zero points in all of them. `group_size` 0 means whole rows; `calibration` is what the authors took.
    """

    source: str
    bits: int
    group_size: int
    calibration: str
    perplexity: dict[str, dict[str, float]]


def _table(models: str, **rows: str) -> dict[str, dict[str, float]]:
    names = models.split()
    return {method: dict(zip(names, map(float, row.split()), strict=True)) for method, row in rows.items()}


_AWQ = "arXiv 2306.00978 (AWQ), table 4; gptq with the order of activation (GPTQ-R there)"
_AWQ_MODELS = "llama-2-7b llama-2-13b llama-2-70b llama-7b llama-13b llama-30b llama-65b"
_AWQ_BASE = "5.47 4.88 3.32 5.68 5.09 4.10 3.53"
_MISTRAL = "arXiv 2306.00978 (AWQ), table 5"
_MISTRAL_MODELS = "mistral-7b-instruct-v0.2 mixtral-8x7b-instruct-v0.1"
_OPT = "arXiv 2210.17323 (GPTQ), table 3; gptq without the order of activation"
_OPT_MODELS = "opt-125m opt-350m opt-1.3b opt-2.7b opt-6.7b opt-13b opt-30b opt-66b opt-175b"
_OPT_BASE = "27.65 22.00 14.63 12.47 10.86 10.13 9.56 9.34 8.34"
_BLOOM = "arXiv 2210.17323 (GPTQ), table 4; gptq without the order of activation"
_BLOOM_MODELS = "bloom-560m bloom-1b1 bloom-1b7 bloom-3b bloom-7b1 bloom-176b"
_BLOOM_BASE = "22.42 17.69 15.39 13.48 11.37 8.11"

PRINTED = (
    Printed(
        source=_AWQ,
        bits=4,
        group_size=128,
        calibration="pile",
        perplexity=_table(
            _AWQ_MODELS,
            base=_AWQ_BASE,
            rtn="5.73 4.98 3.46 5.96 5.25 4.23 3.67",
            gptq="5.63 4.99 3.43 5.83 5.20 4.22 3.66",
            awq="5.60 4.97 3.41 5.78 5.19 4.21 3.62",
        ),
    ),
    Printed(
        source=_AWQ,
        bits=3,
        group_size=128,
        calibration="pile",
        perplexity=_table(
            _AWQ_MODELS,
            base=_AWQ_BASE,
            rtn="6.66 5.52 3.98 7.01 5.88 4.88 4.24",
            gptq="6.42 5.41 3.86 6.53 5.64 4.74 4.21",
            awq="6.24 5.32 3.74 6.35 5.52 4.61 3.95",
        ),
    ),
    Printed(
        source=_MISTRAL,
        bits=4,
        group_size=128,
        calibration="pile",
        perplexity=_table(_MISTRAL_MODELS, base="4.14 5.94", awq="4.30 6.05"),
    ),
    Printed(
        source=_MISTRAL,
        bits=3,
        group_size=128,
        calibration="pile",
        perplexity=_table(_MISTRAL_MODELS, base="4.14 5.94", awq="4.83 6.52"),
    ),
    Printed(
        source=_OPT,
        bits=4,
        group_size=0,
        calibration="c4",
        perplexity=_table(
            _OPT_MODELS,
            base=_OPT_BASE,
            rtn="37.28 25.94 48.17 16.92 12.10 11.32 10.98 110 10.54",
            gptq="31.12 24.24 15.47 12.87 11.39 10.31 9.63 9.55 8.37",
        ),
    ),
    Printed(
        source=_OPT,
        bits=3,
        group_size=0,
        calibration="c4",
        perplexity=_table(
            _OPT_MODELS,
            base=_OPT_BASE,
            rtn="1.3e3 64.57 1.3e4 1.6e4 5.8e3 3.4e3 1.6e3 6.1e3 7.3e3",
            gptq="53.85 33.79 20.97 16.88 14.86 11.61 10.27 14.16 8.68",
        ),
    ),
    Printed(
        source=_BLOOM,
        bits=4,
        group_size=0,
        calibration="c4",
        perplexity=_table(
            _BLOOM_MODELS,
            base=_BLOOM_BASE,
            rtn="25.90 22.00 16.97 14.76 12.10 8.37",
            gptq="24.03 19.05 16.48 14.20 11.73 8.21",
        ),
    ),
    Printed(
        source=_BLOOM,
        bits=3,
        group_size=0,
        calibration="c4",
        perplexity=_table(
            _BLOOM_MODELS,
            base=_BLOOM_BASE,
            rtn="57.08 50.19 63.59 39.36 17.38 571",
            gptq="32.31 25.08 21.11 17.40 13.47 8.64",
        ),
    ),
)
MODELS = {model: base for table in PRINTED for model, base in table.perplexity["base"].items()}


def nearest(perplexity: float) -> str | None:
    """The model whose 16-bit perplexity is this one; None where none is within 0.4 %."""
    name = min(MODELS, key=lambda each: abs(MODELS[each] / perplexity - 1))
    return name if abs(MODELS[name] / perplexity - 1) <= SAME_MODEL else None


def printed_of(model: str | None, bits: int) -> Printed | None:
    """The table that has a model at a width."""
    return next((table for table in PRINTED if table.bits == bits and model in table.perplexity["base"]), None)
