"""What engines read in another way than it looks cannot be written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from written import emitted

from memplan.catalog.option_tables import load_option_table
from memplan.emit.registry import FORMATS, load_emitter
from memplan.errors import MemplanError, UsageError

RELEASES = ("0.8.0", "0.8.3", "0.8.5", "0.9.0", "0.10.2", "0.11.0", "0.12.0", "0.16.0", "0.20.2", "0.28.0", "0.33.0")
EVERYTHING: dict[str, Any] = {
    "model": "qwen2-vl-7b",
    "gpu": "l40sx2",
    "context": "16k",
    "eager": True,
    "prefix_caching": False,
    "limit_mm": "image=1,video=0",
    "max_loras": 2,
    "max_num_seqs": "64",
    "cpu_offload": "2GiB",
    "offline": True,
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def vllm_yaml(release: str, **more: Any) -> dict[str, Any]:
    config = yaml.safe_load(emitted({**EVERYTHING, **more, "engine": f"vllm@{release}"})[1].files[0].text)
    assert isinstance(config, dict)
    return config


@pytest.mark.parametrize("release", RELEASES)
def test_nothing_is_false_null_a_quoted_flag_or_a_float_that_counts(release: str) -> None:
    for key, value in vllm_yaml(release).items():
        assert value is not False, key
        assert value is not None, key
        assert value not in ("true", "True", "None"), key
        assert not (isinstance(value, float) and value.is_integer() and key.startswith(("max-", "block-"))), key


@pytest.mark.parametrize(
    ("release", "option", "variable"),
    [
        ("0.9.0", "use_v1=false", "VLLM_USE_V1=0"),
        ("0.13.0", "flashinfer_sampler=true", "VLLM_USE_FLASHINFER_SAMPLER=1"),
        ("0.33.0", "v2-model-runner=false", "VLLM_USE_V2_MODEL_RUNNER=0"),
    ],
)
def test_what_vllm_reads_from_its_environment_is_no_option_of_its_file(
    release: str, option: str, variable: str
) -> None:
    given = {"model": "llama-8b", "gpu": "a100-80g", "engine": f"vllm@{release}", "set": [option], "offline": True}
    file = emitted(given)[1].files[0]
    assert not [key for key in yaml.safe_load(file.text) if option.partition("=")[0].replace("_", "-") in key]
    assert f"{variable} vllm serve" in file.text
    name, _, value = variable.partition("=")
    compose = next(each for each in emitted(given, "compose")[1].files if each.name.startswith("compose"))
    assert re.search(f"{name}: .?{value}", compose.text)


@pytest.mark.parametrize("release", RELEASES)
def test_every_key_is_an_option_of_that_release_spelled_with_dashes(release: str) -> None:
    options = load_option_table("vllm", release)
    for key in vllm_yaml(release):
        assert options.has(key.removeprefix("no-")), key
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", key)


@pytest.mark.parametrize("release", RELEASES)
def test_what_is_off_is_said_so_that_vllm_hears_it(release: str) -> None:
    config = vllm_yaml(release)
    assert config["no-enable-prefix-caching"] is True
    assert "enable-prefix-caching" not in config


@pytest.mark.parametrize(
    ("release", "key", "value"),
    [
        ("0.8.3", "enable-chunked-prefill", "false"),
        ("0.8.5", "no-enable-chunked-prefill", True),
        ("0.33.0", "no-enable-chunked-prefill", True),
    ],
)
def test_chunked_prefill_is_switched_off_as_the_release_wants_it(release: str, key: str, value: object) -> None:
    options = {"model": "llama-8b", "gpu": "h100", "context": "8192", "max_num_batched_tokens": "8192"}
    config = vllm_yaml_of({**options, "chunked_prefill": False, "engine": f"vllm@{release}"})
    assert config[key] == value


def vllm_yaml_of(options: dict[str, Any]) -> dict[str, Any]:
    config = yaml.safe_load(emitted({**options, "offline": True})[1].files[0].text)
    assert isinstance(config, dict)
    return config


def test_mappings_are_nested_where_they_are_read_and_json_before() -> None:
    assert vllm_yaml("0.33.0")["limit-mm-per-prompt"] == {"image": 1, "video": 0}
    assert json.loads(vllm_yaml("0.10.2")["limit-mm-per-prompt"]) == {"image": 1, "video": 0}
    assert vllm_yaml("0.8.3")["limit-mm-per-prompt"] == "image=1,video=0"


def test_a_release_that_wants_the_model_on_the_command_line_gets_it_there() -> None:
    setup, emission = emitted({"model": "llama-8b", "gpu": "l40s", "engine": "vllm@0.8.2", "offline": True})
    assert "model" not in yaml.safe_load(emission.files[0].text)
    assert f"vllm serve {setup.budget.model_name} --config vllm.yaml" in emission.notes[0]


def test_an_option_that_the_release_lacks_is_refused_with_the_release_that_has_it() -> None:
    with pytest.raises(UsageError, match="has no option kv-cache-memory-bytes") as refused:
        emitted(
            {"model": "llama-8b", "gpu": "l40s", "kv_cache_memory": "4GiB", "engine": "vllm@0.9.0", "offline": True}
        )
    assert refused.value.hint is not None
    assert "0.10.2" in refused.value.hint


def test_a_release_before_any_that_is_known_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no config is written for vLLM 0\.6\.0"):
        emitted({"model": "llama-8b", "gpu": "l40s", "context": "8k", "engine": "vllm@0.6.0", "offline": True})


def test_a_card_without_bfloat16_gets_float16() -> None:
    config = vllm_yaml_of({"model": "llama-8b", "gpu": "t4x2", "context": "2048"})
    assert config["dtype"] == "float16"


def test_no_file_of_any_format_starts_vllm_with_one_word_for_its_config() -> None:
    for name, found in FORMATS.items():
        if found.engines and "vllm" not in found.engines:
            continue
        try:
            emission = emitted({"model": "llama-8b", "gpu": "l40s", "context": "8k", "offline": True}, name)[1]
        except MemplanError:
            continue
        for file in emission.files:
            assert "--config=" not in file.text, name


def test_every_format_is_there() -> None:
    for found in FORMATS.values():
        assert callable(load_emitter(found))


@pytest.mark.parametrize(("engine", "old", "new"), [("sglang", "0.5.10", "0.5.23")])
def test_sglang_calls_its_graphs_as_the_release_does(engine: str, old: str, new: str) -> None:
    options = {"model": "llama-8b", "gpu": "l40s", "context": "8k"}
    assert "cuda-graph-max-bs" in vllm_yaml_of({**options, "engine": f"{engine}@{old}"})
    assert "cuda-graph-max-bs-decode" in vllm_yaml_of({**options, "engine": f"{engine}@{new}"})


def test_python_that_is_written_compiles_and_says_off_as_false() -> None:
    options = {"model": "llama-8b", "gpu": "l40s", "context": "8k", "prefix_caching": False, "offline": True}
    text = emitted(options, "vllm-python")[1].files[0].text
    compile(text, "batch.py", "exec")
    assert "enable_prefix_caching=False" in text
    options = {"model": "llama-8b", "gpu": "l40s", "context": "8k", "quant": "bnb-nf4", "offline": True}
    text = emitted(options, "transformers")[1].files[0].text
    compile(text, "load.py", "exec")
    assert "BitsAndBytesConfig(" in text


def test_ollama_is_told_what_a_modelfile_cannot_say_by_its_environment() -> None:
    options = {"model": "llama-8b", "gpu": "rtx-4090", "context": "8k", "quant": "gguf:q4_k_m", "kv_dtype": "q8_0"}
    emission = emitted({**options, "concurrency": "2", "offline": True}, "ollama")[1]
    modelfile, environment = emission.files
    assert "PARAMETER num_ctx" in modelfile.text
    assert "OLLAMA_KV_CACHE_TYPE" not in re.sub(r"^#.*$", "", modelfile.text, flags=re.M)
    assert {"OLLAMA_KV_CACHE_TYPE=q8_0", "OLLAMA_NUM_PARALLEL=2"} <= set(environment.text.splitlines())
