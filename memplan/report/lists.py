"""The catalogue as tables, pages and JSON: what `memplan gpus` and `memplan models` answer.

Plain text with optional colours; nothing here looks at the terminal. Without a width nothing is cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from memplan.catalog.local_gpus import LocalGpu
from memplan.catalog.models import CatalogModel
from memplan.domain.gpu import GpuSpec
from memplan.report.text import Style
from memplan.units import GIB, format_count, format_gib

_GPU_HEAD = ("NAME", "MEMORY", "BANDWIDTH", "BF16", "FP8", "COMPUTE", "$/HOUR", "KNOWN")
_MODEL_HEAD = ("NAME", "PARAMETERS", "RELEASED", "ALSO", "PUBLISHED QUANTIZED")
_LOCAL_HEAD = ("NAME", "MEMORY", "FREE", "DRIVER TOTAL")
_RIGHT = {"MEMORY", "BANDWIDTH", "BF16", "FP8", "$/HOUR", "PARAMETERS", "FREE", "DRIVER TOTAL"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]], style: Style, *, width: int | None) -> str:
    """Return aligned columns under a head; with a width, lines are cut to it."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [_line(head, widths, head, width), *(_line(row, widths, head, width) for row in rows)]
    return "\n".join([style.paint(lines[0], "1"), *lines[1:]]) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int], head: Sequence[str], width: int | None) -> str:
    aligned = [
        cell.rjust(size) if name in _RIGHT else cell.ljust(size)
        for cell, size, name in zip(cells, widths, head, strict=True)
    ]
    line = "  ".join(aligned).rstrip()
    return line if width is None or len(line) <= width else f"{line[: width - 1]}…"


def pairs(rows: Sequence[tuple[str, str]], style: Style) -> str:
    """Return names and values in two columns; rows without a value are left out."""
    shown = [(name, value) for name, value in rows if value]
    size = max(len(name) for name, _ in shown)
    return "\n".join(f"{style.paint(name.ljust(size), '1')}  {value}" for name, value in shown) + "\n"


def gpu_table(specs: Sequence[GpuSpec], style: Style, *, width: int | None = None) -> str:
    """Return GPUs one a line: memory as programs see it, rates, price."""
    rows = [
        (
            spec.name,
            format_gib(spec.memory_bytes),
            _bandwidth(spec.bandwidth_bytes_per_s),
            _tera(spec, "bf16", "fp16"),
            _tera(spec, "fp8"),
            spec.compute_capability or "-",
            _price(spec),
            spec.provenance,
        )
        for spec in specs
    ]
    return table(_GPU_HEAD, rows, style, width=width)


def gpu_page(spec: GpuSpec, style: Style) -> str:
    """Return everything that is known of one GPU, with its source."""
    low, high = format_gib(spec.visible_low_bytes), format_gib(spec.visible_high_bytes)
    seen = f", {low} to {high} over drivers" if low != high else ""
    rates = spec.flops_per_s or {}
    rows = [
        ("name", spec.name),
        ("driver prints", spec.title),
        ("also", ", ".join(spec.aliases)),
        ("vendor", f"{spec.vendor}, {spec.architecture}"),
        ("memory", f"{format_gib(spec.memory_bytes)} as programs see it ({spec.provenance}{seen})"),
        ("driver total", format_gib(spec.driver_memory_bytes) if spec.driver_memory_bytes else ""),
        ("sold as", f"{spec.nominal_memory_bytes / GIB:g} GB" if spec.nominal_memory_bytes else ""),
        ("compute capability", spec.compute_capability or ""),
        ("bandwidth", _bandwidth(spec.bandwidth_bytes_per_s).replace("-", "")),
        ("dense rates", ", ".join(f"{dtype} {rate / 1e12:,.0f} T/s" for dtype, rate in rates.items())),
        ("link", f"{spec.interconnect}, {_bandwidth(spec.interconnect_bytes_per_s)}" if spec.interconnect else ""),
        ("PCIe", spec.pcie or ""),
        ("power", f"{spec.power_watts:g} W" if spec.power_watts else ""),
        ("price", f"{_price(spec)} US dollars per hour ({spec.price.source})" if spec.price else ""),
        ("slices", ", ".join(f"{spec.name}:{profile}" for profile in spec.mig_profiles)),
        ("source", spec.source),
        ("note", spec.note),
    ]
    return pairs(rows, style)


def local_table(gpus: Sequence[LocalGpu], style: Style, *, width: int | None = None) -> str:
    """Return the GPUs of this machine: what programs see, what is free of it now."""
    rows = [
        (gpu.name, format_gib(gpu.total_bytes), format_gib(gpu.free_bytes), format_gib(gpu.driver_memory_bytes))
        for gpu in gpus
    ]
    return table(_LOCAL_HEAD, rows, style, width=width)


def model_table(models: Sequence[CatalogModel], style: Style, *, width: int | None = None) -> str:
    """Return models one a line: size, age, the shortest names, published quantized checkpoints."""
    rows = [
        (
            model.name,
            format_count(model.parameters),
            model.released or "-",
            ", ".join((*model.bare, *model.aliases)) or "-",
            ", ".join(model.quantized) or "-",
        )
        for model in models
    ]
    return table(_MODEL_HEAD, rows, style, width=width)


def model_page(model: CatalogModel, style: Style) -> str:
    """Return everything that is known of one model, with its source."""
    rows = [
        ("name", model.name),
        ("also", ", ".join((*model.aliases, *model.bare))),
        ("parameters", f"{model.parameters:,} ({format_count(model.parameters)})"),
        ("released", model.released),
        ("licence", f"{model.license or 'not recorded'}{', gated on the hub' if model.gated else ''}"),
        ("family", str(model.config.get("model_type", ""))),
        *((f"quantized, {scheme}", ", ".join(ids)) for scheme, ids in model.quantized.items()),
        ("source", model.source),
        *((f"config {key}", _short(value)) for key, value in model.config.items()),
    ]
    return pairs(rows, style)


def gpus_json(specs: Sequence[GpuSpec]) -> str:
    """Return GPUs under the schema `memplan.gpus/1`."""
    return _dump({"schema": "memplan.gpus/1", "gpus": [gpu_object(spec) for spec in specs]})


def gpu_object(spec: GpuSpec) -> dict[str, object]:
    """Return a GPU as plain values."""
    price = {"low": spec.price.low, "high": spec.price.high, "source": spec.price.source} if spec.price else None
    return {
        "name": spec.name,
        "title": spec.title,
        "aliases": list(spec.aliases),
        "vendor": spec.vendor,
        "architecture": spec.architecture,
        "memory_bytes": spec.memory_bytes,
        "visible_low_bytes": spec.visible_low_bytes,
        "visible_high_bytes": spec.visible_high_bytes,
        "driver_memory_bytes": spec.driver_memory_bytes,
        "nominal_memory_bytes": spec.nominal_memory_bytes,
        "provenance": spec.provenance,
        "compute_capability": spec.compute_capability,
        "bandwidth_bytes_per_s": spec.bandwidth_bytes_per_s,
        "flops_per_s": spec.flops_per_s,
        "interconnect": spec.interconnect,
        "interconnect_bytes_per_s": spec.interconnect_bytes_per_s,
        "pcie": spec.pcie,
        "power_watts": spec.power_watts,
        "price_usd_per_hour": price,
        "slices": [f"{spec.name}:{profile}" for profile in spec.mig_profiles],
        "source": spec.source,
        "note": spec.note,
    }


def local_json(gpus: Sequence[LocalGpu]) -> str:
    """Return the GPUs of this machine under the schema `memplan.local-gpus/1`."""
    objects = [
        {
            "name": gpu.name,
            "memory_bytes": gpu.total_bytes,
            "free_bytes": gpu.free_bytes,
            "driver_memory_bytes": gpu.driver_memory_bytes,
        }
        for gpu in gpus
    ]
    return _dump({"schema": "memplan.local-gpus/1", "gpus": objects})


def models_json(models: Sequence[CatalogModel], *, with_config: bool = False) -> str:
    """Return models under the schema `memplan.models/1`; their configs only when asked, they are long."""
    return _dump({"schema": "memplan.models/1", "models": [model_object(model, with_config) for model in models]})


def model_object(model: CatalogModel, with_config: bool) -> dict[str, object]:
    """Return a model as plain values."""
    content: dict[str, object] = {
        "name": model.name,
        "aliases": [*model.aliases, *model.bare],
        "parameters": model.parameters,
        "model_type": model.config.get("model_type"),
        "released": model.released or None,
        "license": model.license,
        "gated": model.gated,
        "quantized": {scheme: list(ids) for scheme, ids in model.quantized.items()},
        "source": model.source,
    }
    return {**content, "config": model.config} if with_config else content


def _dump(content: Mapping[str, object]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _bandwidth(bytes_per_s: float | None) -> str:
    if not bytes_per_s:
        return "-"
    return f"{bytes_per_s / 1e12:.2f} TB/s" if bytes_per_s >= 1e12 else f"{bytes_per_s / 1e9:.0f} GB/s"


def _tera(spec: GpuSpec, *dtypes: str) -> str:
    rates = spec.flops_per_s or {}
    rate = next((rates[dtype] for dtype in dtypes if dtype in rates), None)
    return f"{rate / 1e12:,.0f} T" if rate else "-"


def _price(spec: GpuSpec) -> str:
    if spec.price is None:
        return "-"
    low, high = spec.price.low, spec.price.high
    return f"{low:.2f}" if low == high else f"{low:.2f}-{high:.2f}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."
