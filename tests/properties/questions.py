"""What the properties are tried on: models of every kind of cache, cards of every size, every engine.

A question is drawn by hypothesis from the catalogue's own names, so that a property is tried on what people ask.
"""

from __future__ import annotations

from functools import lru_cache

from hypothesis import reject
from hypothesis import strategies as st

from memplan.catalog.gpus import find_gpu
from memplan.catalog.quant_schemes import parse_scheme
from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.engines.registry import load_engine
from memplan.errors import MemplanError
from memplan.introspect.quantized import quantize_spec
from memplan.introspect.resolve import resolve_model
from memplan.records import dataclass, replace

# One of every kind: grouped, multi-head and multi-query attention, windows, chunks, latents, experts, recurrent layers,
# shared caches, cross attention, vision, tied and untied heads, published in FP8, MXFP4 and AWQ.
MODELS = (
    "demo",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct",
    "meta-llama/Llama-3.2-1B-Instruct",
    "meta-llama/Llama-2-7b-hf",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-30B-A3B-FP8",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "deepseek-ai/DeepSeek-V3",
    "deepseek-ai/DeepSeek-V2-Lite",
    "google/gemma-2-9b-it",
    "google/gemma-3-27b-it",
    "openai/gpt-oss-20b",
    "mistralai/Mistral-7B-Instruct-v0.1",
    "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "ibm-granite/granite-4.0-h-small",
    "microsoft/phi-4",
    "EleutherAI/pythia-6.9b",
    "openai-community/gpt2",
)
GPUS = ("t4", "l4", "rtx-4090", "l40s", "a100-80g", "h100", "h200", "mi300x", "b200")
ENGINES = ("vllm", "vllm@0.6.3", "vllm@0.9.2", "vllm@0.11.0", "sglang", "tensorrt-llm", "llama.cpp", "transformers")
# llama.cpp replays its graph for every answer, which takes a while for a large model.
SMALL_MODELS = ("demo", "meta-llama/Llama-3.2-1B-Instruct", "Qwen/Qwen3-0.6B", "openai-community/gpt2")
SCHEMES = ("fp8", "w8a8-int8", "gptq-int4-g128", "awq-int4-g128", "bnb-nf4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A question to one engine. It is written in a way that hypothesis can print."""

    model: str
    gpu: str
    engine: str
    settings: ServingSettings
    scheme: str | None = None

    def ask(self, settings: ServingSettings | None = None) -> MemoryBudget:
        """The budget of this question, or of the same question with other settings.

        What the engine refuses with a hint, such as a card that it does not run on, is no example of a property.
        """
        name, _, version = self.engine.partition("@")
        spec = model_of(self.model, self.scheme)
        try:
            return load_engine(name).estimate(spec, gpu_of(self.gpu), settings or self.settings, version or None)
        except MemplanError as error:
            if not error.hint:
                raise
            reject()

    def with_workload(self, *, context_tokens: int | None = None, concurrency: int | None = None) -> ServingSettings:
        """The settings with another length, or another number of requests."""
        workload = self.settings.workload
        return replace(
            self.settings,
            workload=replace(
                workload,
                context_tokens=workload.context_tokens if context_tokens is None else context_tokens,
                concurrency=workload.concurrency if concurrency is None else concurrency,
            ),
        )


@lru_cache(maxsize=256)
def model_of(name: str, scheme: str | None = None) -> ModelSpec:
    """A model of the catalogue, in another weight scheme if one is named."""
    spec = resolve_model(name, offline=True)
    return quantize_spec(spec, parse_scheme(scheme)) if scheme else spec


@lru_cache(maxsize=64)
def gpu_of(name: str) -> GpuSpec:
    """A card of the catalogue."""
    return find_gpu(name)


def cases(
    *,
    engines: tuple[str, ...] = ENGINES,
    models: tuple[str, ...] = MODELS,
    schemes: tuple[str | None, ...] = (None,),
    ranks: tuple[int, ...] = (1, 2, 4, 8),
) -> st.SearchStrategy[Case]:
    """Questions with a length that the model can do."""
    return st.builds(
        _case,
        st.sampled_from(models),
        st.sampled_from(GPUS),
        st.sampled_from(engines),
        st.sampled_from(ranks),
        st.integers(min_value=16, max_value=200_000),
        st.integers(min_value=1, max_value=64),
        st.sampled_from(schemes),
    )


def _case(model: str, gpu: str, engine: str, ranks: int, context: int, concurrency: int, scheme: str | None) -> Case:
    if engine == "llama.cpp" and model not in SMALL_MODELS:
        model = SMALL_MODELS[len(model) % len(SMALL_MODELS)]
    spec = model_of(model)
    heads = [layer.num_heads for layer in spec.layers if layer.num_heads]
    while any(number % ranks for number in heads):
        ranks //= 2
    return Case(
        model=model,
        gpu=gpu,
        engine=engine,
        scheme=None if spec.quantization else scheme,
        settings=ServingSettings(
            layout=ParallelLayout(tensor=ranks),
            workload=Workload(context_tokens=min(context, spec.max_context_tokens), concurrency=concurrency),
        ),
    )
