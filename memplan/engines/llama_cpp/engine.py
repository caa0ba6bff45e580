"""The budget of a model under llama.cpp: weights, cache and compute buffers of every GPU, and what the host holds.

llama.cpp allocates everything at the start and has no utilization: a GPU holds its layers' weights, its layers' cache
and one compute buffer, and the start fails when one of them does not fit.

Source: llama.cpp b2354 to b11000; docs/memory-model.md, "llama.cpp". Checked by: benchmarks/llama_cpp.
"""

from __future__ import annotations

from functools import lru_cache

from memplan.catalog.rules import Rules, load_rules
from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.hardware import check_hardware
from memplan.engines.llama_cpp.answer import budget_of
from memplan.engines.llama_cpp.plan import plan_devices
from memplan.engines.llama_cpp.settings import backend_of, resolve
from memplan.errors import UnsupportedModel

_ENCODER_DECODERS = frozenset({"t5", "t5encoder"})


class LlamaCpp:
    """llama.cpp's server on one machine: GPUs of one kind, and the host."""

    name = "llama.cpp"

    def estimate(self, spec: ModelSpec, gpu: GpuSpec, settings: ServingSettings, version: str | None) -> MemoryBudget:
        """Return the budget of `spec` on `gpu`. Raises: UsageError for settings or a device that it refuses."""
        check_hardware(self.name, gpu)
        rules = rules_of(settings, version)
        stored = as_stored(spec)
        resolved, unused = resolve(stored, backend_of(gpu), settings, rules)
        plan = plan_devices(stored, resolved, rules)
        return budget_of(stored, gpu, settings, resolved, rules, plan, unused)


LLAMA_CPP = LlamaCpp()


def rules_of(settings: ServingSettings, version: str | None) -> Rules:
    """The rules of a build: the one after `@`, the `build` option, or the newest known."""
    build = settings.engine_options.get("build")
    return _rules(version or (str(build) if build is not None else None))


@lru_cache(maxsize=16)
def _rules(version: str | None) -> Rules:
    return load_rules("llama.cpp", version)


def as_stored(spec: ModelSpec) -> ModelSpec:
    """The model under ggml's names; one that is not from a GGUF file is taken as its 16-bit conversion.

    Raises: UnsupportedModel for an architecture that llama.cpp has no graph for.
    """
    from memplan.introspect.gguf_arch import is_known_architecture
    from memplan.introspect.gguf_convert import to_gguf

    hint = "`--engine transformers` and `--engine vllm` budget models that llama.cpp does not run"
    stored = to_gguf(spec)
    if not is_known_architecture(stored.model_type):
        raise UnsupportedModel(f"llama.cpp does not run this architecture: `{stored.model_type}`", hint=hint)
    if stored.model_type in _ENCODER_DECODERS:
        raise UnsupportedModel(f"encoder-decoder models are not budgeted under llama.cpp: `{spec.name}`", hint=hint)
    if not any(tensor.name == "token_embd.weight" for tensor in stored.shared):
        raise UnsupportedModel(f"no token embedding in {spec.name}: llama.cpp loads whole language models", hint=hint)
    return stored
