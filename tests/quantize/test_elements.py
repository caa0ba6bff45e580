"""Floats of a few bits: the nearest one is found, and files hold what the library that defines them would hold."""

from __future__ import annotations

import pytest
import torch

from memplan.quantize.elements import LARGEST, NF4, nearest, values
from memplan.quantize.formats import Layout, format_named
from memplan.quantize.gptq import gptq
from memplan.quantize.grid import Grid, Quantized, round_to_nearest
from memplan.quantize.methods import METHODS, Method

FLOATS = tuple(method for method in METHODS.values() if method.element in ("e4m3", "e2m1"))
named = pytest.mark.parametrize("method", FLOATS, ids=lambda method: method.name)


def grid_of(method: Method, **others: object) -> Grid:
    return Grid(
        bits=method.bits,
        group_size=method.group_size,
        element=method.element,
        rows_per_scale=method.rows_per_scale,
        scale_type=method.scale_type,
        **others,  # type: ignore[arg-type]
    )


def rounded(method: Method, *, num_out: int = 200, num_in: int = 256) -> tuple[torch.Tensor, Quantized]:
    weight_OI = torch.randn((num_out, num_in), generator=torch.Generator().manual_seed(0)) * 0.02
    found = round_to_nearest(weight_OI, grid_of(method))
    return weight_OI, Quantized(
        found.code_OI, found.scales, found.grid, input_scale=0.5 if method.activations == "tensor" else 0.0
    )


def layout(method: Method) -> Layout:
    return Layout(method=method, bits=method.bits, group_size=method.group_size, symmetric=True, damping=0.0)


@pytest.mark.parametrize("element", LARGEST)
def test_every_value_is_its_own_nearest_and_ends_hold_what_is_beyond(element: str) -> None:
    codes = torch.arange(256 if element == "e4m3" else 16, dtype=torch.uint8)
    there = values(codes, element)
    codes, there = codes[~there.isnan()], there[~there.isnan()]
    assert torch.equal(nearest(there, element), codes)
    assert values(nearest(torch.tensor([1e9, -1e9]), element), element).tolist() == [
        LARGEST[element],
        -LARGEST[element],
    ]


@pytest.mark.parametrize("element", LARGEST)
def test_no_other_value_is_nearer(element: str) -> None:
    value = torch.randn(4000, generator=torch.Generator().manual_seed(1)) * LARGEST[element] / 3
    value = value.clamp(-LARGEST[element], LARGEST[element])
    table = values(torch.arange(256 if element == "e4m3" else 16, dtype=torch.uint8), element)
    table = table[~table.isnan()]
    nearest_error = (value[:, None] - table).abs().amin(1)
    assert torch.allclose((values(nearest(value, element), element) - value).abs(), nearest_error, atol=1e-6)


def test_in_the_middle_the_even_code_wins() -> None:
    middle = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.75])
    assert values(nearest(middle, "e2m1"), "e2m1").tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, -1.0]
    assert len(NF4) == 16


@named
def test_a_float_format_gives_the_weights_back_bit_for_bit(method: Method) -> None:
    _, found = rounded(method)
    known = format_named("compressed-tensors")
    known.check(layout(method))
    tensors = known.pack(found)
    assert torch.equal(known.unpack(tensors, layout(method)), found.dequantize())
    assert known.shape({name: tuple(value.shape) for name, value in tensors.items()}, layout(method)) == (200, 256)


@named
def test_errors_are_those_of_the_bits_that_are_left(method: Method) -> None:
    weight_OI, found = rounded(method)
    error = float((found.dequantize() - weight_OI).norm() / weight_OI.norm())
    assert error < (0.03 if method.bits == 8 else 0.13)


@named
def test_the_library_reads_small_floats_as_we_do(method: Method) -> None:
    base = pytest.importorskip("compressed_tensors.compressors.base")
    from compressed_tensors.quantization import QuantizationScheme

    _, found = rounded(method, num_out=256)
    known = format_named("compressed-tensors")
    config = known.quantization_config(layout(method))
    group = config["config_groups"]["group_0"]
    scheme = QuantizationScheme(
        targets=group["targets"], weights=group["weights"], input_activations=group["input_activations"]
    )
    compressor = base.BaseCompressor.get_value_from_registry(config["format"])
    tensors = {name: value for name, value in known.pack(found).items() if name != "input_scale"}
    read = compressor.decompress(tensors, scheme)["weight"].float()
    want = found.dequantize()
    assert float((read - want).abs().max() / want.abs().max()) < 0.005  # the library multiplies in bfloat16


def test_layers_that_are_fused_share_the_scale_of_the_whole() -> None:
    small, large = torch.full((4, 32), 0.1), torch.full((4, 32), 0.4)
    grid = grid_of(METHODS["nvfp4"]).reaching(small, large)
    packed = [format_named("compressed-tensors").pack(round_to_nearest(each, grid)) for each in (small, large)]
    assert packed[0]["weight_global_scale"] == packed[1]["weight_global_scale"]


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4"])
@pytest.mark.parametrize("activation_order", [True, False])
def test_gptq_works_on_small_floats_too(name: str, activation_order: bool) -> None:
    from memplan.quantize.awq import output_error
    from memplan.quantize.gptq import GptqSettings

    generator = torch.Generator().manual_seed(3)
    input_TI = torch.randn((400, 64), generator=generator) @ torch.randn((64, 64), generator=generator)
    hessian_II = input_TI.t() @ input_TI / 400
    weight_OI = torch.randn((48, 64), generator=generator)
    grid = grid_of(METHODS[name], searches_range=True)
    plain = round_to_nearest(weight_OI, grid)
    found = gptq(weight_OI, hessian_II.clone(), grid, GptqSettings(activation_order=activation_order))
    error = output_error(found.dequantize() - weight_OI, hessian_II)
    assert error < 0.65 * output_error(plain.dequantize() - weight_OI, hessian_II)
    assert found.loss == pytest.approx(error, rel=0.05)


@named
def test_a_matrix_of_nothing_stays_nothing(method: Method) -> None:
    found = round_to_nearest(torch.zeros((128, 256)), grid_of(method))
    assert not bool(found.dequantize().any())
    known = format_named("compressed-tensors")
    assert not bool(known.unpack(known.pack(found), layout(method)).any())
