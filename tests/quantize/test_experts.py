"""Experts one by one: their names in files, the tokens they are measured on, and scalings moved through routers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_families import save_family
from small_models import windows
from test_families import quantized, stored

from memplan.errors import UsageError
from memplan.quantize.anatomy import inspect_block, move_scaling
from memplan.quantize.calls import Surroundings
from memplan.quantize.experts import filled_up, pools
from memplan.quantize.linears import weight_of
from memplan.quantize.pipeline import Quantization
from memplan.quantize.request import quantize_request
from memplan.quantize.result import notes_on_experts
from memplan.quantize.skeleton import Skeleton
from memplan.quantize.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Mixtral, whose checkpoint calls its experts' layers w1, w2 and w3."""
    return save_family("mixtral", tmp_path_factory.mktemp("mixtral") / "model")


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DeepSeek-V3 whose router never chooses the first expert."""
    from safetensors.torch import save_file

    folder = save_family("deepseek_v3", tmp_path_factory.mktemp("lopsided") / "model")
    tensors = stored(folder)
    (bias,) = (name for name in tensors if name.endswith("e_score_correction_bias"))
    tensors[bias][0] = -10.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def blocks_of(source: Path, output: Path, method: str, **settings: object) -> list[dict[str, object]]:
    """What a quantization says of its blocks."""
    request = quantize_request(method, group_size=32, **settings)  # type: ignore[arg-type]
    work = Quantization(request, source, windows())
    workspace = Workspace(output, work.identity())
    workspace.open(resume=False, force=False)
    work.run(workspace)
    return list(workspace.blocks)


def test_experts_are_written_under_the_names_of_the_checkpoint(mixtral: Path, tmp_path: Path) -> None:
    before = stored(mixtral)
    quantized(mixtral, tmp_path / "out", "gptq")
    after = stored(tmp_path / "out")
    experts = [name for name in before if ".experts." in name]
    assert len(experts) == 2 * 4 * 3
    assert all(f"{name}_packed" in after and name not in after for name in experts)
    routers = [name for name in before if name.endswith("gate.weight")]
    assert len(routers) == 2
    assert all(torch.equal(before[name], after[name]) for name in routers)
    kept = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert {name.removesuffix(".weight") for name in routers} <= set(kept)


def test_experts_of_one_tensor_are_written_one_by_one_and_so_are_those_that_stay(tmp_path: Path) -> None:
    source = save_family("granitemoe", tmp_path / "model")
    before = stored(source)
    work = quantized(source, tmp_path / "out", "rtn", keeps=("*.experts.0",))
    after = stored(tmp_path / "out")
    fused = [name for name in before if "input_linear" in name or "output_linear" in name]
    assert len(fused) == 4
    assert not set(fused) & set(after)
    place = "model.layers.0.block_sparse_moe.experts"
    up_OI = before["model.layers.0.block_sparse_moe.input_linear.weight"][0, 32:]
    assert torch.equal(after[f"{place}.0.up_proj.weight"], up_OI)
    assert f"{place}.1.up_proj.weight_packed" in after
    assert f"{place}.0.up_proj" in work.kept


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "llama4", "gpt_oss", "qwen3_next", "deepseek_v3"])
def test_a_scaling_moved_through_a_router_and_all_experts_changes_nothing(name: str, tmp_path: Path) -> None:
    skeleton = Skeleton(save_family(name, tmp_path / "model"))
    skeleton.load_outside_blocks()
    hidden_BNH, calls = Surroundings(skeleton).calls(windows(1, 1, 32)[0])
    block, call = skeleton.load(skeleton.blocks[-1]), calls[-1].as_float()
    anatomy = inspect_block(block, lambda trial: call.run(trial, hidden_BNH.float()), head_dim=skeleton.head_dim(block))
    (pool,) = anatomy.pools
    block.float()
    sites = [site for site in anatomy.sites if set(site.consumers) >= set(pool.layers(1)[:-1])]
    assert len(sites) == 1
    assert any("gate" in name or "router" in name for name in sites[0].consumers if ".experts." not in name)
    sites += [site for expert in range(pool.num_experts) if (site := pool.site_of(expert)) is not None]
    with torch.no_grad():
        before_BNH = call.run(block, hidden_BNH.float())
        for number, site in enumerate(sites):
            num_in = weight_of(block.get_submodule(site.consumers[0])).shape[1]
            move_scaling(block, site, torch.rand(num_in, generator=torch.Generator().manual_seed(number)) + 0.5)
        after_BNH = call.run(block, hidden_BNH.float())
    assert torch.allclose(before_BNH, after_BNH, atol=2e-4 * float(before_BNH.abs().max()))


def test_experts_that_no_reader_takes_apart_stay_and_are_named(tmp_path: Path) -> None:
    source = save_family("gpt_oss", tmp_path / "model")
    before = stored(source)
    work = quantized(source, tmp_path / "out", "awq")
    after = stored(tmp_path / "out")
    experts = [name for name in before if ".experts." in name]
    assert experts
    assert all(torch.equal(before[name], after[name]) for name in experts)
    assert "model.layers.0.self_attn.q_proj.weight_packed" in after
    assert work.notes() == (
        "model.layers.0.mlp.experts and 1 more: experts with biases stay in 16 bit, because vLLM and transformers "
        "read no such layers quantized",
    )


def test_a_norm_is_left_alone_where_experts_that_stay_read_it(tmp_path: Path) -> None:
    source = save_family("llama4", tmp_path / "model")
    before = stored(source)
    quantized(source, tmp_path / "out", "awq", keeps=("*.experts.*",))
    after = stored(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before if ".experts." in name)
    assert not any(".experts.0." in name for name in after)
    norm = "model.layers.0.post_attention_layernorm.weight"
    assert torch.equal(before[norm], after[norm])


def test_an_expert_that_no_token_goes_to_is_shown_others_and_counted(lopsided: Path, tmp_path: Path) -> None:
    _, block = blocks_of(lopsided, tmp_path / "out", "gptq")
    (counts,) = block["experts"].values()  # type: ignore[attr-defined]
    assert counts["experts"] == 8
    assert counts["without_tokens"] == 1
    assert counts["wanted_tokens"] == 64
    assert 1 <= counts["with_few_tokens"] < 8
    errors = {name: layer["relative_error"] for name, layer in block["layers"].items()}  # type: ignore[attr-defined]
    assert errors["mlp.experts.0.up_proj"] is not None
    assert notes_on_experts([block]) == (
        f"{counts['with_few_tokens']} of 8 experts had fewer than 64 tokens of their own, 1 none; "
        "they were shown other tokens as well",
    )


def test_without_a_minimum_such_an_expert_is_rounded_to_nearest(lopsided: Path, tmp_path: Path) -> None:
    _, block = blocks_of(lopsided, tmp_path / "out", "awq", min_expert_tokens=0)
    errors = {name: layer["relative_error"] for name, layer in block["layers"].items()}  # type: ignore[attr-defined]
    assert errors["mlp.experts.0.up_proj"] is None
    assert errors["mlp.experts.1.up_proj"] is not None
    assert notes_on_experts([block]) == ("1 of 8 experts had no tokens and were rounded to nearest",)
    with pytest.raises(UsageError, match="not a number of tokens of an expert: -1"):
        quantize_request("gptq", min_expert_tokens=-1)


@pytest.mark.parametrize("method", ["gptq", "awq", "awq+gptq"])
def test_experts_measured_one_by_one_come_out_as_those_measured_together(
    method: str, mixtral: Path, tmp_path: Path
) -> None:
    quantized(mixtral, tmp_path / "together", method)
    quantized(mixtral, tmp_path / "apart", method, pool_bytes=1)
    together, apart = stored(tmp_path / "together"), stored(tmp_path / "apart")
    assert together.keys() == apart.keys()
    assert all(torch.equal(together[name], apart[name]) for name in together)


def test_a_block_lets_go_of_what_watches_its_experts(mixtral: Path) -> None:
    skeleton = Skeleton(mixtral)
    block = skeleton.load(skeleton.blocks[0])
    assert [experts.watch for experts in pools(block).values()] == [None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_expert_multiplies_few_numbers_of_rows_in_16_bit_and_to_the_same_bits(
    dtype: torch.dtype, mixtral: Path
) -> None:
    skeleton = Skeleton(mixtral)
    skeleton.dtype = dtype
    (experts,) = pools(skeleton.load(skeleton.blocks[0])).values()
    read: list[torch.Tensor] = []
    for number in range(experts.num_fused):
        for name in (*experts.entries, "down_proj"):
            experts.expert(number).get_submodule(name).register_forward_pre_hook(lambda _, args: read.append(args[0]))
    generator = torch.Generator().manual_seed(0)
    for tokens in (1, 7, 90, 300):
        hidden_TH = torch.randn((tokens, skeleton.hidden_size), generator=generator).to(dtype)
        index_TK = torch.randint(experts.num_fused, (tokens, 1), generator=generator)
        read.clear()
        found_TH = experts(hidden_TH, index_TK, torch.ones((tokens, 1), dtype=dtype))
        assert read
        assert {each.shape[0] % 64 for each in read} == {0}
        for number in index_TK.unique().tolist():
            own_NH = hidden_TH[index_TK[:, 0] == number]
            expert = experts.expert(number)
            plain_NH = expert.get_submodule("down_proj")(experts.inner(expert, own_NH))
            assert torch.equal(found_TH[index_TK[:, 0] == number], plain_NH)


def test_in_float32_an_expert_reads_its_tokens_alone() -> None:
    assert filled_up(torch.zeros(7, 4)).shape == (7, 4)
