"""Formats: what is packed comes back bit for bit, and other readers see the same weights."""

from __future__ import annotations

import pytest
import torch

from memplan.errors import UsageError
from memplan.quantize.formats import FORMATS, Layout, format_named
from memplan.quantize.formats.words import pack_words, unpack_words
from memplan.quantize.grid import Grid, Quantized, round_to_nearest
from memplan.quantize.methods import METHODS


def quantized(bits: int, group_size: int, symmetric: bool, dtype: torch.dtype = torch.float16) -> Quantized:
    weight_OI = torch.randn((64, 96), generator=torch.Generator().manual_seed(bits))
    grid = Grid(bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=dtype)
    return round_to_nearest(weight_OI, grid)


def layout(bits: int, group_size: int, symmetric: bool, method: str = "gptq") -> Layout:
    return Layout(method=METHODS[method], bits=bits, group_size=group_size, symmetric=symmetric, damping=0.01)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("dim", [0, 1])
def test_words_give_their_codes_back(bits: int, dim: int) -> None:
    code = torch.randint(0, 1 << bits, (32, 64), generator=torch.Generator().manual_seed(0))
    packed = pack_words(code, bits, dim=dim)
    assert packed.shape[dim] * 32 == code.shape[dim] * bits
    assert torch.equal(unpack_words(packed, bits, dim=dim), code)


def test_the_first_code_lies_in_the_low_bits() -> None:
    assert pack_words(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]]), 4, dim=1).item() == -0x789ABCDF
    assert pack_words(torch.arange(32).remainder(8)[None], 3, dim=1)[0, 0].item() & 0xFFF == 0o3210


@pytest.mark.parametrize(
    ("name", "bits", "group_size", "symmetric"),
    [
        *(
            ("compressed-tensors", bits, group, symmetric)
            for bits in range(2, 9)
            for group, symmetric in ((32, True), (0, False))
        ),
        *(
            ("gptq", bits, group, symmetric)
            for bits in (2, 3, 4, 8)
            for group, symmetric in ((32, True), (32, False), (0, True))
        ),
        ("awq", 4, 32, False),
        ("awq", 4, 96, True),
    ],
)
def test_a_format_gives_the_weights_back_bit_for_bit(name: str, bits: int, group_size: int, symmetric: bool) -> None:
    found, known = quantized(bits, group_size, symmetric), format_named(name)
    shape = layout(bits, group_size, symmetric)
    known.check(shape)
    assert torch.equal(known.unpack(known.pack(found), shape), found.dequantize())


def test_rows_of_int8_are_stored_as_they_are() -> None:
    grid = Grid(bits=8, scale_dtype=torch.bfloat16, activation_bits=8)
    found = round_to_nearest(torch.randn((16, 32), generator=torch.Generator().manual_seed(0)), grid)
    tensors = format_named("compressed-tensors").pack(found)
    assert tensors["weight"].dtype == torch.int8
    assert tensors["weight_scale"].shape == (16, 1)
    unpacked_OI = format_named("compressed-tensors").unpack(tensors, layout(8, 0, True, "int8"))
    assert torch.equal(unpacked_OI, found.dequantize())


@pytest.mark.parametrize(("group_size", "symmetric"), [(32, True), (32, False)])
def test_the_library_reads_packed_weights_as_we_do(group_size: int, symmetric: bool) -> None:
    base = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base")
    from compressed_tensors.quantization import QuantizationScheme

    found = quantized(4, group_size, symmetric, torch.float32)
    known = format_named("compressed-tensors")
    group = known.quantization_config(layout(4, group_size, symmetric))["config_groups"]["group_0"]
    scheme = QuantizationScheme(targets=group["targets"], weights=group["weights"])
    read = base.PackedQuantizationCompressor.decompress(dict(known.pack(found)), scheme)
    assert torch.equal(read["weight"].float(), found.dequantize())


def test_awq_packs_eight_out_features_in_the_order_that_its_kernel_reads() -> None:
    grid = Grid(bits=4, group_size=8, symmetric=False)
    code_OI = torch.arange(8, dtype=torch.uint8)[:, None].expand(8, 8).contiguous()
    found = round_to_nearest(torch.randn((8, 8), generator=torch.Generator().manual_seed(0)), grid)
    packed = format_named("awq").pack(Quantized(code_OI, found.scales, grid))["qweight"]
    assert packed[0, 0].item() == 0x75316420


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("awq", layout(8, 128, True), "4 bits"),
        ("awq", layout(4, 0, True), "groups"),
        ("gptq", layout(5, 128, True), "5 bits"),
        ("gptq", layout(8, 0, True, "int8"), "weights alone"),
        ("compressed-tensors", layout(4, 0, True, "int8"), "8 bits"),
    ],
)
def test_what_no_reader_takes_is_refused(name: str, shape: Layout, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        format_named(name).check(shape)


def test_every_format_of_the_table_is_there_and_an_unknown_one_is_told() -> None:
    for name in FORMATS:
        assert format_named(name).pack
    with pytest.raises(UsageError, match="unknown format"):
        format_named("gguf2")
