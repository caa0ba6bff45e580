"""The fullest moments of real passes, operation by operation on the meta device, are those that the budget predicts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.23")

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks" / "transformers"))

from cases import CASES, Case, build, measure, predict, shortened

from memplan.catalog.models import find_model
from memplan.introspect.model_folder import spec_from_config

MODELS = ("llama-3.1-8b", "qwen3-30b-a3b", "gpt2")
CLOSE = 0.05


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [case for case in CASES if case.dtype == "bfloat16"], ids=lambda case: case.label)
@pytest.mark.parametrize("name", MODELS)
def test_a_pass_holds_what_is_predicted_at_its_fullest_moment(name: str, case: Case) -> None:
    known = find_model(name)
    assert known is not None
    raw = shortened(known.config, num_layers=2)
    spec = spec_from_config(raw, name)
    prefill, decode = predict(spec, case)
    real = measure(build(raw, case), case)
    assert abs(prefill.total_bytes / real.prefill_bytes - 1) < CLOSE, (prefill, real)
    assert abs(decode.total_bytes / real.decode_bytes - 1) < CLOSE, (decode, real)
