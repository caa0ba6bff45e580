"""What ROCm's padding and masks take, told and untold, by release."""

from __future__ import annotations

import pytest
from vllm_start import DENSE, ROUTED, start

from memplan.engines.vllm.padding import Padding, rocm_padding
from memplan.units import GIB, MIB

VISION_ROUTED = "Qwen/Qwen3-VL-30B-A3B-Instruct"
LARGE_ROUTED = "Qwen/Qwen3-235B-A22B"
FUSED = "meta-llama/Llama-4-Maverick-17B-128E-Instruct"


def padding(version: str, gpu: str, name: str, scheme: str | None = None, tp: int = 1) -> Padding:
    at = start(version, gpu, name, scheme=scheme, tp=tp)
    return rocm_padding(at.spec.layers, at.gpu, at.settings, at.rules, aiter=False)


@pytest.mark.parametrize(
    ("version", "name", "tp", "printed_gib"),
    [
        ("0.13.0", VISION_ROUTED, 1, 79.29),
        ("0.11.2", LARGE_ROUTED, 4, 112.61),
        ("0.11.2", LARGE_ROUTED, 8, 56.65),
        ("0.11.2", FUSED, 8, 126.72),
        ("0.11.2", f"{FUSED}-FP8", 8, 50.27),
    ],
)
def test_weights_with_padded_experts_are_what_mi300x_printed(
    version: str, name: str, tp: int, printed_gib: float
) -> None:
    """Starts that others recorded, with AITER off."""
    weights = start(version, "mi300x", name, tp=tp).budget.group_bytes("weights")
    assert weights == pytest.approx(printed_gib * GIB, rel=0.01)


def test_down_lies_in_what_gate_and_up_have_left() -> None:
    """Both stacks of a layer take 1,152 MiB; padded, 816 MiB and one of the old 768 MiB with 448 in it."""
    layer, last_down = 816 + 768 - 1152, 384  # the last layer's old stack of down stays cached
    assert padding("0.13.0", "mi300x", VISION_ROUTED) == Padding(charged_bytes=(48 * layer + last_down) * MIB)


def test_aiters_order_reuses_the_pieces() -> None:
    """One padded stack of gate and up and one as loaded stay cached. A start that is likely to be one printed 59.84."""
    weights = {
        chosen: start("0.13.0", "mi300x", VISION_ROUTED, engine_options={"rocm_use_aiter": chosen}).budget
        for chosen in (False, True)
    }
    saved = weights[False].group_bytes("weights") - weights[True].group_bytes("weights")
    assert saved == (48 * (816 + 768 - 1152) + 384 - 816 - 768) * MIB
    assert weights[True].group_bytes("weights") == pytest.approx(59.84 * GIB, rel=0.01)


def test_rows_that_are_no_multiple_of_512_bytes_stay_as_they_are() -> None:
    """Of 1,536 channels on four ranks, 384 are left: only gate and up are padded, and the last old stack is cached."""
    rows = 128 * 2 * 384
    assert padding("0.11.2", "mi300x", LARGE_ROUTED, tp=4).charged_bytes == 94 * rows * 256 + rows * 4096 * 2


def test_later_releases_tell_only_what_torch_holds() -> None:
    before, after, copied = (padding(version, "mi300x", VISION_ROUTED) for version in ("0.20.2", "0.21.0", "0.30.0"))
    assert after.charged_bytes == 48 * (48 + 64) * MIB
    last_down = 384 * MIB  # cached, and returned before the size is told
    assert after.charged_bytes + after.uncharged_bytes == before.charged_bytes - last_down
    assert copied == Padding()


@pytest.mark.parametrize(
    ("version", "gpu", "name", "scheme"),
    [
        ("0.13.0", "h200", ROUTED, None),
        ("0.13.0", "mi300x", DENSE, None),
        ("0.13.0", "mi355x", ROUTED, "fp8"),
        ("0.8.1", "mi300x", ROUTED, None),
    ],
)
def test_nothing_else_is_padded(version: str, gpu: str, name: str, scheme: str | None) -> None:
    assert padding(version, gpu, name, scheme) == Padding()


def test_masks_of_fp8_matrices_stay_cached_on_mi300() -> None:
    """The largest matrix is gate and up, of 57,344 x 8,192: its mask's segment, and what the others took of it."""
    largest = 57344 * 8192
    found = padding("0.13.0", "mi300x", "meta-llama/Llama-3.3-70B-Instruct", "fp8").charged_bytes
    assert largest <= found < 1.3 * largest
    assert padding("0.21.0", "mi300x", "meta-llama/Llama-3.3-70B-Instruct", "fp8") == Padding()
