"""Expert stacks padded to a kernel's tiles."""

from memplan.domain.serving import ParallelLayout
from memplan.engines.tiles import is_tiled, tiled_parts
from memplan.introspect.resolve import resolve_model

LAYER = resolve_model("openai/gpt-oss-20b", offline=True).layers[0]
UP, DOWN = (
    next(tensor for tensor in LAYER.tensors if tensor.name.endswith(name)) for name in ("gate_up_proj", "down_proj")
)


def weights_of(ranks: int, cut: int, whole: int, *, expert: bool = False) -> list[int]:
    layout = ParallelLayout(tensor=ranks, expert=expert)
    return [tiled_parts(tensor, layout, cut_tile=cut, whole_tile=whole)[0] for tensor in (UP, DOWN)]


def test_gpt_oss_experts_are_stacks_in_mxfp4() -> None:
    assert is_tiled(UP)
    assert is_tiled(DOWN)
    assert not any(is_tiled(tensor) for tensor in LAYER.tensors if "experts" not in tensor.name)


def test_without_padding_the_stack_has_its_own_size() -> None:
    assert weights_of(1, 1, 1) == [32 * 5760 * 2880 // 2, 32 * 2880 * 2880 // 2]


def test_both_axes_are_padded() -> None:
    assert weights_of(1, 128, 128) == [32 * 2 * 2944 * 2944 // 2, 32 * 2944 * 2944 // 2]


def test_what_is_cut_is_padded_on_every_rank() -> None:
    assert weights_of(4, 32, 1) == [32 * 2 * 736 * 2880 // 2, 32 * 736 * 2880 // 2]


def test_whole_experts_are_not_cut() -> None:
    assert weights_of(4, 256, 256, expert=True) == [8 * 2 * 3072 * 3072 // 2, 8 * 3072 * 3072 // 2]
