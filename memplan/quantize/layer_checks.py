"""Whether what a request asks of single layers can be: what is kept, what engines fuse, what groups divide."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from memplan.errors import UsageError
from memplan.quantize.request import QuantizeRequest

# What vLLM and SGLang put into one layer.
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def check_keeps(patterns: Sequence[str], names: Sequence[str]) -> None:
    """Raises: UsageError for a pattern that no module's name matches: what it was to keep would be rounded."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"--keep {pattern} is the name of nothing here", hint="names are such as *.0.mlp.down_proj"
            )


def check_fused(kept: set[str], names: Sequence[str]) -> None:
    """Raises: UsageError where a part of what engines fuse into one layer would stay, and the rest not."""
    known = set(names)
    for fused in _FUSED:
        for name in names:
            parent, _, leaf = name.rpartition(".")
            if leaf != fused[0]:
                continue
            others = [f"{parent}.{other}" for other in fused if f"{parent}.{other}" in known]
            if 0 < sum(other in kept for other in others) < len(others):
                raise UsageError(
                    f"engines fuse {', '.join(fused)} of {parent}, which have one form together",
                    hint=f"--keep '{','.join(f'*.{other}' for other in fused)}', or none of them",
                )


def check_groups(request: QuantizeRequest, name: str, num_in: int) -> None:
    """Raises: UsageError where groups do not divide the in features of a layer."""
    width = request.width(name)
    if not width.divides(num_in):
        raise UsageError(
            f"groups of {width.group_size} do not divide the {num_in} in features of {name}",
            hint=_mend(request, name, num_in),
        )


def _mend(request: QuantizeRequest, name: str, num_in: int) -> str:
    """What to do where groups do not divide a layer: some formats leave no choice of groups."""
    keep = f"--keep '*.{name.rsplit('.', 1)[-1]}'"
    return f"--group-size {_dividing(num_in)}, or {keep}" if request.method.element == "int" else keep


def _dividing(num_in: int) -> int:
    return next((size for size in (128, 64, 32, 16, 8) if num_in % size == 0), 0)
