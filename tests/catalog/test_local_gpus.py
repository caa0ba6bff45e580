"""The local driver is asked as a real child process: executable scripts on PATH stand in for the vendors' programs."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from memplan.catalog.local_gpus import read_local_gpus
from memplan.errors import MissingExtra
from memplan.units import GIB, MIB

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pynvml") is not None or os.name != "posix", reason="NVML would answer before the scripts"
)


@pytest.fixture
def path_of_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def write_script(folder: Path, name: str, body: str) -> None:
    script = folder / name
    script.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    script.chmod(0o755)


def test_nvidia_smi_gives_name_total_free_and_what_the_driver_keeps(path_of_scripts: Path) -> None:
    write_script(
        path_of_scripts,
        "nvidia-smi",
        "assert '--format=csv,noheader,nounits' in sys.argv\n"
        "print('NVIDIA H100 80GB HBM3, 81559, 80991, 478')\n"
        "print('NVIDIA L4, 23034, 12000, 471')",
    )
    first, second = read_local_gpus()
    assert first.name == "NVIDIA H100 80GB HBM3"
    assert first.total_bytes == 81081 * MIB
    assert first.free_bytes == 80991 * MIB
    assert second.driver_memory_bytes == 23034 * MIB


def test_a_driver_that_does_not_know_the_reserve_is_asked_again_without_it(path_of_scripts: Path) -> None:
    write_script(
        path_of_scripts,
        "nvidia-smi",
        "if 'memory.reserved' in ' '.join(sys.argv):\n    sys.exit(2)\nprint('Tesla T4, 15360, 15000')",
    )
    (gpu,) = read_local_gpus()
    assert gpu.reserved_bytes is None
    assert gpu.total_bytes == pytest.approx(14.56 * GIB, rel=0.01)


def test_a_device_that_does_not_tell_its_memory_is_left_out(path_of_scripts: Path) -> None:
    write_script(
        path_of_scripts, "nvidia-smi", "print('NVIDIA GB10, [N/A], [N/A], [N/A]')\nprint('Tesla T4, 15360, 1, 2')"
    )
    assert [gpu.name for gpu in read_local_gpus()] == ["Tesla T4"]


def test_amd_smi_gives_the_market_name_and_mebibytes(path_of_scripts: Path) -> None:
    write_script(
        path_of_scripts,
        "amd-smi",
        "import json\n"
        "static = [{'gpu': 0, 'asic': {'market_name': 'AMD Instinct MI300X'}}]\n"
        "usage = {'gpu_data': [{'gpu': 0, 'mem_usage': {'total_vram': {'value': 196592, 'unit': 'MB'},"
        " 'free_vram': {'value': 196300, 'unit': 'MB'}}}]}\n"
        "print(json.dumps(static if sys.argv[1] == 'static' else usage))",
    )
    (gpu,) = read_local_gpus()
    assert gpu.name == "AMD Instinct MI300X"
    assert gpu.total_bytes == 196592 * MIB
    assert gpu.free_bytes == 196300 * MIB


def test_rocm_smi_gives_bytes(path_of_scripts: Path) -> None:
    write_script(
        path_of_scripts,
        "rocm-smi",
        "import json\n"
        "card = {'VRAM Total Memory (B)': '25753026560', 'VRAM Total Used Memory (B)': '1000000000',"
        " 'Card Series': 'AMD Radeon RX 7900 XTX'}\n"
        "print(json.dumps({'card0': card, 'system': {}}))",
    )
    (gpu,) = read_local_gpus()
    assert gpu.name == "AMD Radeon RX 7900 XTX"
    assert gpu.total_bytes == 25753026560
    assert gpu.free_bytes == 24753026560


@pytest.mark.parametrize("body", ["sys.exit(9)", "print('No devices were found')", "print('\\xff')", "print('{')"])
def test_a_driver_without_gpus_and_no_driver_at_all_are_told_in_one_line(path_of_scripts: Path, body: str) -> None:
    for program in ("nvidia-smi", "amd-smi", "rocm-smi"):
        write_script(path_of_scripts, program, body)
    with pytest.raises(MissingExtra, match="no GPU found") as refused:
        read_local_gpus()
    assert refused.value.exit_code == 5
    assert "--gpu a100-80g" in (refused.value.hint or "")


def test_an_empty_path_has_no_gpu(path_of_scripts: Path) -> None:
    with pytest.raises(MissingExtra):
        read_local_gpus()
