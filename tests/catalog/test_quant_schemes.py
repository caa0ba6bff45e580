"""The names of `--quant`."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.budget.storage import bits_per_weight
from memplan.catalog.quant_schemes import parse_scheme, scheme_names
from memplan.domain.tensors import Role
from memplan.errors import UsageError
from memplan.introspect.ggml_types import FILE_TYPES


@pytest.mark.parametrize("name", scheme_names())
def test_every_listed_name_is_its_own(name: str) -> None:
    assert parse_scheme(name).name == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("AWQ", "awq-int4-g128"),
        ("gptq", "gptq-int4-g128"),
        ("gptq-int3-g32", "gptq-int3-g32"),
        ("gptq-int8", "gptq-int8-g128"),
        ("awq-int4-g64", "awq-int4-g64"),
        ("gptq-int4-channel", "gptq-int4-channel"),
        ("fp8_per_block", "fp8-block"),
        ("W4A16", "ct-int4-g128"),
        ("nf4", "bnb-nf4"),
        ("bf16", "none"),
        ("mlx-4bit", "mlx-int4-g64"),
        ("Q4_K_M", "gguf:q4_k_m"),
        ("gguf:IQ3_XXS", "gguf:iq3_xxs"),
        ("mxfp4", "mxfp4"),
        ("gguf:mxfp4", "gguf:mxfp4"),
    ],
)
def test_a_name_is_read_whatever_its_spelling(text: str, name: str) -> None:
    assert parse_scheme(text).name == name


@pytest.mark.parametrize("mix", sorted(set(FILE_TYPES.values())))
def test_every_file_type_of_gguf_is_a_scheme(mix: str) -> None:
    assert parse_scheme(f"gguf:{mix}").variant == mix


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("fp9", "did you mean fp8"),
        ("awq-int4-128", "did you mean awq-int4-g128"),
        ("awq-int3-g128", "widths are 4, 8"),
        ("gptq-int4-g7", "common groups"),
        ("gptq-int4-g0", "common groups"),
        ("mlx-int4-channel", "use mlx-int4-g64"),
        ("gguf:q4_k_x", "did you mean q4_k"),
        ("int4", "gptq-int4-g128"),
        ("", "one of none"),
    ],
)
def test_an_unknown_name_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_scheme(text)
    assert hint in (caught.value.hint or "")
    assert "\n" not in caught.value.message


@given(st.text(max_size=30))
def test_no_text_breaks_the_parser(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_scheme(text).name


@pytest.mark.parametrize("name", [name for name in scheme_names() if name != "none"])
def test_a_scheme_is_smaller_than_16_bit_and_its_storage_carries_a_known_name(name: str) -> None:
    scheme = parse_scheme(name)
    assert scheme.linear is not None
    assert parse_scheme(scheme.linear.scheme).linear == scheme.linear
    assert scheme.linear.bits <= bits_per_weight((4096, 4096), scheme.linear) < 9


@pytest.mark.parametrize("name", [name for name in scheme_names() if not name.startswith(("none", "mlx"))])
def test_head_embeddings_norms_and_routers_stay_plain(name: str) -> None:
    roles = parse_scheme(name).roles
    assert roles.isdisjoint({Role.LM_HEAD, Role.EMBEDDING, Role.POSITION, Role.NORM, Role.ROUTER})
    assert {Role.ATTENTION, Role.MLP, Role.EXPERT} <= roles


def test_bitsandbytes_takes_towers_and_int4_tools_do_not() -> None:
    assert parse_scheme("bnb-nf4").towers
    assert not any(parse_scheme(name).towers for name in ("awq", "gptq", "fp8", "nvfp4", "mlx-4bit"))


def test_a_matrix_fits_when_its_axes_are_whole_groups_and_words() -> None:
    gptq = parse_scheme("gptq-int4-g128")
    assert gptq.divides((64, 256))
    assert not gptq.divides((64, 200))
    assert not gptq.divides((60, 256))
    assert not gptq.divides((256,))
