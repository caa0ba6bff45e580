"""Passes of real models: what is alive at their fullest moment, measured, and what the model of memory says.

The models are built whole on the meta device from the catalogue's configs, so that sizes are those of real runs and
nothing is allocated; transformers' own code runs, operation by operation.
"""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from live_bytes import AsOnGpu, LiveBytes
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from memplan.catalog.gpus import find_gpu
from memplan.catalog.rules import Rules, load_rules
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings, Workload
from memplan.engines.options import EngineOptions
from memplan.engines.transformers.caches import layer_cache
from memplan.engines.transformers.families import family_of
from memplan.engines.transformers.layer_shape import shape_of
from memplan.engines.transformers.passes import Peak, PlacedLayer, decode_step, device_peak, prefill_step
from memplan.engines.transformers.settings import KNOWN_OPTIONS, resolve

NEW_TOKENS = 2  # windows are cut when the first token is appended, so the second is measured
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call: rows of the batch, tokens of a prompt, and how it is run."""

    rows: int = 1
    tokens: int = 2048
    attention: str | None = None
    dtype: str = "bfloat16"
    padded: bool = False
    all_logits: bool = False
    cache: str = "dynamic"
    context: int | None = None

    @property
    def context_tokens(self) -> int:
        return self.context or self.tokens + NEW_TOKENS

    @property
    def label(self) -> str:
        words = [f"{self.rows}x{self.tokens}", self.attention or "default", self.dtype]
        words += ["padded"] * self.padded + ["all logits"] * self.all_logits
        return " ".join([*words, *([self.cache] if self.cache != "dynamic" else [])])


CASES = (
    Case(tokens=4096),
    Case(tokens=128),
    Case(rows=4, tokens=1024, padded=True),
    Case(rows=8, tokens=512),
    Case(tokens=2048, attention="eager"),
    Case(rows=2, tokens=1024, attention="eager", padded=True),
    Case(rows=2, tokens=1024, all_logits=True),
    Case(tokens=2048, dtype="float32"),
    Case(tokens=2048, cache="static", context=4096),
    Case(tokens=2048, cache="quantized"),
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Bytes alive at the fullest moment of each phase beside weights, and where that was."""

    prefill_bytes: int
    prefill_at: str
    decode_bytes: int
    decode_at: str


def build(raw: Mapping[str, object], case: Case, device: str = "meta") -> Any:
    """The model of a config, in the case's type and with its attention."""
    config = transformers.AutoConfig.for_model(**copy.deepcopy(dict(raw)))
    chosen = {"attn_implementation": case.attention} if case.attention else {}
    with torch.device(device):
        for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText):
            if type(config) in auto._model_mapping:
                return auto.from_config(config, dtype=DTYPES[case.dtype], **chosen).eval()
    raise ValueError(f"no generating class for {type(config).__name__}")


def measure(model: Any, case: Case, *, as_on_gpu: bool = True) -> Measured:
    """Run a prefill and a few tokens, of which the last is measured."""
    device = next(model.parameters()).device
    words = torch.zeros(case.rows, case.tokens, dtype=torch.long, device=device)
    given: dict[str, Any] = {"use_cache": True}
    if not case.all_logits:
        given["logits_to_keep"] = 1
    if case.padded:
        mask = torch.ones(case.rows, case.tokens, dtype=torch.long, device=device)
        mask[:, :3] = 0
        given["attention_mask"] = mask
    if case.cache == "static":
        given["past_key_values"] = transformers.StaticCache(config=model.config, max_cache_len=case.context_tokens)
    if case.cache == "quantized":
        given["past_key_values"] = transformers.QuantizedCache("fp8", model.config)
    known = [*model.parameters(), *model.buffers()]
    gc.collect()
    with torch.no_grad(), _kernels(as_on_gpu), LiveBytes(known) as live:
        answer = model(input_ids=words, **given)
        held = choose(answer.logits)
        prefill_bytes, prefill_at = live.peak_bytes, live.peak_at
        name = "past_key_values" if "past_key_values" in answer else "cache_params"
        given[name] = answer[name]
        del answer
        for _ in range(NEW_TOKENS):
            if name == "cache_params":
                given.pop("attention_mask", None)  # as `generate` does: a state needs no mask
            elif case.padded:
                more = torch.ones(case.rows, 1, dtype=torch.long, device=device)
                given["attention_mask"] = torch.cat([given["attention_mask"], more], dim=1)
            live.forget_peak()
            answer = model(input_ids=words[:, :1], **given)
            held = held[1:3]
            held = (*choose(answer.logits), *held)
            del answer
            held = held[:3]
    return Measured(
        prefill_bytes=prefill_bytes, prefill_at=prefill_at, decode_bytes=live.peak_bytes, decode_at=live.peak_at
    )


def choose(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Sample a token as `generate` does under temperature, top-k and top-p; return what its loop still holds while the
    next pass runs.
    """
    last = logits[:, -1, :].to(copy=True, dtype=torch.float32)
    scores = last
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(50), TopPLogitsWarper(0.9)):
        scores = warper(None, scores)
    likely = torch.softmax(scores, dim=-1)
    torch.multinomial(likely, num_samples=1)
    return last, scores, likely


def _kernels(as_on_gpu: bool) -> Any:
    import contextlib

    return AsOnGpu() if as_on_gpu else contextlib.nullcontext()


def predict(spec: ModelSpec, case: Case, rules: Rules | None = None, gpu: str = "h100") -> tuple[Peak, Peak]:
    """The fullest moments of the same prefill and token, by the model of memory."""
    rules = rules or load_rules("transformers", transformers.__version__)
    family, device = family_of(spec), find_gpu(gpu)
    given: dict[str, object] = {"max_new_tokens": case.context_tokens - case.tokens, "padding": case.padded}
    given["logits_to_keep"] = 0 if case.all_logits else 1
    given["cache_implementation"] = case.cache
    if case.cache == "quantized":
        given["cache_backend"] = "fp8"
    if case.attention:
        given["attn_implementation"] = case.attention
    asked = ServingSettings(
        workload=Workload(context_tokens=case.context_tokens, concurrency=case.rows), dtype=case.dtype
    )
    settings = resolve(spec, device, asked, EngineOptions("transformers", given, KNOWN_OPTIONS), family, rules)
    made = {
        id(layer): PlacedLayer(
            shape=shape_of(layer, spec.hidden_size), cache=layer_cache(layer, settings, rules, family)
        )
        for layer in spec.layers
    }
    placed = [made[id(layer)] for layer in spec.layers]
    prefill = prefill_step(settings, device, family, rules)
    steps = (prefill, decode_step(settings, prefill))
    first, second = (device_peak(spec, placed, settings, step, has_head=True) for step in steps)
    return first, second


def shortened(raw: Mapping[str, object], num_layers: int = 8) -> dict[str, object]:
    """A config with its first layers alone: a pass is as full in them, and eight are traced in a second."""
    short = plain(raw)
    for part in (short, *(value for value in short.values() if isinstance(value, dict))):
        name = next(
            (key for key in ("num_hidden_layers", "n_layer", "num_layers") if isinstance(part.get(key), int)), ""
        )
        many = part.get(name)
        if not isinstance(many, int) or many <= num_layers or "vision" in str(part.get("model_type")):
            continue
        part[name] = num_layers
        for key, value in part.items():
            if isinstance(value, list) and len(value) == many:
                part[key] = value[:num_layers]
    return short


def plain(raw: Mapping[str, object]) -> dict[str, object]:
    """A config without its quantization, as JSON would hold it."""
    return {key: value for key, value in json.loads(json.dumps(raw)).items() if key != "quantization_config"}
