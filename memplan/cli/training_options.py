"""The options of training, and what they become: a TrainingQuestion for every device that was named."""

from __future__ import annotations

from typing import Any, cast, get_args

from memplan.cli.options import DEVICE_OPTIONS, LLAMA_CPP_OPTIONS, SERVING_OPTIONS, TRAINING, Given
from memplan.domain.training import Checkpointing, Float8Recipe, Method, OptimizerForm, OptimizerName
from memplan.domain.training_question import (
    AskedAttention,
    AskedLoss,
    AskedSharding,
    Offloaded,
    Precision,
    Trainer,
    TrainingQuestion,
)
from memplan.errors import UsageError, did_you_mean
from memplan.units import parse_count

_RANKS = ("tp", "pp", "dp", "ep")
_INSTEAD = {
    "context": "--seq-len is the length of a training sequence",
    "concurrency": "--micro-batch is how many sequences are worked on at once",
    "quant": "--train qlora trains adapters on 4 bit weights",
    "engine": "--trainer names what trains",
    "dtype": "--mixed-precision says which types are kept and computed in",
    "config": "give the options themselves",
    "sharing": "--gpu-free says what others leave of a card",
}
_LARGEST_SIDE, _MOST_IMAGES = 16384, 1024
_MOST_SEQUENCES, _MOST_MICRO_BATCHES, _HIGHEST_RANK = 65536, 1 << 20, 4096


def training_question(given: Given, *, num_gpus: int | None) -> TrainingQuestion:
    """Return what the options ask. Raises: UsageError for a value that is none, or out of its range."""
    return TrainingQuestion(
        method=_one(given, "train", Method),
        trainer=_one(given, "trainer", Trainer) or "transformers",
        sequence_tokens=parse_count(given["seq_len"], what="--seq-len") if "seq_len" in given else None,
        micro_batch=_whole(given, "micro_batch", _MOST_SEQUENCES) or 1,
        accumulation=_whole(given, "grad_accum", _MOST_MICRO_BATCHES) or 1,
        optimizer=_one(given, "optimizer", OptimizerName) or "adamw",
        optimizer_form=_one(given, "optimizer_form", OptimizerForm),
        sharding=_one(given, "sharding", AskedSharding),
        checkpointing=_one(given, "checkpointing", Checkpointing),
        lora_rank=_whole(given, "lora_rank", _HIGHEST_RANK),
        lora_targets=tuple(_names(given, "lora_targets")),
        precision=_one(given, "mixed_precision", Precision),
        float8=_one(given, "fp8_recipe", Float8Recipe),
        loss=_one(given, "loss", AskedLoss),
        attention=_one(given, "attention", AskedAttention),
        compiled=given.get("compile", False),
        offloaded=tuple(_chosen(name, "offload", Offloaded) for name in _names(given, "offload")),
        resolution=_whole(given, "resolution", _LARGEST_SIDE),
        images=_whole(given, "images", _MOST_IMAGES) or 0,
        tensor=_whole(given, "tp", 4096) or 1,
        pipeline=_whole(given, "pp", 4096) or 1,
        data=_whole(given, "dp", 4096) or 1,
        expert=given.get("ep", False),
        context=_whole(given, "cp", 4096) or 1,
        num_gpus=num_gpus,
    )


def check_training(given: Given, here: Given) -> None:
    """Refuse options of serving beside those of training, and those of training without --train.

    `here` is what was given on the command line itself: what was remembered of serving is left aside.
    Raises: UsageError.
    """
    if "train" not in given:
        name = next(name for name in given if name in TRAINING)
        raise UsageError(f"{_flag(name)} without --train", hint="--train full, lora, dora or qlora budgets training")
    devices = {option.name for option in DEVICE_OPTIONS} - {"sharing"}
    serving = {option.name for option in (*SERVING_OPTIONS, *LLAMA_CPP_OPTIONS, *DEVICE_OPTIONS)} - devices
    for name in here:
        if name in serving and name not in _RANKS:
            raise UsageError(f"{_flag(name)} is of serving, not of training", hint=_INSTEAD.get(name, "leave it out"))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _one(given: Given, name: str, kinds: Any) -> Any:
    """One of the names of a Literal; None when nothing was given."""
    return _chosen(given[name], name, kinds) if name in given else None


def _chosen(text: str, name: str, kinds: Any) -> Any:
    known = cast("tuple[str, ...]", get_args(kinds))
    word = text.strip().lower().replace("_", "-")
    word = {"8bit-adamw": "adamw-8bit", "adamw8bit": "adamw-8bit", "no": "none", "off": "none"}.get(word, word)
    if word not in known:
        near = did_you_mean(word, list(known))
        raise UsageError(f"unknown {_flag(name)}: `{text:.60}`", hint=near or f"use one of {', '.join(known)}")
    return word


def _whole(given: Given, name: str, most: int) -> int | None:
    number: int | None = given.get(name)
    if number is not None and not 1 <= number <= most:
        raise UsageError(f"{_flag(name)} out of range: {number}", hint=f"it must be between 1 and {most:,}")
    return number


def _names(given: Given, name: str) -> list[str]:
    if name not in given:
        return []
    names = [each.strip() for each in given[name].split(",") if each.strip()]
    if not names:
        raise UsageError(f"{_flag(name)} is empty: `{given[name]}`", hint=f"name one, or leave {_flag(name)} out")
    return names
