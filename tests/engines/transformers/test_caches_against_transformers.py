"""What a cache holds, against the caches that real models of every kind fill while they run on the CPU.

Bytes are those of the storages that a cache keeps alive, which is more than its tensors show: a view of a long tensor
holds all of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from memplan.catalog.gpus import find_gpu
from memplan.catalog.rules import load_rules
from memplan.domain.serving import ServingSettings, Workload
from memplan.engines.options import EngineOptions
from memplan.engines.transformers.caches import LayerCache, layer_cache
from memplan.engines.transformers.families import family_of
from memplan.engines.transformers.settings import KNOWN_OPTIONS, TransformersSettings, resolve
from memplan.errors import UsageError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

from real_models import FAMILIES, STATEFUL, build, config_of, spec_of  # noqa: E402

ROWS = 2
PROMPT = 45  # longer than every window and chunk of the small models
CONTEXT = 48
RULES = load_rules("transformers", transformers.__version__)
# Classes that hold their states themselves, or whose cache is not made layer by layer.
OWN_CACHES = {"minimax"}
GROWING = sorted({*FAMILIES, *STATEFUL} - OWN_CACHES)
STANDING = ("llama", "mistral", "gemma3_text", "gpt_oss", "deepseek_v32", "qwen3_next", "falcon_h1", "lfm2")


def settings_of(spec: object, **options: object) -> TransformersSettings:
    asked = ServingSettings(workload=Workload(context_tokens=CONTEXT, concurrency=ROWS), dtype="bfloat16")
    given = EngineOptions("transformers", {"max_new_tokens": CONTEXT - PROMPT, **options}, KNOWN_OPTIONS)
    return resolve(spec, find_gpu("h100"), asked, given, family_of(spec), RULES)  # type: ignore[arg-type]


def expected(model: object, **options: object) -> list[LayerCache]:
    spec = spec_of(model)  # type: ignore[arg-type]
    settings, family = settings_of(spec, **options), family_of(spec)
    return [layer_cache(layer, settings, RULES, family) for layer in spec.layers]


def storages(value: object) -> Iterator[tuple[int, int]]:
    """The identity and the bytes of every storage inside a value."""
    if isinstance(value, torch.Tensor):
        yield value.untyped_storage().data_ptr(), value.untyped_storage().nbytes()
    elif isinstance(value, dict):
        for each in value.values():
            yield from storages(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from storages(each)


def held_bytes(layer: object) -> int:
    """What a layer of a cache keeps alive, its counters left out."""
    counters = ("_sliding_window_tensor", "cumulative_length", "indexer_cumulative_length")
    kept = {name: value for name, value in vars(layer).items() if name not in counters}
    return sum(dict(storages(kept)).values())


def run(model: object, cache: object = None) -> tuple[list[int], list[int]]:
    """Bytes of every layer's cache after the prompt, and at the end of the context."""
    torch.manual_seed(0)
    words = torch.randint(3, 900, (ROWS, CONTEXT))
    takes = inspect.signature(type(model).forward).parameters  # type: ignore[attr-defined]
    name = "cache_params" if "cache_params" in takes else "past_key_values"
    with torch.no_grad():
        answer = model(words[:, :PROMPT], use_cache=True, **({name: cache} if cache else {}))  # type: ignore[operator]
        cache = answer[name]
        after_prompt = [held_bytes(layer) for layer in cache.layers]
        for index in range(PROMPT, CONTEXT):
            model(words[:, index : index + 1], use_cache=True, **{name: cache})  # type: ignore[operator]
    return after_prompt, [held_bytes(layer) for layer in cache.layers]


@pytest.mark.parametrize("family", GROWING)
def test_a_dynamic_cache_holds_these_bytes_after_the_prompt_and_at_the_end(family: str) -> None:
    model = build(config_of(family), "cpu")
    ours = expected(model)
    after_prompt, at_the_end = run(model)
    assert [layer.prefill_bytes for layer in ours] == after_prompt
    assert [layer.final_bytes for layer in ours] == at_the_end


@pytest.mark.parametrize("family", STANDING)
def test_a_static_cache_holds_the_same_bytes_from_the_first_token_on(family: str) -> None:
    model = build(config_of(family), "cpu")
    ours = [layer.final_bytes for layer in expected(model, cache_implementation="static")]
    after_prompt, at_the_end = run(model, transformers.StaticCache(config=model.config, max_cache_len=CONTEXT))
    assert ours == after_prompt == at_the_end


def test_a_quantized_cache_is_refused_where_layers_have_windows() -> None:
    model = build(config_of("mistral"))
    with pytest.raises(UsageError, match="full attention on every layer"):
        settings_of(spec_of(model), cache_implementation="quantized")
    with pytest.raises(ValueError, match="full attention"):
        transformers.QuantizedCache("quanto", model.config)


def test_a_family_with_a_cache_of_its_own_has_no_static_one() -> None:
    model = build(config_of("minimax"))
    with pytest.raises(UsageError, match="in a way of its own"):
        settings_of(spec_of(model), cache_implementation="static")
    linear = [layer for layer in expected(model) if not layer.growing_bytes]
    torch.manual_seed(0)
    real = build(config_of("minimax"), "cpu")
    with torch.no_grad():
        cache = real(torch.ones(ROWS, PROMPT, dtype=torch.long), use_cache=True).past_key_values
    states = [size for size in (dict(storages(each)) for each in cache.linear_cache) if size]
    assert [layer.final_bytes for layer in linear] == [sum(each.values()) for each in states]


@pytest.mark.skipif(RULES.release < (5, 21, 0), reason="the backend came in transformers 5.21")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_fp8_cache_holds_a_byte_for_each_element_and_one_scale(family: str) -> None:
    model = build(config_of(family), "cpu")
    cache = transformers.QuantizedCache("fp8", model.config)
    after_prompt, at_the_end = run(model, cache)
    ours = expected(model, cache_implementation="quantized", cache_backend="fp8")
    assert [layer.prefill_bytes for layer in ours] == after_prompt
    assert [layer.final_bytes for layer in ours] == at_the_end
