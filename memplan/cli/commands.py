"""The commands of `memplan`: a table, of which only the command that was asked for is imported."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

COMMANDS: Mapping[str, tuple[str, str]] = {
    "estimate": (
        "memplan.cli.estimate:estimate_command",
        "What a model uses on a GPU, what fits, what would make it fit.",
    ),
    "emit-config": (
        "memplan.cli.emit_config:emit_config_command",
        "Write the config that runs a model as estimated, with a reason for every value.",
    ),
    "plan": ("memplan.cli.plan:plan_command", "The best way to serve a model, found by search, and what it costs."),
    "simulate": (
        "memplan.cli.simulate:simulate_command",
        "How a deployment behaves under traffic: cache, queues, waits, waste, what-ifs side by side.",
    ),
    "profile": ("memplan.cli.profile:profile_command", "What memory a model really takes, phase by phase, and why."),
    "quantize": (
        "memplan.cli.quantize:quantize_command",
        "Make a model smaller, and prove that it is still good before it is accepted.",
    ),
    "evaluate": (
        "memplan.cli.evaluate:evaluate_command",
        "How well a model predicts text, and how much worse than the one it was made from.",
    ),
    "doctor": (
        "memplan.cli.doctor:doctor_command",
        "Why a run went out of memory: from its log, traceback, config, snapshot or live server.",
    ),
    "models": ("memplan.cli.models:models_command", "List, search and show the models that memplan knows by name."),
    "gpus": ("memplan.cli.gpus:gpus_command", "List, search and show the GPUs that memplan knows by name."),
}


def import_command(name: str) -> Any:
    """The command of that name: a Command of `memplan.cli.options`, or a function with typer's annotations."""
    module, attribute = COMMANDS[name][0].split(":")
    return getattr(importlib.import_module(module), attribute)
