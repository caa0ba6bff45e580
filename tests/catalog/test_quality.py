"""The published rises of perplexity: every pair has a source, and a model is judged by those of its own size."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import memplan.catalog
from memplan.catalog.quality import quality_of, scheme_bits
from memplan.catalog.quant_schemes import parse_scheme

TABLE = yaml.safe_load((Path(memplan.catalog.__file__).parent / "quality.yaml").read_text())


def test_every_point_names_its_source_and_gets_no_better_by_much() -> None:
    for kind in ("schemes", "caches"):
        for name, entry in TABLE[kind].items():
            for point in entry.get("points", ()):
                assert point["source"]
                assert 0.99 < point["quantized"] / point["plain"] < 1.5, name
            assert entry.get("points") or (entry["assumed"] >= 0 and entry["source"])


def test_every_scheme_of_the_table_is_one_that_quant_takes() -> None:
    for name in TABLE["schemes"]:
        assert parse_scheme(name.replace("-*", "-g128"))


def test_the_checkpoint_as_it_is_costs_nothing() -> None:
    found = quality_of(None, None, 8_000_000_000)
    assert (found.perplexity_increase, found.level) == (0.0, "none")


@pytest.mark.parametrize(
    ("scheme", "parameters", "low", "high", "provenance"),
    [
        ("awq-int4-g128", 8.0e9, 0.05, 0.11, "published"),
        ("awq-int4-g128", 13e9, 0.01, 0.09, "published"),
        ("gguf:q4_k_m", 8.0e9, 0.02, 0.025, "published"),
        ("gguf:q8_0", 8.0e9, 0.0, 0.0005, "published"),
        ("fp8", 70e9, 0.005, 0.015, "interpolated"),
        ("gptq-int3-g128", 8.0e9, 0.2, 0.5, "assumed"),
    ],
)
def test_a_rise_is_that_of_models_of_its_size(
    scheme: str, parameters: float, low: float, high: float, provenance: str
) -> None:
    found = quality_of(scheme, None, int(parameters))
    assert low <= found.perplexity_increase <= high
    assert found.provenance == provenance
    assert found.source


def test_a_quantized_cache_adds_to_the_rise_of_the_weights() -> None:
    plain, cached = (quality_of("fp8", kv, 8_000_000_000).perplexity_increase for kv in (None, "fp8_e4m3"))
    assert cached > plain


@pytest.mark.parametrize(
    ("scheme", "bits"), [("none", 16), ("fp8", 8), ("gptq-int3-g64", 3), ("gguf:iq2_m", 2), ("nvfp4", 4)]
)
def test_the_width_of_a_scheme_is_what_precision_names(scheme: str, bits: int) -> None:
    assert scheme_bits(scheme) == bits
