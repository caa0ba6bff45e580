"""`memplan quantize --backend`: another library does the work, on the same texts; what came of it is for `evaluate`."""

from __future__ import annotations

import os
import shutil
import time

from memplan.cli.options import Given
from memplan.cli.quantize_request import AskedQuantization
from memplan.errors import MemplanError, UsageError
from memplan.quantize.backends import quantize_with
from memplan.quantize.packages import require_packages
from memplan.units import format_gib

# Of the native pipeline alone: a library has no such thing.
_NATIVE = ("json", "resume", "max_ram", "max_gpu_memory", "target", "fallback", "target_memory")


def run_backend(name: str, asked: AskedQuantization, given: Given) -> str:
    """Have a library quantize, and say in words what it took.

    Raises: UsageError for options of the native pipeline and for an output that exists; MissingExtra for a library that
    is not installed; MemplanError for whatever it raises itself.
    """
    for option in _NATIVE:
        if given.get(option):
            raise UsageError(
                f"--backend {name} knows no --{option.replace('_', '-')}", hint="leave it out, or --backend native"
            )
    require_packages(f"--backend {name}")
    from memplan.quantize.output import copy_others
    from memplan.quantize.text_sets import read_set
    from memplan.quantize.windows import calibration_windows, load_tokenizer

    assert asked.folder is not None
    assert asked.output is not None
    request, output = asked.request, asked.output
    if output.exists() and not given.get("force"):
        raise UsageError(f"{output} exists", hint="--force replaces it, once the new one is whole")
    texts = read_set(request.calibration, "calibrate", seed=request.seed, offline=bool(given.get("offline")))
    windows = calibration_windows(
        texts,
        load_tokenizer(asked.folder),
        window_tokens=request.window_tokens,
        num_windows=request.num_samples,
    )
    staging = output.with_name(f"{output.name}.{name}")
    shutil.rmtree(staging, ignore_errors=True)
    start = time.monotonic()
    try:
        quantize_with(name, request, asked.folder, windows, staging)
    except (MemplanError, KeyboardInterrupt):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise MemplanError(f"{name} failed: {type(error).__name__}: {lines[0] if lines else ''}") from error
    seconds = time.monotonic() - start
    copy_others(asked.folder, staging)
    if output.exists():
        shutil.rmtree(output)
    os.replace(staging, output)
    size = sum(path.stat().st_size for path in output.iterdir())
    return (
        f"{asked.spec.name}: {request.method.name} by {name}, {format_gib(size)} in {seconds:.0f} s: {output}\n"
        f"hint: memplan evaluate {output} --against {asked.name}\n"
    )
