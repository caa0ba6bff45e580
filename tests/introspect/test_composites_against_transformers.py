"""Every family beside the decoders, scaled down: transformers' own modules on the meta device have the same sizes."""

import logging
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from composite_cases import WRAPPERS, Case
from encoder_cases import ENCODERS

from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

_HEARING = re.compile(r"audio|talker|token2wav")
_SEEING = re.compile(
    r"visi|visual|multi_modal_projector|mm_projector|connector|merge[r_]|mlp1|img_|image_(newline|embed)|_GN|img_feature"
)


@pytest.fixture(autouse=True)
def _quiet_transformers() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def build_module(case: Case) -> object:
    """transformers' own module for a case, on the meta device."""
    class_name, keys = case
    config = transformers.AutoConfig.for_model(**keys)
    module_class = getattr(transformers, class_name)
    with torch.device("meta"):
        try:
            return module_class(config)
        except (TypeError, ValueError, AttributeError):
            return module_class._from_config(config)


def spec_of(case: Case) -> ModelSpec:
    class_name, keys = case
    return build_spec(Config({**keys, "architectures": [class_name]}), class_name)


def part_of(name: str) -> str:
    """Whether a tensor, by its name, belongs to what hears, to what sees, or to the language model."""
    if name.startswith("multi_modal_projector.linear.") or _HEARING.search(name):
        return "hearing"
    return "seeing" if _SEEING.search(name) else "language"


def module_parts(module: object) -> Counter[str]:
    parts: Counter[str] = Counter()
    for name, parameter in module.named_parameters():  # type: ignore[attr-defined]
        parts[part_of(name.removeprefix("model."))] += parameter.numel()
    return parts


def spec_parts(spec: ModelSpec) -> Counter[str]:
    parts: Counter[str] = Counter()
    outside = [*spec.shared, *(tensor for tower in spec.towers for tensor in tower.tensors)]
    for tensor in outside:
        parts[part_of(tensor.name.removeprefix("model."))] += tensor.num_parameters
    parts["language"] += sum(layer.num_parameters for layer in spec.layers)
    return parts


def label(case: Case) -> str:
    return case[0]


@pytest.mark.parametrize("case", WRAPPERS, ids=label)
def test_a_wrapper_has_the_parameters_of_transformers_module_in_every_part(case: Case) -> None:
    module, spec = build_module(case), spec_of(case)
    assert {part: count for part, count in spec_parts(spec).items() if count} == dict(module_parts(module))


@pytest.mark.parametrize("case", ENCODERS, ids=label)
def test_an_encoder_has_the_parameters_of_transformers_module(case: Case) -> None:
    module, spec = build_module(case), spec_of(case)
    assert spec.parameters == sum(parameter.numel() for parameter in module.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", [case for case in ENCODERS if case[1]["model_type"] in ("bart", "t5")], ids=label)
def test_the_encoder_of_an_encoder_decoder_is_a_tower_as_large_as_the_module_s(case: Case) -> None:
    module, spec = build_module(case), spec_of(case)
    towers = [tower for tower in spec.towers if tower.role is Role.ENCODER]
    inside = {
        name: parameter.numel()
        for name, parameter in module.named_parameters()  # type: ignore[attr-defined]
        if ".encoder." in f".{name}" and "embed_tokens" not in name
    }
    if spec.is_generative:
        assert [tower.num_parameters for tower in towers] == [sum(inside.values())]
    else:
        assert not towers
