"""One evaluation from names to a report: which text, which windows, which way of running each model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import transformers
from torch import Tensor

from memplan.domain.quality import QualityReport
from memplan.errors import MissingExtra, UsageError
from memplan.quantize.formats.reading import layout_of
from memplan.quantize.forward import Forward, Progress, StreamedModel, WholeModel
from memplan.quantize.kv_rounding import KvRounding, KvScales, kv_dtype_named
from memplan.quantize.overlap import check_disjoint
from memplan.quantize.perplexity import measure
from memplan.quantize.text_sets import read_set
from memplan.quantize.windows import Windows, calibration_windows, load_tokenizer, scoring_windows
from memplan.quantize.written import written_model
from memplan.records import dataclass

DEFAULT_WINDOW_TOKENS = 2048
# A model in memory takes its weights, and some of this part of what is free is left to its activations.
_FREE_FRACTION = 0.7
_SCALE_WINDOWS = 16
_SCALE_WINDOW_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """What is evaluated. `path` and `base_path` are folders with weights; `name` and `base_name` are what was typed.

    `window_tokens` 0 means 2,048 or the model's longest context, whichever is shorter; `stride_tokens` 0 means windows
    that do not overlap. `max_memory_bytes` 0 means what is free. `calibration` is the text that the scales of a cache
    of `kv_dtype` are measured on.
    """

    path: Path
    name: str
    base_path: Path | None = None
    base_name: str | None = None
    text_set: str = "builtin"
    calibration: str = "builtin"
    window_tokens: int = 0
    stride_tokens: int = 0
    max_documents: int = 0
    kv_dtype: str = ""
    device: str = "cpu"
    max_memory_bytes: int = 0
    seed: int = 0
    offline: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A report, and the scales of a rounded cache by layer, empty where it was not rounded."""

    report: QualityReport
    kv_scales: dict[int, KvScales]


def device_named(name: str) -> str:
    """Return the device to run on; `auto` is a GPU where there is one. Raises: UsageError, MissingExtra."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not name.startswith("cuda"):
        raise UsageError(f"not a device to run on: `{name}`", hint="use auto, cpu or cuda")
    if name != "cpu" and not torch.cuda.is_available():
        raise MissingExtra("no CUDA device is there", hint="use --device cpu")
    return name


def evaluate(request: EvaluationRequest, progress: Progress | None = None) -> Evaluation:
    """Measure a model, beside its base where one is named; a rounded cache is measured beside the plain one.

    Raises: UsageError, CorruptFile, SourceNotFound, UnsupportedModel, MissingExtra, as its parts do.
    """
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = load_tokenizer(request.path, trust_remote_code=request.trust_remote_code)
    window_tokens = _window_tokens(request)
    texts = read_set(
        request.text_set,
        "validate",
        max_documents=request.max_documents,
        seed=request.seed,
        offline=request.offline,
    )
    windows = scoring_windows(texts, tokenizer, window_tokens=window_tokens, stride_tokens=request.stride_tokens)
    kv, calibration_NT, notes = None, None, []
    base_path, base_name = request.base_path, request.base_name
    if request.kv_dtype:
        kv = KvRounding(kv_dtype_named(request.kv_dtype))
        calibrate = read_set(request.calibration, "calibrate", seed=request.seed, offline=request.offline)
        check_disjoint(calibrate, texts)
        calibration_NT = calibration_windows(
            calibrate, tokenizer, window_tokens=min(_SCALE_WINDOW_TOKENS, window_tokens), num_windows=_SCALE_WINDOWS
        )
        if base_path is None:
            base_path, base_name = request.path, request.name
            notes.append("the base is the same model with a cache of its own type")
    if base_path is not None and base_path != request.path:
        again = load_tokenizer(base_path, trust_remote_code=request.trust_remote_code)
        cut = scoring_windows(texts, again, window_tokens=window_tokens, stride_tokens=request.stride_tokens)
        _check_same_tokens(windows, cut, request)
    model = _open(request, request.path, kv=kv, calibration_NT=calibration_NT)
    base = _open(request, base_path) if base_path is not None else None
    domains, overall = measure(model, windows, base=base, progress=progress)
    if any(isinstance(each, StreamedModel) for each in (model, base)):
        notes.append("run one block at a time: packed weights, or more of them than memory is free")
    report = QualityReport(
        model=request.name,
        base=base_name,
        text_set=request.text_set,
        text_digest=texts.digest,
        window_tokens=window_tokens,
        stride_tokens=request.stride_tokens or window_tokens,
        kv_dtype=kv.dtype if kv else "",
        domains=domains,
        overall=overall,
        notes=(*notes, *_thin(windows)),
    )
    return Evaluation(report=report, kv_scales=kv.scales() if kv else {})


def _window_tokens(request: EvaluationRequest) -> int:
    longest = _longest_context(request.path)
    if request.window_tokens > longest > 0:
        raise UsageError(
            f"windows of {request.window_tokens:,} tokens are longer than the model's context of {longest:,}",
            hint="give a --window within its context: beyond it a model predicts badly for reasons of its own",
        )
    return request.window_tokens or min(DEFAULT_WINDOW_TOKENS, longest or DEFAULT_WINDOW_TOKENS)


def _longest_context(path: Path) -> int:
    config = _config(path)
    text = config.get("text_config")
    for part in (text if isinstance(text, dict) else {}, config):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            value = part.get(key)
            if isinstance(value, int):
                return value
    return 0


def _config(path: Path) -> dict[str, object]:
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read {path / 'config.json'}: {error}", hint="download the whole repository"
        ) from error
    return found if isinstance(found, dict) else {}


def _check_same_tokens(windows: Windows, again: Windows, request: EvaluationRequest) -> None:
    """Two models can be compared token by token only if they cut this text alike."""
    if windows.token_NT.shape != again.token_NT.shape or not torch.equal(windows.token_NT, again.token_NT):
        raise UsageError(
            f"{request.name} and {request.base_name} have different tokenizers",
            hint="--against takes the model that this one was made from; compare others by their bits per byte",
        )


def _open(
    request: EvaluationRequest, path: Path, *, kv: KvRounding | None = None, calibration_NT: Tensor | None = None
) -> Forward:
    """The model in memory where it fits there, else block by block.

    A quantized checkpoint is unpacked block by block where its layout is read here, else loaded by transformers.
    """
    quantization = _config(path).get("quantization_config")
    if isinstance(quantization, dict):
        found = layout_of(quantization)
        if found is not None:
            written = written_model(path, *found, device=request.device)
            written.kv, written.calibration_NT = kv, calibration_NT
            return written
    limit = request.max_memory_bytes or int(_free_bytes(request.device) * _FREE_FRACTION)
    num_models = 1 + (request.base_path is not None or bool(request.kv_dtype))
    fits = _whole_bytes(path, request.device) * num_models <= limit
    kind = WholeModel if fits or quantization is not None else StreamedModel
    return kind(
        path,
        device=request.device,
        kv=kv,
        calibration_NT=calibration_NT,
        trust_remote_code=request.trust_remote_code,
    )


def _whole_bytes(path: Path, device: str) -> int:
    """What the weights take in memory: 16-bit ones are computed with in float32 on the CPU."""
    on_disk = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return on_disk * 2 if device == "cpu" else on_disk


def _free_bytes(device: str) -> int:
    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _thin(windows: Windows) -> list[str]:
    """Said of domains whose few tokens leave much to chance."""
    scored: dict[str, int] = {}
    for first, end, domain in zip(windows.first_N, windows.end_N, windows.domain_N, strict=True):
        scored[domain] = scored.get(domain, 0) + end - first
    thin = [domain for domain, tokens in scored.items() if tokens < 20_000]
    return [f"few tokens of {', '.join(thin)}: see the standard errors"] if thin else []
