"""Alerts, dashboards, autoscalers, limits, load tests: metrics that the release has, numbers that the budget has."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from setups import setup
from shapes import ALERTS, KUBERNETES, misfits

from memplan.catalog.engine_metrics import engine_metrics
from memplan.domain.emission import Emission, EmitSubject
from memplan.emit import limits, load_test
from memplan.emit.registry import find_format, load_emitter
from memplan.emit.sizing import context_tokens, pool_tokens
from memplan.errors import UsageError

# What each release exports, as read in its sources. The names of a meaning that is not listed do not exist there.
KV_NAMES = [
    ("vllm", "0.8.5", "vllm:gpu_cache_usage_perc"),
    ("vllm", "0.9.1", "vllm:gpu_cache_usage_perc"),
    ("vllm", "0.9.2", "vllm:kv_cache_usage_perc"),
    ("vllm", "0.33.0", "vllm:kv_cache_usage_perc"),
    ("sglang", "0.4.3", "sglang:token_usage"),
    ("sglang", "0.5.23", "sglang:token_usage"),
    ("tensorrt-llm", "1.3.0", "trtllm_kv_cache_utilization"),
    ("llama.cpp", "b4000", "llamacpp:kv_cache_usage_ratio"),
]
OTHERS = {"kube_pod_container_status_restarts_total", "kube_pod_container_status_last_terminated_reason", "up"}
OTHERS |= {"DCGM_FI_DEV_FB_USED"}
_FUNCTIONS = {"sum", "max", "rate", "increase", "histogram_quantile", "by", "le"}


def emitted(format_name: str, subject: EmitSubject) -> Emission:
    return load_emitter(find_format(format_name, subject.engine)[1])(subject)


def text_of(format_name: str, subject: EmitSubject) -> str:
    return emitted(format_name, subject).files[0].text


def rules(subject: EmitSubject) -> dict[str, dict[str, str]]:
    (group,) = yaml.safe_load(text_of("alerts", subject))["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def names_asked(expression: str) -> set[str]:
    """The metrics in an expression: words outside of selectors, strings and functions, without a histogram's suffix."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", expression)
    words = set(re.findall(r"[A-Za-z_][\w:]*", bare)) - _FUNCTIONS - {"gpu"}
    return {word.removesuffix("_bucket") for word in words}


@pytest.mark.parametrize(("engine", "version", "name"), KV_NAMES)
def test_cache_usage_has_the_name_of_its_release(engine: str, version: str, name: str) -> None:
    assert engine_metrics(engine, version)["kv_usage"] == name


def test_a_fall_back_to_v0_exports_the_names_of_v0() -> None:
    assert engine_metrics("vllm", "0.9.2", generation="v0")["kv_usage"] == "vllm:gpu_cache_usage_perc"


def test_what_a_release_does_not_export_is_not_asked_for() -> None:
    assert not engine_metrics("llama.cpp", "b7000").has("kv_usage")
    assert not engine_metrics("sglang", "0.5.2").has("preemptions")
    assert engine_metrics("sglang", "0.5.7")["preemptions"] == "sglang:num_retracted_requests_total"
    assert engine_metrics("vllm", "0.10.1")["inter_token"] == "vllm:time_per_output_token_seconds"
    assert engine_metrics("vllm", "0.10.2")["inter_token"] == "vllm:inter_token_latency_seconds"


def test_engines_without_metrics_and_releases_before_them_are_refused() -> None:
    with pytest.raises(UsageError, match="exports no metrics"):
        engine_metrics("transformers", "5.0.0")
    with pytest.raises(UsageError, match="not known"):
        engine_metrics("sglang", "0.3.0")


@pytest.mark.parametrize("version", ["0.8.5", "0.10.2", "0.33.0"])
@pytest.mark.parametrize("format_name", ["alerts", "grafana", "autoscaling"])
def test_only_metrics_of_the_release_are_asked_for(version: str, format_name: str) -> None:
    subject = setup(version=version)
    generation = subject.budget.settings["engine_generation"]
    known = set(engine_metrics("vllm", version, generation=generation).names.values()) | OTHERS
    text = text_of(format_name, subject)
    parsed = json.loads(text) if format_name == "grafana" else yaml.safe_load(text)
    expressions = found_under(parsed, {"expr", "query"})
    asked = {name for expression in expressions for name in names_asked(expression)}
    assert asked - {"prometheus"} <= known
    assert asked


def found_under(value: object, keys: set[str]) -> list[str]:
    """Every text under one of these keys, anywhere in a document."""
    if isinstance(value, dict):
        here = [item for key, item in value.items() if key in keys and isinstance(item, str)]
        return here + [text for item in value.values() for text in found_under(item, keys)]
    if isinstance(value, list):
        return [text for item in value for text in found_under(item, keys)]
    return []


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm", "llama.cpp"])
def test_rules_have_documented_fields_only(engine: str) -> None:
    subject = setup(engine=engine, gpu="h100")
    assert misfits(yaml.safe_load(text_of("alerts", subject)), ALERTS) == []
    for rule in rules(subject).values():
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert rule["expr"].count("{") == rule["expr"].count("}")


def test_the_cache_alert_leaves_room_for_one_more_request() -> None:
    subject = setup(context=65536, concurrency=4)
    threshold = float(rules(subject)["LlmKvCacheNearlyFull"]["expr"].rpartition("> ")[2])
    share = 1 - context_tokens(subject) / pool_tokens(subject)
    assert threshold == pytest.approx(share, abs=0.006)
    assert f"{pool_tokens(subject):,}" in text_of("alerts", subject)


def test_a_server_counts_as_down_after_longer_than_it_starts() -> None:
    small, large = rules(setup("qwen3-0.6b")), rules(setup("llama-3.1-70b", "h200", tp=4))
    assert int(small["LlmDown"]["for"].rstrip("m")) < int(large["LlmDown"]["for"].rstrip("m"))


def test_an_alert_is_left_out_with_a_note_where_its_metric_is() -> None:
    emission = emitted("alerts", setup(engine="llama.cpp"))
    assert "LlmKvCacheNearlyFull" not in emission.files[0].text
    assert any("does not export" in note for note in emission.notes)
    assert any("--metrics" in note for note in emission.notes)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm", "llama.cpp"])
def test_promtool_takes_the_rules(engine: str, tmp_path: Path) -> None:
    (tmp_path / "alerts.yaml").write_text(text_of("alerts", setup(engine=engine, gpu="h100")))
    command = ["promtool", "check", "rules", str(tmp_path / "alerts.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_dashboard_has_panels_that_do_not_overlap() -> None:
    dashboard = json.loads(text_of("grafana", setup()))
    assert dashboard["schemaVersion"] == 39
    assert len(dashboard["uid"]) <= 40
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_a_dashboard_draws_the_limits_of_the_budget() -> None:
    subject = setup()
    panels = {panel["title"]: panel for panel in json.loads(text_of("grafana", subject))["panels"]}
    steps = panels["GPU memory"]["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert subject.budget.used_bytes >> 20 <= steps[1]["value"] <= subject.budget.gpu_memory_bytes >> 20
    assert panels["KV cache in use"]["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"] < 1


def test_autoscalers_have_documented_fields_only_and_follow_queue_and_cache() -> None:
    emission = emitted("autoscaling", setup())
    keda, hpa = (yaml.safe_load(file.text) for file in emission.files)
    assert misfits(keda, KUBERNETES["ScaledObject"]) == []
    assert misfits(hpa, KUBERNETES["HorizontalPodAutoscaler"]) == []
    queries = [trigger["metadata"]["query"] for trigger in keda["spec"]["triggers"]]
    assert "num_requests_waiting" in queries[0]
    assert "kv_cache_usage_perc" in queries[1]
    assert keda["spec"]["scaleTargetRef"]["name"] == "llm-llama-3-1-8b-instruct"


@pytest.mark.parametrize("context", [600, 4096, 16384, 131072])
@pytest.mark.parametrize("gpu", ["l4", "a100-80g", "b200"])
def test_all_places_taken_at_full_length_fit_into_the_cache(gpu: str, context: int) -> None:
    subject = setup(gpu=gpu, context=context, concurrency=1)
    granted = limits.tiers(subject)
    assert sum(tier.reserved_tokens for tier in granted) <= pool_tokens(subject)
    assert all(tier.output_tokens < tier.context_tokens <= context for tier in granted)
    parsed = yaml.safe_load(text_of("limits", subject))
    assert parsed["schema"] == "memplan.limits/1"
    session = parsed["session"]
    assert session["keep_recent_tokens"] < session["summarize_at_tokens"] < session["max_tokens"] <= context


def test_the_engines_own_queue_bound_is_named_where_it_has_one() -> None:
    assert limits.own_queue_option(setup(version="0.28.0")) is None
    newest = limits.own_queue_option(setup())
    assert newest is not None
    assert newest[0] == "--max-num-queued-reqs"


def test_a_load_test_goes_to_what_the_cache_holds_and_a_step_beyond() -> None:
    subject = setup(mean=2000)
    prompt, output, _ = load_test.lengths(subject)
    assert prompt + output == 2000
    counts = [step.concurrency for step in load_test.steps(subject)]
    assert counts == sorted(set(counts))
    assert counts[0] == 1
    assert 8 in counts
    full = counts[-2]
    assert full == 256 or full * 2000 <= pool_tokens(subject) < (full + 1) * 2000
    assert all(step.prompts <= 1000 for step in load_test.steps(subject))


@pytest.mark.parametrize(
    ("engine", "program"),
    [("vllm", "vllm bench serve"), ("sglang", "python3 -m sglang.benchmark.serving"), ("llama.cpp", "guidellm run")],
)
def test_a_load_test_uses_the_engines_own_generator(engine: str, program: str) -> None:
    text = text_of("load-test", setup(engine=engine))
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    assert program in " ".join(words)
    assert program.split()[0] in words


def test_a_generator_is_called_by_the_name_that_its_release_has() -> None:
    assert "sglang.bench_serving" in text_of("load-test", setup(engine="sglang", version="0.5.10"))


def test_a_prompt_and_its_answer_are_never_longer_than_the_context() -> None:
    for mean in (None, 100, 999_999):
        prompt, output, _ = load_test.lengths(setup(context=4096, mean=mean))
        assert prompt + output <= 4096
