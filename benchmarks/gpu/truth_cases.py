"""What profile_truth.py measures: models of the catalogue with few layers, and the passes that are run of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpu_points import ModelChoice
from model_folder import model_config

from memplan.domain.dtypes import DType

# Real widths, few layers: what a layer takes does not depend on how many there are. In order of worth.
MODELS: tuple[ModelChoice, ...] = tuple(
    ModelChoice(name=name.rpartition("/")[2] + (f"-l{layers}" if layers else ""), catalogue=name, layers=layers)
    for name, layers in (
        ("llama-3.1-8b", 4),
        ("qwen3-0.6b", None),
        ("mistral-7b", 4),
        ("gemma-2-9b", 4),
        ("gemma-3-1b", 6),
        ("qwen3-30b-a3b", 2),
        ("gpt-oss-20b", 2),
        ("deepseek-v2-lite", 3),
        ("phi-4", 3),
        ("qwen2.5-7b", 4),
        ("google-bert/bert-large-uncased", 8),
        ("google/flan-t5-large", None),
        ("google/vit-huge-patch14-224-in21k", 8),
        ("mixtral-8x7b", 1),
        ("olmoe-1b-7b", 2),
        ("granite-4.0-h-tiny", 10),
        ("ibm-granite/granite-3.3-2b-instruct", 6),
        ("pythia-1.4b", 6),
        ("gpt2-xl", 8),
        ("opt-1.3b", 6),
        ("falcon-7b", 4),
        ("bloom-560m", 6),
        ("bigcode/starcoder2-3b", 6),
        ("stablelm", 6),
        ("olmo-2-1124-7b", 4),
        ("command-r", 2),
        ("EleutherAI/gpt-j-6b", 4),
        ("answerdotai/ModernBERT-large", 8),
        ("FacebookAI/roberta-large", 8),
        ("openai/whisper-large-v3", None),
        ("state-spaces/mamba-130m-hf", 6),
    )
)
# For a rehearsal: quick on a CPU.
SMALL: tuple[ModelChoice, ...] = (ModelChoice(name="pythia-70m-l1", catalogue="EleutherAI/pythia-70m", layers=1),)
_POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_sequence_length")
_NO_LIMIT = 1 << 20
_ALL_TRAINING = 3  # so many models are trained in every way
# One rank of several, the others not there.
_SHARED: tuple[dict[str, Any], ...] = (
    {"sharing": "fsdp", "num_ranks": 8},
    {"sharing": "fsdp", "num_ranks": 8, "checkpointing": True, "dtype": DType.F32, "mixed_precision": DType.BF16},
    {"sharing": "fsdp", "num_ranks": 8, "reshard": False},
    {"sharing": "tp", "num_ranks": 2},
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One profile: `options` are fields of ProfileRequest, beside the model and its type."""

    model: ModelChoice
    trains: bool
    options: dict[str, Any]


def cases(*, is_rehearsal: bool) -> Iterator[Case]:
    """Every case, models in order. No text is longer than its model can count."""
    points = ((1, 32), (2, 16)) if is_rehearsal else ((1, 512), (4, 2048), (16, 512), (1, 8192))
    output = 4 if is_rehearsal else 16
    for number, model in enumerate(SMALL if is_rehearsal else MODELS):
        longest = max_tokens(model) - output
        sizes = dict.fromkeys((batch, min(prompt, longest)) for batch, prompt in points)
        for batch, prompt in sizes:
            options = {"batch": batch, "prompt_tokens": prompt, "output_tokens": output}
            yield Case(model=model, trains=False, options=options)
        training = {"batch": 2, "prompt_tokens": 32 if is_rehearsal else min(512, longest)}
        ways: list[dict[str, Any]] = [{}, {"checkpointing": True}, {"lora_rank": 16}]
        if number < _ALL_TRAINING:
            ways += [{"optimizer": f"adamw-{kind}"} for kind in ("fused", "foreach", "loop", "8bit")]
            ways += [{"attention": kind} for kind in ("math", "eager")]
            ways += _SHARED
        for way in ways:
            yield Case(model=model, trains=True, options={**training, **way})


def max_tokens(model: ModelChoice) -> int:
    """The most tokens that a model has positions for; some leave the first two free."""
    config = model_config(model)
    text = config.get("text_config") or config
    known = [text[key] for key in _POSITIONS if isinstance(text.get(key), int)]
    return min(known, default=_NO_LIMIT) - 2
