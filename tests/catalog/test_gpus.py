"""The GPU catalogue: names resolve as people and drivers write them, and its figures are plausible and sourced."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from memplan.catalog import gpus
from memplan.catalog.gpus import GPUS_FILE, find_gpu, list_gpus, search_gpus
from memplan.catalog.slices import read_slices
from memplan.catalog.tables import parse_yaml
from memplan.errors import UsageError
from memplan.units import GIB, MIB

ALL = list_gpus()
ROOT = Path(__file__).resolve().parents[2]

# Names as `nvidia-smi -L`, rocm-smi or Metal print them, and what they must mean.
DRIVER_NAMES = {
    "NVIDIA A100-SXM4-80GB": "a100-80g",
    "NVIDIA A100-SXM4-40GB": "a100-40g",
    "NVIDIA A100-PCIE-40GB": "a100-pcie-40g",
    "NVIDIA A100 80GB PCIe": "a100-pcie-80g",
    "NVIDIA A800-SXM4-80GB": "a800-80g",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H200": "h200",
    "NVIDIA H20": "h20",
    "NVIDIA GH200 480GB": "gh200-96g",
    "NVIDIA B200": "b200",
    "NVIDIA GB200": "gb200",
    "NVIDIA GB10": "gb10",
    "NVIDIA L40S": "l40s",
    "NVIDIA L4": "l4",
    "NVIDIA A10G": "a10g",
    "NVIDIA A10": "a10",
    "Tesla T4": "t4",
    "Tesla V100-SXM2-32GB": "v100-32g",
    "Tesla P100-PCIE-16GB": "p100-16g",
    "NVIDIA RTX A6000": "rtx-a6000",
    "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada",
    "Quadro RTX 6000": "quadro-rtx-6000",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx-pro-6000",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 4090 D": "rtx-4090-d",
    "NVIDIA GeForce RTX 4090 Laptop GPU": "rtx-4090-laptop",
    "NVIDIA GeForce RTX 4070 Ti SUPER": "rtx-4070-ti-super",
    "NVIDIA GeForce RTX 2080 Ti": "rtx-2080-ti",
    "NVIDIA TITAN RTX": "titan-rtx",
    "NVIDIA A100-SXM4-80GB MIG 3g.40gb": "a100-80g:3g.40gb",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": "h100:1g.10gb",
    "AMD Instinct MI300X": "mi300x",
    "AMD Radeon RX 7900 XTX": "rx-7900-xtx",
    "AMD Radeon AI PRO R9700": "r9700",
    "Intel(R) Data Center GPU Max 1550": "max-1550",
    "Intel(R) Arc(TM) A770 Graphics": "arc-a770",
    "Apple M4 Max": "m4-max",
}

# Names as people write them.
TYPED_NAMES = {
    "a100-80g": "a100-80g",
    "A100-80GB": "a100-80g",
    "H100 80G": "h100",
    "h100-80gb": "h100",
    "rtx 4090": "rtx-4090",
    "RTX4090": "rtx-4090",
    "4090": "rtx-4090",
    "5070ti": "rtx-5070-ti",
    "RTX 5090 Laptop 24 GB": "rtx-5090-laptop",
    "L40S-48GB": "l40s",
    "TITAN RTX 24GB": "titan-rtx",
    "T4 (14.56GiB)": "t4",
    "MI300X-192GB": "mi300x",
    "a6000": "rtx-a6000",
    "a100-80g:3g.40gb": "a100-80g:3g.40gb",
    "A100-80G:3G.40GB": "a100-80g:3g.40gb",
    "m4-max:64g": "m4-max:64g",
    "Apple M4 Max 64GB": "m4-max:64g",
    **{key: key for key in ("l40s", "rtx-3090", "r9700", "h20", "h800", "l20", "v100-32g", "t4", "a10g", "a100-40g")},
    **{key: key for key in ("rtx-5080", "h200", "h100", "rtx-5090", "b300", "gb300", "tpu-v5e", "gaudi3", "mi355x")},
}


@pytest.mark.parametrize(("name", "key"), [*DRIVER_NAMES.items(), *TYPED_NAMES.items()])
def test_a_name_means_the_device_it_should(name: str, key: str) -> None:
    assert find_gpu(name).name == key


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_every_device_is_found_by_all_its_own_names(spec: gpus.GpuSpec) -> None:
    for name in (spec.name, spec.name.upper(), *spec.aliases):
        assert find_gpu(name).name == spec.name
        assert find_gpu(name).resolved_note == ""


def test_no_two_names_are_the_same_when_read_loosely() -> None:
    slices = read_slices(GPUS_FILE, ignored=b"-_/")
    seen: dict[bytes, str] = {}
    for key, _, name in slices.names():
        assert name == gpus.plain_name(name), f"{name} is not written plainly"
        assert seen.setdefault(slices.fold(name), key) == key, f"{name} names {key} and {seen[slices.fold(name)]}"


def test_a_bare_name_takes_the_commonest_variant_and_says_so() -> None:
    spec = find_gpu("A100")
    assert spec.name == "a100-80g"
    assert "A100: taken as a100-80g" in spec.resolved_note
    assert "a100-40g" in spec.resolved_note


def test_the_whole_catalogue_covers_what_people_rent() -> None:
    assert len(ALL) >= 150
    assert {"nvidia", "amd", "intel", "apple", "google"} <= {spec.vendor for spec in ALL}


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_every_device_has_a_source_and_memory_below_what_it_is_sold_as(spec: gpus.GpuSpec) -> None:
    assert spec.source
    assert spec.title
    assert spec.nominal_memory_bytes is not None
    assert 0.65 * spec.nominal_memory_bytes <= spec.memory_bytes <= spec.nominal_memory_bytes
    assert spec.visible_low_bytes <= spec.memory_bytes <= spec.visible_high_bytes
    if spec.driver_memory_bytes:
        assert spec.memory_bytes <= spec.driver_memory_bytes
        assert spec.visible_high_bytes <= spec.driver_memory_bytes
    if spec.bandwidth_bytes_per_s:
        assert (1e10 if spec.vendor == "cpu" else 3e10) < spec.bandwidth_bytes_per_s < 3e13
    for dtype, rate in (spec.flops_per_s or {}).items():
        assert dtype in {"fp16", "bf16", "fp8", "int8", "fp4"}
        assert 1e11 < rate < 3e16


@pytest.mark.parametrize("spec", [spec for spec in ALL if spec.mig_profiles], ids=lambda spec: spec.name)
def test_every_mig_slice_is_a_smaller_device_of_its_own(spec: gpus.GpuSpec) -> None:
    for profile in spec.mig_profiles:
        part = find_gpu(f"{spec.name}:{profile}")
        assert part.name == f"{spec.name}:{profile}"
        assert part.memory_bytes <= spec.memory_bytes
        assert part.nominal_memory_bytes is not None
        assert 0.85 * part.nominal_memory_bytes < part.memory_bytes <= part.nominal_memory_bytes
        assert part.visible_low_bytes < part.memory_bytes < part.visible_high_bytes
        assert part.bandwidth_bytes_per_s is None or part.bandwidth_bytes_per_s <= (spec.bandwidth_bytes_per_s or 0)


def test_a_slice_has_its_fraction_of_the_rates() -> None:
    whole, part = find_gpu("a100-80g"), find_gpu("a100-80g:3g.40gb")
    assert part.memory_bytes == int(39.25 * GIB)
    assert part.bandwidth_bytes_per_s == pytest.approx((whole.bandwidth_bytes_per_s or 0) / 2)
    assert (part.flops_per_s or {})["bf16"] == pytest.approx((whole.flops_per_s or {})["bf16"] * 3 / 7)


def test_metal_gives_two_thirds_of_a_small_machine_and_three_quarters_of_a_large_one() -> None:
    assert find_gpu("m1:16g").memory_bytes == pytest.approx(11453.25e6, rel=1e-3)
    assert find_gpu("m4-max:128g").memory_bytes == 96 * GIB


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a100-80", "a100-80g"),
        ("rtx-4900", "rtx-4090"),
        ("h100-40g", "h100 has 80 GB"),
        ("h100:9g.1gb", "3g.40gb"),
        ("t4:1g.5gb", "cannot be divided"),
        ("qwertyuiop", "--gpu-memory"),
        ("", "--gpu-memory"),
        ("m4-max:33g", "64g"),
    ],
)
def test_an_unknown_name_is_refused_with_a_way_out(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        find_gpu(name)
    assert hint in (refused.value.hint or "")
    assert name in refused.value.message or ":" in name


def test_search_finds_devices_by_all_the_words_that_are_given() -> None:
    assert [spec.name for spec in search_gpus("hopper nvl")] == ["h100-nvl", "h200-nvl"]
    assert {"mi300x", "mi325x"} <= {spec.name for spec in search_gpus("amd cdna3")}
    assert search_gpus("no such thing") == ()


def test_every_slice_of_the_file_reads_as_in_the_whole_file() -> None:
    slices = read_slices(GPUS_FILE, ignored=b"-_/")
    whole = parse_yaml(GPUS_FILE.read_text(), "gpus.yaml")
    assert slices.entry_keys() == list(whole)
    for key, entry in whole.items():
        assert slices.entry(key) == entry


def test_the_rule_for_cards_never_seen_is_the_one_that_the_committed_fit_gives() -> None:
    path = ROOT / "benchmarks" / "catalogue" / "fit_visible_memory.py"
    spec = importlib.util.spec_from_file_location("fit_visible_memory", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fitted = module.fit()
    assert fitted["reserve_mib"] == gpus.RESERVE_MIB
    assert fitted["reserve_per_mib"] == pytest.approx(gpus.RESERVE_PER_MIB)
    assert fitted["slice_shares"] == {
        f"{eighths}/8": share for eighths, share in gpus.SLICE_SHARES.items() if eighths < 8
    }
    assert fitted["p90_error"] < 0.01


def test_a_derived_total_is_near_what_was_measured_on_a_known_card() -> None:
    assert gpus.derived_visible_mib(81559) * MIB == pytest.approx(find_gpu("h100").memory_bytes, rel=0.003)
