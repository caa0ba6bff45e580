"""`memplan quantize --method gguf:TYPE`: one file for llama.cpp, read back and judged as every other result is."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from memplan.cli.options import Given
from memplan.cli.quantize_proof import proven
from memplan.cli.quantize_request import AskedQuantization
from memplan.cli.quantize_run import write_reports
from memplan.cli.quantize_stops import in_one_go
from memplan.errors import QualityMissed, UsageError
from memplan.quantize.gguf_file.types import FILE_TYPES
from memplan.quantize.packages import require_packages
from memplan.quantize.result import QuantizeResult

if TYPE_CHECKING:
    from memplan.quantize.forward import Forward

_TRIED_TEXTS = 64


def run_gguf(asked: AskedQuantization, given: Given) -> QuantizeResult:
    """Write the file, measure it, and give it its place.

    Raises: UsageError for an output that exists; QualityMissed when it lost too much, with the file put aside;
    MissingExtra and UnsupportedModel as the writer does.
    """
    if given.get("resume"):
        raise UsageError("a GGUF is written in one go", hint="leave --resume out")
    require_packages("--method gguf", "gguf", hint="pip install 'memplan[gguf]'")
    assert asked.folder is not None
    assert asked.output is not None
    output, start = asked.output, time.monotonic()
    if output.exists() and not given.get("force"):
        raise UsageError(f"{output} exists", hint="--force replaces it, once the new one is whole")
    staging = output.with_name(f"{output.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        with in_one_go(f"{asked.request.method.name} was written and proved"):
            file, notes = _write(asked, staging, given)
            quality, gate = proven(asked, given, lambda: _read(asked, file), staging)
        place = output if gate.verdict == "passed" else output.with_name(f"{output.name}.rejected")
        result = QuantizeResult(
            model_name=asked.spec.name,
            request=asked.request,
            forecast=asked.forecast,
            folder=place,
            quality=quality,
            gate=gate,
            blocks=(),
            output_bytes=file.stat().st_size,
            seconds=time.monotonic() - start,
            peak_bytes=None,
            notes=tuple(notes),
        )
        write_reports(result, staging, asked.folder, html=bool(given.get("html")))
        shutil.rmtree(place, ignore_errors=True)
        os.replace(staging, place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if gate.verdict == "missed":
        worst = gate.worst
        raise QualityMissed(
            f"perplexity on {worst.domain} rises by {worst.increase_fraction:.1%}, {worst.limit_fraction:.1%} is "
            f"allowed; the file is put aside in {place}",
            hint="--method gguf:q5_k_m, gguf:q8_0, or a larger --max-perplexity-increase",
        )
    return result


def _write(asked: AskedQuantization, staging: Path, given: Given) -> tuple[Path, list[str]]:
    """The file in the staging folder, and what is to be known of it."""
    from memplan.quantize.gguf_file.writer import write_gguf
    from memplan.quantize.text_sets import read_set

    assert asked.folder is not None
    kind = asked.request.method.name.partition(":")[2]
    texts = read_set(asked.request.calibration, "calibrate", seed=0, offline=bool(given.get("offline")))
    tried = [document.plain for document in texts.documents[:_TRIED_TEXTS]]
    file = staging / f"model-{kind}.gguf"
    if not FILE_TYPES[kind].by_llama_cpp:
        return file, write_gguf(asked.folder, file, kind, tried)
    from memplan.quantize.gguf_file.llama_cpp import check_installed, quantize_gguf

    check_installed(kind)
    plain = staging / "model-bf16.gguf"
    notes = write_gguf(asked.folder, plain, "bf16", tried)
    quantize_gguf(plain, file, kind)
    plain.unlink()
    return file, notes


def _read(asked: AskedQuantization, file: Path) -> Forward:
    """The model that runs from the file."""
    from memplan.quantize.forward import StreamedModel
    from memplan.quantize.gguf_file.families import family_of
    from memplan.quantize.gguf_file.reader import GgufCheckpoint
    from memplan.quantize.skeleton import Skeleton

    source, device = asked.folder, asked.request.device
    assert source is not None
    family = family_of(json.loads((source / "config.json").read_text(encoding="utf-8")))
    skeleton = Skeleton(source, device=device, checkpoint=GgufCheckpoint(file, source, family))
    return StreamedModel(source, device=device, skeleton=skeleton, spill=file.parent)
