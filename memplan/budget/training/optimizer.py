"""What optimizers keep for every parameter, and what they take while they step.

Sources: torch/optim/adamw.py (foreach takes one tensor for each parameter while it divides, the fused form none);
bitsandbytes 0.44 to 0.48, optim/optimizer.py (moments of 8 bits with a scale of 32 bits for every 256; paged state lies
in managed memory, which PyTorch does not count); transformers/optimization.py, Adafactor (rows and columns).
"""

from __future__ import annotations

from memplan.domain.training import TrainingSpec

_FLOAT = 4
_BLOCK = 256
_SMALLEST = 4096


def state_sizes(training: TrainingSpec, elements: float) -> tuple[float, ...]:
    """Bytes of what is kept for one parameter of so many elements on this rank."""
    name = training.optimizer
    plain = elements * training.state_bytes
    if name.startswith("paged"):
        return ()
    if name == "adamw-8bit":
        each = elements * (1 + _FLOAT / _BLOCK) if elements >= _SMALLEST else elements * _FLOAT
        return each, each
    if name == "adamw":
        return plain, plain
    return () if name == "adafactor" else (plain,)


def temporary_sizes(training: TrainingSpec, parameters_bytes: list[float]) -> list[float]:
    """Bytes of what is taken together while the optimizer steps."""
    name, form = training.optimizer, training.optimizer_form
    if name == "adafactor":
        return [max(parameters_bytes, default=0) * 2]
    if name not in ("adamw", "sgd", "lion") or form == "fused":
        return []
    if form == "foreach":
        return parameters_bytes
    return [max(parameters_bytes, default=0) * 2]
