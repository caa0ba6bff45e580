"""The model card of a quantized checkpoint: what was done to which model, with which texts, and how good it is.

The front matter is that of the hub: it names the base model, so that the two are shown together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from memplan.domain.quality import DomainQuality
from memplan.quantize.result import QuantizeResult
from memplan.report.quantize_text import describe
from memplan.units import format_gib

_KEPT_KEYS = ("license", "license_name", "license_link", "language", "pipeline_tag")


def model_card(result: QuantizeResult, versions: Mapping[str, str], source: Path | None) -> str:
    """Return README.md. `source` is the base model's folder, whose card says under which licence it is."""
    request = result.request
    front = [*_front(source), "library_name: transformers", f"base_model: {result.model_name}"]
    front += ["base_model_relation: quantized", "tags:", "- memplan", f"- {request.method.name}"]
    calibrated = (
        f"{request.num_samples} windows of {request.window_tokens} tokens of `{request.calibration}`, "
        f"seed {request.seed}"
        if request.method.needs_calibration
        else "none: the method looks at weights alone"
    )
    releases = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = ["---", *front, "---", "", f"# {result.folder.name}", ""]
    lines += [f"[{result.model_name}](https://huggingface.co/{result.model_name})" if "/" in result.model_name else ""]
    lines += [f"{result.model_name}, quantized with memplan: {describe(request)}.", ""]
    rows = [
        ("Size", format_gib(result.output_bytes)),
        ("Calibration", calibrated),
        ("Kept in 16 bit", ", ".join(f"`{keep}`" for keep in request.keeps) or "embeddings, norms, routers, head"),
        ("Made with", releases),
        ("Verdict", f"{result.gate.verdict}: at most {result.gate.worst.limit_fraction:.2%} allowed in any domain"),
    ]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    lines += ["## Measured quality", "", _measured(result), ""]
    lines += [
        "| domain | tokens | perplexity | before | rise | KL (nats) | same top-1 |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(_row(domain) for domain in (*result.quality.domains, result.quality.overall)),
        "",
        "Perplexity and divergence say how much of the base model's behaviour is left on this text; they say nothing "
        "of tasks, long contexts or languages that are not in it. `quantization_report.json` has every layer's error.",
    ]
    lines += ["", "## Notes", "", *(f"- {note}" for note in result.notes)] if result.notes else []
    return "\n".join(line for number, line in enumerate(lines) if line or lines[number - 1]) + "\n"


def _measured(result: QuantizeResult) -> str:
    quality = result.quality
    return (
        f"On the part to validate on of `{quality.text_set}` (digest `{quality.text_digest[:12]}`), windows of "
        f"{quality.window_tokens:,} tokens, beside the 16-bit model on the same tokens; none of it was calibrated on."
    )


def _row(domain: DomainQuality) -> str:
    difference = domain.difference
    assert difference is not None
    rise = f"{difference.perplexity_increase:+.2%} ± {difference.perplexity_increase_standard_error:.2%}"
    return (
        f"| {domain.domain} | {domain.tokens:,} | {domain.perplexity:.3f} | {difference.base_perplexity:.3f} | {rise} "
        f"| {difference.kl_divergence.mean:.5f} | {difference.top1_agreement.mean:.1%} |"
    )


def _front(source: Path | None) -> list[str]:
    """What the base model's card says of licence and language, as it stands there."""
    try:
        text = (source / "README.md").read_text(encoding="utf-8") if source else ""
    except (OSError, UnicodeDecodeError):
        return []
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return []
    found, keeps = [], False
    for line in text[4 : text.index("\n---", 4)].splitlines():
        if not line.startswith((" ", "-")):
            keeps = line.partition(":")[0] in _KEPT_KEYS
        if keeps:
            found.append(line)
    return found
