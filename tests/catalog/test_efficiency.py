"""efficiency.yaml: what engines reach of GPUs stays within what a machine can do, and says what stands behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from memplan.catalog.efficiency import efficiency_for, gpu_class
from memplan.catalog.gpus import find_gpu, list_gpus
from memplan.catalog.tables import load_table
from memplan.records import replace

TABLE = load_table(Path("efficiency.yaml"))
ENGINES = ("vllm", "sglang", "tensorrt-llm", "llama.cpp", "transformers", "tgi")


@pytest.mark.parametrize("engine", ENGINES)
def test_no_engine_passes_the_sheet_of_any_card(engine: str) -> None:
    for gpu in list_gpus():
        found = efficiency_for(engine, gpu)
        most = 1.6 if "GeForce" in gpu.title and engine == "llama.cpp" else 0.8
        assert 0.02 < found.compute_fraction <= most
        assert 0.2 < found.bandwidth_fraction <= 0.95
        assert 0 <= found.step_overhead_s < 0.01
        assert 0 <= found.layer_overhead_s < 1e-4


def test_an_engine_without_measurements_takes_the_default_and_says_that_it_is_assumed() -> None:
    found = efficiency_for("tgi", find_gpu("h100"))
    assert found.compute_fraction == TABLE["default"]["compute"]
    assert found.provenance == "assumed"
    assert efficiency_for("vllm", find_gpu("h100")).provenance == "modelled"


def test_a_class_without_measurements_takes_no_factor_and_says_so() -> None:
    found = efficiency_for("vllm", find_gpu("p40"))
    assert found.bandwidth_fraction == TABLE["engines"]["vllm"]["bandwidth"]
    assert found.provenance == "assumed"


def test_ampere_with_hbm_is_a_class_of_its_own() -> None:
    assert gpu_class(find_gpu("a100-80g")) == "ampere-hbm"
    assert gpu_class(find_gpu("rtx-3090")) == "ampere"
    assert gpu_class(find_gpu("mi355x")) == gpu_class(find_gpu("mi300x")) == "cdna3"


def test_fp16_sums_double_the_rate_of_geforce_cards_only() -> None:
    geforce = replace(find_gpu("rtx-4090"), power_watts=None)
    same_chip = replace(geforce, title="NVIDIA RTX 6000 Ada Generation")
    doubled, plain = (efficiency_for("llama.cpp", gpu).compute_fraction for gpu in (geforce, same_chip))
    assert doubled == 2 * plain
    assert len({efficiency_for("vllm", gpu).compute_fraction for gpu in (geforce, same_chip)}) == 1


def test_llama_cpp_loses_compute_where_board_power_is_low_for_the_tensor_rate() -> None:
    card = find_gpu("h100-pcie")
    strong = replace(card, power_watts=2000.0)
    fractions = [efficiency_for("llama.cpp", gpu).compute_fraction for gpu in (card, strong)]
    assert fractions[0] < 0.6 * fractions[1]
    assert len({efficiency_for("vllm", gpu).compute_fraction for gpu in (card, strong)}) == 1


def test_only_llama_cpp_computes_on_the_host() -> None:
    assert [name for name in ENGINES if efficiency_for(name, find_gpu("h100")).computes_on_host] == ["llama.cpp"]
