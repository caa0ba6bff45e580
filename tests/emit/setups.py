"""Setups to emit, made the way the command makes them: a model of the catalogue, a GPU, an engine, a whole budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memplan.catalog.gpus import find_gpu
from memplan.domain.emission import EmitSubject
from memplan.domain.serving import LoraSettings, ParallelLayout, ServingSettings, Workload
from memplan.pipeline import Question, answer, load_model, with_scheme

TITLES = {"vllm": "vLLM", "sglang": "SGLang", "tensorrt-llm": "TensorRT-LLM", "llama.cpp": "llama.cpp"}


def setup(
    model: str = "llama-3.1-8b",
    gpu: str = "a100-80g",
    engine: str = "vllm",
    version: str | None = None,
    *,
    context: int | None = 16384,
    concurrency: int = 8,
    mean: int | None = None,
    tp: int = 1,
    dp: int = 1,
    scheme: str | None = None,
    reference: str | None = None,
    command: str = "memplan emit-config",
    **settings: Any,
) -> EmitSubject:
    """Return the setup that a command line with these options comes to."""
    base = load_model(model, revision=None, offline=True, introspect="auto")
    spec = with_scheme(base, scheme)
    asked = ServingSettings(
        layout=ParallelLayout(tensor=tp, data=dp),
        workload=Workload(context_tokens=context, concurrency=concurrency, mean_tokens=mean),
        quant=scheme,
        lora=LoraSettings(),
        **settings,
    )
    card = find_gpu(gpu)
    question = Question(
        spec=spec, base_spec=base, gpu=card, settings=asked, engine=engine, version=version, with_remedies=False
    )
    budget = answer(question)
    return EmitSubject(
        spec_name=base.name,
        model_reference=reference or base.name,
        spec=spec,
        gpu=card,
        budget=budget,
        settings=asked,
        engine=engine,
        version=budget.engine_version,
        quantization=None,
        command=command,
        checked_for=f"{TITLES.get(engine, engine)} {budget.engine_version}",
    )


def renamed(subject: EmitSubject, name: str) -> EmitSubject:
    """The same setup of a model with another name and reference."""
    return replace(subject, spec_name=name, model_reference=name)
