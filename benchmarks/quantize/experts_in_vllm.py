"""Has the real vLLM read experts that were written one by one, and compares it with itself on the unpacked file.

    python benchmarks/quantize/experts_in_vllm.py --vllm PYTHON [--families mixtral,qwen3_moe] [--method gptq]

PYTHON is an interpreter with a CPU build of vLLM. For every family a small model with random weights is quantized, and
its file unpacked again into a plain one. vLLM runs both, and the log-probabilities of some prompts are compared. Its
kernels for quantized experts want AMX on x86, so they are not run: its loader puts the file's tensors in their places,
these are unpacked there, and its 16-bit kernel takes them. What is shown is that every tensor is found and in its
place, not what its quantized kernels compute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": 0,
}
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
# vLLM's latent attention on a CPU takes the widths of real models alone.
_LATENT = {
    **_ROUTED,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "topk_group": 1,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", {**_ROUTED, "num_experts": 4, "shared_expert_intermediate_size": 256}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_ROUTED, "num_experts": 8, "head_dim": 64}),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 128}),
    "deepseek_v2": (
        "DeepseekV2Config",
        {**_LATENT, "n_routed_experts": 4, "q_lora_rank": None, "n_group": 1, "topk_method": "greedy"},
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        {**_LATENT, "n_routed_experts": 8, "q_lora_rank": 64, "n_group": 2, "topk_method": "noaux_tc"},
    ),
    "granitemoe": ("GraniteMoeConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 128}),
    "llama4": (
        "Llama4TextConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 128, "intermediate_size_mlp": 256}
        | {"interleave_moe_layer_step": 1, "head_dim": 64},
    ),
}
_QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def main() -> int:
    """Print one line per family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", metavar="PYTHON")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--method", default="gptq", choices=("rtn", "gptq", "int8"))
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        print(json.dumps(log_probabilities(asked.run)))
        return 0
    print("| family | tensors of experts | mean difference | largest |")
    print("|---|---:|---:|---:|")
    failed = 0
    for family in asked.families.split(","):
        with tempfile.TemporaryDirectory() as folder:
            num_tensors = make(family, Path(folder), asked.method)
            found = [in_vllm(asked.vllm, Path(folder) / which) for which in ("quantized", "plain")]
        if None in found:
            failed += 1
            print(f"| {family} | {num_tensors} | did not run | |")
            continue
        apart = [abs(one - other) for one, other in zip(*found, strict=True)]  # type: ignore[arg-type]
        print(f"| {family} | {num_tensors} | {sum(apart) / len(apart):.4f} | {max(apart):.4f} |", flush=True)
    return 1 if failed else 0


def make(family: str, folder: Path, method: str) -> int:
    """Make a model, its quantized file and that one unpacked; return how many tensors of experts were written."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from memplan.quantize.output import accept, write_checkpoint
    from memplan.quantize.pipeline import Quantization
    from memplan.quantize.request import quantize_request
    from memplan.quantize.workspace import Workspace
    from memplan.quantize.written import WrittenCheckpoint

    transformers.logging.set_verbosity_error()
    name, settings = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**_SIZES, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for matrix in (value for value in model.parameters() if value.dim() > 1):
        torch.nn.init.normal_(matrix, 0, 0.08)
    model.save_pretrained(folder / "model")
    group = {} if method == "int8" else {"group_size": 32}
    work = Quantization(quantize_request(method, **group), folder / "model", list(tokens(96).split(8)))
    workspace = Workspace(folder / "quantized", work.identity())
    workspace.open(resume=False, force=False)
    work.run(workspace)
    accept(workspace, write_checkpoint(work, workspace), folder / "quantized")
    written = WrittenCheckpoint(folder / "quantized", work.layout, work.request.format)
    (folder / "plain").mkdir()
    plain = {name: written.read(name).to(torch.bfloat16).contiguous() for name in written.names()}
    save_file(plain, folder / "plain" / "model.safetensors", metadata={"format": "pt"})
    saved = json.loads((folder / "quantized" / "config.json").read_text())
    del saved["quantization_config"]
    (folder / "plain" / "config.json").write_text(json.dumps(saved))
    return sum(".experts." in name and name.endswith(("_packed", "_scale")) for name in written.shapes)


def tokens(count: int) -> Any:
    """Random windows."""
    import torch

    return torch.randint(0, _SIZES["vocab_size"], (count, 32), generator=torch.Generator().manual_seed(1))


def in_vllm(python: str, model: Path) -> list[float] | None:
    """The log-probabilities of some prompts' tokens in vLLM; None where it does not run."""
    command = [python, __file__, "--run", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_QUIET})
    if done.returncode:
        print("\n".join(line for line in done.stderr.splitlines() if "Error" in line)[-400:], file=sys.stderr)
        return None
    return list(json.loads(done.stdout.splitlines()[-1]))


def log_probabilities(model: Path) -> list[float]:
    """Run inside vLLM's interpreter."""
    stand_in()
    from vllm import LLM, SamplingParams

    page = 16 if "Deepseek" in (model / "config.json").read_text() else 32
    llm = LLM(
        str(model), skip_tokenizer_init=True, enforce_eager=True, dtype="bfloat16", max_model_len=128, block_size=page
    )
    prompts = [{"prompt_token_ids": window} for window in tokens(2).tolist()]
    settings = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, temperature=0.0)
    answers = llm.generate(prompts, settings, use_tqdm=False)
    return [
        said[token].logprob
        for prompt, answer in zip(prompts, answers, strict=True)
        for said, token in zip(answer.prompt_logprobs[1:], prompt["prompt_token_ids"][1:], strict=True)
    ]


def stand_in() -> None:
    """Let vLLM's 16-bit kernel take the experts that its loader has read."""
    import torch
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUExpertsInt4, CPUExpertsInt8
    from vllm.model_executor.layers.fused_moe.oracle.int8 import Int8MoeBackend
    from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
        compressed_tensors_moe_w8a8_int8 as int8,
    )
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
        compressed_tensors_moe_wna16 as packed,
    )

    def words(layer: Any, name: str) -> Any:
        word, scale = getattr(layer, f"{name}_weight_packed"), getattr(layer, f"{name}_weight_scale")
        code = (word[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
        code = code.flatten(-2).float() - 8
        return code * scale.float().repeat_interleave(code.shape[-1] // scale.shape[-1], -1)

    def bytes_(layer: Any, name: str) -> Any:
        return getattr(layer, f"{name}_weight").float() * getattr(layer, f"{name}_weight_scale").float()

    def unpacking(unpack: Any) -> Any:
        def process(self: Any, layer: Any) -> None:
            for name in ("w13", "w2"):
                weight = torch.nn.Parameter(unpack(layer, name).to(torch.bfloat16), requires_grad=False)
                layer.register_parameter(f"{name}_weight", weight)
            method = UnquantizedFusedMoEMethod(self.moe)
            layer._replace_quant_method(method)
            method.process_weights_after_loading(layer)

        return process

    packed.select_wna16_moe_backend = lambda *_, **__: (WNA16MoEBackend.CPU, CPUExpertsInt4)
    packed.CompressedTensorsWNA16MoEMethod.process_weights_after_loading = unpacking(words)
    int8.select_int8_moe_backend = lambda *_, **__: (Int8MoeBackend.CPU, CPUExpertsInt8)
    int8.CompressedTensorsW8A8Int8MoEMethod.process_weights_after_loading = unpacking(bytes_)


if __name__ == "__main__":
    sys.exit(main())
