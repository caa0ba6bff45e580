"""What kernels of a GPU take and make, by shapes, where it can be counted by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from memplan.profile.kernels import Attention, simulated_kernels  # noqa: E402
from memplan.profile.recorder import Recorder  # noqa: E402
from memplan.profile.workspaces import cublas_workspace_bytes, insides  # noqa: E402

BATCH, HEADS, TOKENS, WIDTH = 2, 8, 512, 64


def _tensors(heads: int = HEADS, dtype: torch.dtype = torch.bfloat16, **options: bool) -> list[torch.Tensor]:
    query = torch.empty(BATCH, HEADS, TOKENS, WIDTH, dtype=dtype, device="meta", **options)
    return [query, *(torch.empty(BATCH, heads, TOKENS, WIDTH, dtype=dtype, device="meta") for _ in range(2))]


def _largest_bytes(kernel: str, *tensors: torch.Tensor, capability: tuple[int, int] = (8, 0), **options: object) -> int:
    attend = Attention("cuda", kernel, capability)  # type: ignore[arg-type]
    with Recorder("meta") as recorder:
        recorder.begin("forward")
        attend(*tensors, **options)  # type: ignore[arg-type]
    return max(recorder.log.sizes)


OUTPUT_BYTES = BATCH * HEADS * TOKENS * WIDTH * 2
SCORES_BYTES = BATCH * HEADS * TOKENS * TOKENS * 2


def test_a_fused_kernel_makes_no_scores() -> None:
    assert _largest_bytes("auto", *_tensors(), is_causal=True) == OUTPUT_BYTES
    assert _largest_bytes("math", *_tensors(), is_causal=True) >= SCORES_BYTES


def test_shared_key_heads_are_expanded_only_where_the_kernel_wants_it() -> None:
    shared = _tensors(heads=2)
    assert _largest_bytes("auto", *shared, is_causal=True, enable_gqa=True) == OUTPUT_BYTES
    assert _largest_bytes("auto", *shared, is_causal=True, enable_gqa=True, capability=(7, 5)) >= SCORES_BYTES


def test_a_mask_of_truths_becomes_one_of_numbers() -> None:
    mask = torch.ones(BATCH, 1, TOKENS, TOKENS, dtype=torch.bool, device="meta")
    assert _largest_bytes("auto", *_tensors(), attn_mask=mask) == BATCH * TOKENS * TOKENS * 2


def test_types_that_flash_does_not_take_go_to_the_efficient_kernel() -> None:
    assert _largest_bytes("auto", *_tensors(dtype=torch.float32)) == 2 * OUTPUT_BYTES


def test_torch_is_as_it_was_afterwards() -> None:
    before = torch.nn.functional.scaled_dot_product_attention, torch.nn.functional.dropout, torch.tensor
    with simulated_kernels("cuda", "auto", (8, 0)):
        assert torch.nn.functional.scaled_dot_product_attention is not before[0]
    assert (torch.nn.functional.scaled_dot_product_attention, torch.nn.functional.dropout, torch.tensor) == before


def test_dropout_keeps_a_byte_for_each_element_on_a_gpu() -> None:
    hidden = torch.empty(1024, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with Recorder("meta") as recorder, simulated_kernels("cuda", "auto", (8, 0)):
        recorder.begin("forward")
        made = torch.nn.functional.dropout(hidden, 0.1, training=True)
    assert sorted(recorder.log.sizes) == [1024, 2048]
    del made


def test_a_backward_pass_through_flash_adds_up_in_fp32() -> None:
    query, key, value = _tensors(heads=2, requires_grad=True)
    with Recorder("meta", inside=insides("cuda")) as recorder:
        recorder.begin("forward")
        out = Attention("cuda", "auto", (8, 0))(query, key, value, is_causal=True, enable_gqa=True)
        recorder.begin("backward")
        out.sum().backward()
    log = recorder.log
    inside = [log.sizes[number] for number in range(len(log.sizes)) if log.category(number) == "workspace"]
    rows_bytes, sum_bytes = BATCH * HEADS * TOKENS * 4, BATCH * HEADS * TOKENS * WIDTH * 4
    assert inside == [rows_bytes, sum_bytes, OUTPUT_BYTES, OUTPUT_BYTES]


def test_an_embedding_sums_rows_up_only_for_many_tokens() -> None:
    def spikes(tokens: int) -> list[int]:
        table = torch.nn.Embedding(1000, 64, device="meta", dtype=torch.bfloat16)
        with Recorder("meta", inside=insides("cuda")) as recorder:
            recorder.begin("forward")
            loss = table(torch.zeros(tokens, dtype=torch.long, device="meta")).sum()
            recorder.begin("backward")
            loss.backward()
        log = recorder.log
        return [log.sizes[number] for number in range(len(log.sizes)) if log.category(number) == "workspace"]

    assert spikes(3072) == []
    assert max(spikes(4000)) == (4000 // 10 + 1000) * 64 * 4


def test_cublas_takes_more_on_hopper() -> None:
    assert cublas_workspace_bytes((8, 0)) == 8_519_680
    assert cublas_workspace_bytes((9, 0)) == 32 << 20


def test_a_library_takes_its_workspace_once_and_keeps_it() -> None:
    product = torch.ops.aten.mm.default
    with Recorder("meta", kept={product: 1000, torch.ops.aten.bmm.default: 1000}) as recorder:
        recorder.begin("forward")
        left = torch.ones(4, 4, device="meta")
        left @ left
        left[None] @ left[None]
    assert sorted(recorder.log.sizes).count(1000) == 1
