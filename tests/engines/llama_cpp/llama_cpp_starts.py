"""Starts of llama.cpp whose logs people published: what was set, and the buffers that were printed, in MiB.

`source` is the thread of the repository that the log is from. Layers are given by their number on GPUs, shares of
several GPUs by layers. `weights`, `compute`: of each GPU, then of the host. `cache`: over all devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One published start."""

    source: str
    model: str
    mix: str
    build: str
    gpu_layers: int
    context: int
    weights: tuple[float, ...]
    cache: float
    compute: tuple[float, ...]
    gpu: str = "h200"
    options: dict[str, object] = field(default_factory=dict)

    @property
    def num_gpus(self) -> int:
        return len(self.compute) - 1

    @property
    def name(self) -> str:
        return f"{self.model.split('/')[-1]}-{self.mix}-{self.build}"


STARTS = (
    Start(
        source="llama.cpp#8503",
        model="Qwen/Qwen2-7B-Instruct",
        mix="q8_0",
        build="b2874",
        gpu_layers=29,
        context=512,
        options={"batch_size": 32, "ubatch_size": 32},
        weights=(7165.44, 552.23),
        cache=28.0,
        compute=(19.0, 0.5),
    ),
    Start(
        source="llama.cpp#8503, nothing on the GPU, which multiplies large batches all the same",
        model="Qwen/Qwen2-7B-Instruct",
        mix="q8_0",
        build="b2874",
        gpu_layers=0,
        context=512,
        options={"batch_size": 32, "ubatch_size": 32},
        weights=(0.0, 7717.68),
        cache=28.0,
        compute=(571.23, 0.5),
    ),
    Start(
        source="llama.cpp#9628, experts copied for every batch",
        model="Qwen/Qwen2-57B-A14B-Instruct",
        mix="f16",
        build="b3808",
        gpu_layers=0,
        context=4096,
        weights=(0.0, 109511.4),
        cache=224.0,
        compute=(1349.38, 15.01),
    ),
    Start(
        source="llama.cpp#9013, windows cached in full",
        model="google/gemma-2-2b-it",
        mix="q4_k_m",
        build="b3578",
        gpu_layers=27,
        context=8192,
        options={"batch_size": 512},
        weights=(1623.7, 461.43),
        cache=832.0,
        compute=(504.5, 36.51),
    ),
    Start(
        source="llama.cpp#12946, cache kept in host memory",
        model="zai-org/GLM-4-9B-0414",
        mix="q5_k_m",
        build="b5121",
        gpu_layers=41,
        context=32000,
        options={"no_kv_offload": True},
        weights=(6308.38, 407.0),
        cache=1250.0,
        compute=(312.0, 2071.51),
    ),
    Start(
        source="llama.cpp#8117, two GPUs as a pipeline",
        model="meta-llama/Meta-Llama-3-70B-Instruct",
        mix="q4_k_m",
        build="b3216",
        gpu_layers=81,
        context=8192,
        options={"tensor_split": "41,40"},
        weights=(20038.81, 19940.67, 563.62),
        cache=2560.0,
        compute=(1216.01, 1216.02, 80.02),
    ),
    Start(
        source="llama.cpp#14663",
        model="Qwen/Qwen2.5-VL-32B-Instruct",
        mix="bf16",
        build="b5884",
        gpu_layers=65,
        context=4096,
        weights=(61009.27, 1485.0),
        cache=1024.0,
        compute=(368.01, 18.01),
    ),
    Start(
        source="llama.cpp#11105, an encoder, which still had a cache",
        model="BAAI/bge-reranker-v2-m3",
        mix="q8_0",
        build="b4443",
        gpu_layers=0,
        context=4096,
        weights=(0.0, 599.7),
        cache=384.0,
        compute=(26.07, 5.01),
    ),
    Start(
        source="llama.cpp#14097, two slots, window layers of their own size, cache in 8 bit",
        model="google/gemma-3-27b-it",
        mix="iq3_m",
        build="b5636",
        gpu_layers=63,
        context=32768,
        options={"parallel": 2, "flash_attention": True, "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        weights=(11959.34, 1102.5),
        cache=1912.5,
        compute=(522.5, 79.51),
    ),
    Start(
        source="llama.cpp#11200, flash attention over two GPUs",
        model="Qwen/Qwen2.5-32B",
        mix="q8_0",
        build="b4462",
        gpu_layers=65,
        context=32768,
        options={
            "batch_size": 512,
            "ubatch_size": 256,
            "flash_attention": True,
            "cache_type_k": "q8_0",
            "cache_type_v": "q8_0",
            "tensor_split": "41,24",
        },
        weights=(20259.29, 12153.89, 788.91),
        cache=4352.0,
        compute=(233.0, 237.51, 133.01),
    ),
    Start(
        source="llama.cpp#9949, a publisher's mix with a richer head",
        model="meta-llama/Llama-3.1-8B-Instruct",
        mix="q6_k_l",
        build="b3944",
        gpu_layers=33,
        context=131072,
        options={"flash_attention": True, "cache_type_k": "q4_0", "cache_type_v": "q4_0"},
        weights=(5993.34, 532.31),
        cache=4608.0,
        compute=(416.0, 264.01),
    ),
    Start(
        source="llama.cpp#8760, half of the layers on the host, rotary factors among them",
        model="meta-llama/Llama-3.1-70B-Instruct",
        mix="q4_k_m",
        build="b3488",
        gpu_layers=42,
        context=8224,
        weights=(20557.7, 19985.43),
        cache=2570.0,
        compute=(1140.25, 32.07),
    ),
    Start(
        source="llama.cpp#8490, logits capped, heads of 256",
        model="google/gemma-2-9b",
        mix="q4_k_m",
        build="b3392",
        gpu_layers=43,
        context=2048,
        options={"tensor_split": "22,21"},
        weights=(2484.45, 3003.94, 717.77),
        cache=672.0,
        compute=(154.01, 567.02, 39.02),
    ),
    Start(
        source="llama.cpp#9112, fused projections on a Mac",
        model="microsoft/Phi-3.5-mini-instruct",
        mix="q8_0",
        build="b3609",
        gpu_layers=33,
        context=131072,
        gpu="m3-ultra",
        weights=(3772.58, 99.81),
        cache=49152.0,
        compute=(8484.0, 262.01),
    ),
    Start(
        source="llama.cpp#12390, latents expanded",
        model="deepseek-ai/DeepSeek-V2-Lite",
        mix="q4_k_m",
        build="b4887",
        gpu_layers=28,
        context=4096,
        weights=(9767.98, 112.5),
        cache=1080.0,
        compute=(213.03, 12.01),
    ),
)
