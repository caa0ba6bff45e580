"""`memplan doctor http://...`: a live server's metrics, its model and release, beside the budget that predicts them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from memplan.cli.options import Given
from memplan.doctor.lines import LINE_BYTES
from memplan.doctor.live import server_diagnoses
from memplan.doctor.metrics import Scrape, read_metrics
from memplan.doctor.secrets import redact, shown
from memplan.domain.budget import MemoryBudget
from memplan.domain.diagnosis import DoctorReport, Recognised
from memplan.engines.spelling import SPELLINGS
from memplan.errors import MemplanError, Offline, SourceError, UsageError

_LIMIT_BYTES = 16 << 20
_SMALL_BYTES = 1 << 20
_TIMEOUT_S = 5.0
_SECONDS = 2.0
_MOST_SECONDS = 600.0
_PATHS = ("/metrics", "/prometheus/metrics")


def server_report(url: str, given: Given) -> DoctorReport:
    """Return what a server says of itself, twice, so far apart as --seconds says.

    Raises: UsageError for an address that is none; Offline where nothing answers; SourceError for an answer that is no
    page of metrics.
    """
    base, named = _address(url)
    seconds = given.get("seconds", _SECONDS)
    if not 0 < seconds <= _MOST_SECONDS:
        raise UsageError(f"--seconds out of range: {seconds:g}", hint=f"between 0 and {_MOST_SECONDS:g}")
    before, path = _scraped(base, named)
    began = time.monotonic()
    time.sleep(seconds)
    after, _ = _scraped(base, (path,))
    version = _version(base)
    model = before.model or _model(base)
    budget, note = _budget(after, model, version, given)
    return _report(before, after, time.monotonic() - began, budget, version, [note] if note else [])


def metrics_report(pieces: Iterator[bytes], given: Given) -> DoctorReport:
    """The same for a page of metrics that was saved: one look, so no rates."""
    data = bytearray()
    for piece in pieces:
        data += piece[: max(0, _LIMIT_BYTES - len(data))]
    scrape = read_metrics(_lines(bytes(data)))
    version = None
    budget, note = _budget(scrape, scrape.model, version, given)
    return _report(scrape, scrape, 0.0, budget, version, [note] if note else [])


def _report(
    before: Scrape, after: Scrape, seconds: float, budget: MemoryBudget | None, version: str | None, notes: list[str]
) -> DoctorReport:
    from memplan.doctor.diagnose_log import budget_of

    needs = []
    if budget is None and after.capacity_tokens:
        needs.append("to compare with a budget: --model NAME and --gpu NAME, or memplan.yaml")
    return DoctorReport(
        recognised=Recognised(
            kind="metrics", name="a server's metrics", engine=after.engine, version=version, num_lines=after.num_lines
        ),
        diagnoses=server_diagnoses(before, after, seconds, budget),
        settings={"model": after.model, **{name: after.info[name] for name in _SHOWN if name in after.info}},
        budget_of=budget_of(budget),
        needs=tuple(needs),
        notes=tuple(notes),
    )


_SHOWN = (
    "block_size", "num_gpu_blocks", "cache_dtype", "gpu_memory_utilization", "kv_cache_memory_bytes",
    "kv_cache_size_tokens", "enable_prefix_caching",
)  # fmt: skip


def _address(url: str) -> tuple[str, tuple[str, ...]]:
    """The server's root, and the paths where its metrics may be."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"not an address: {error}", hint="write http://127.0.0.1:8000") from None
    if not host:
        raise UsageError("not an address: no host", hint="write http://127.0.0.1:8000")
    if parts.username or parts.password:
        raise UsageError("a login in the address is not sent", hint="give the address alone")
    bracketed = f"[{host}]" if ":" in host else host
    root = f"{parts.scheme}://{bracketed}" + (f":{port}" if port else "")
    own = parts.path.rstrip("/")
    return root, (own,) if own.endswith("metrics") else _PATHS


def _scraped(base: str, paths: tuple[str, ...]) -> tuple[Scrape, str]:
    """The first of the pages that has metrics of an engine."""
    said = ""
    for path in paths:
        status, body = _got(base + path, _LIMIT_BYTES)
        if status == 200:
            scrape = read_metrics(_lines(body))
            if scrape.engine is not None:
                return scrape, path
            said = "its page has no metrics of an engine that is known"
        else:
            said = said or f"{path} answers {status}"
    hint = "SGLang and llama-server export them only with --enable-metrics and --metrics"
    raise SourceError(f"no metrics at {base}: {said}", hint=hint)


def _got(url: str, limit_bytes: int) -> tuple[int, bytes]:
    from memplan.introspect.web import Web

    web = Web(url, timeout_s=_TIMEOUT_S, sleep=lambda seconds: None)
    try:
        answer = web.get(url, limit_bytes=limit_bytes)
        return answer.status, answer.body
    except Offline as error:
        raise Offline(error.message, hint="is the server up, and its port the right one?") from None
    finally:
        web.close()


def _lines(body: bytes) -> Iterator[str]:
    for line in body.splitlines():
        yield line[:LINE_BYTES].decode("utf-8", "replace")


def _version(base: str) -> str | None:
    """vLLM, trtllm-serve, SGLang and TGI tell their release; others do not."""
    for path, key in (("/version", "version"), ("/get_server_info", "version"), ("/info", "version")):
        found = _json(base + path).get(key)
        if isinstance(found, str) and 0 < len(found) < 80:
            return redact(found)
    return None


def _model(base: str) -> str | None:
    data = _json(base + "/v1/models").get("data")
    if isinstance(data, list) and data and isinstance(data[0], dict):
        name = data[0].get("root") or data[0].get("id")
        return redact(name)[:200] if isinstance(name, str) else None
    return None


def _json(url: str) -> dict[str, object]:
    try:
        status, body = _got(url, _SMALL_BYTES)
        content = json.loads(body) if status == 200 else {}
    except (MemplanError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _budget(after: Scrape, model: str | None, version: str | None, given: Given) -> tuple[MemoryBudget | None, str]:
    """The budget of what runs, with the settings that the server tells; None without a model or a GPU."""
    from memplan.cli.doctor_budget import answered, known_model

    asked: dict[str, object] = {name: given[name] for name in ("model", "gpu", "gpu_memory", "engine") if name in given}
    if "model" not in asked and model and (known := known_model(model)):
        asked["model"] = known
    if "model" not in asked or ("gpu" not in asked and "gpu_memory" not in asked):
        return None, ""
    if "engine" not in asked and after.engine not in SPELLINGS:
        return None, "no budget: memplan has none for this engine"
    if "engine" not in asked and after.engine:
        asked["engine"] = f"{after.engine}@{version}" if version else after.engine
    asked |= _told(after)
    asked["offline"] = bool(given.get("offline")) or "model" not in given
    try:
        return answered(asked)[1], ""
    except MemplanError as error:
        return None, shown(f"no budget: {error.message}")


def _told(after: Scrape) -> dict[str, object]:
    """Settings of the cache that vLLM exports as labels."""
    info, found = after.info, dict[str, object]()
    names = (
        ("gpu_memory_utilization", "gpu_memory_utilization", float),
        ("block_size", "block_size", int),
        ("kv_cache_memory_bytes", "kv_cache_memory", str),
    )
    for label, name, kind in names:
        text = info.get(label, "None")
        if text not in ("None", "", "null"):
            try:
                found[name] = kind(text)
            except ValueError:
                continue
    if "fp8" in info.get("cache_dtype", ""):
        found["kv_dtype"] = "fp8"
    return found
