"""Containers, manifests and units: they parse, have documented fields only, and say what the budget says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from setups import renamed, setup
from shapes import ALERTS, COMPOSE, KUBERNETES, misfits

from memplan.budget.storage import checkpoint_bytes
from memplan.domain.emission import Emission, EmitSubject
from memplan.emit.registry import DEFAULT_FORMATS, SURROUNDINGS, find_format, load_emitter
from memplan.errors import UsageError
from memplan.units import GIB

HOSTILE = '/models/it\'s $HOME `id` "quoted" #1%n ${X}\n- a: b'
# Only engines that have a format of their own can be put into a container.
_MODELS: dict[str, dict[str, Any]] = {
    "vllm": {},
    "sglang": {"engine": "sglang"},
    "tensorrt-llm": {"engine": "tensorrt-llm", "gpu": "h100"},
    "llama.cpp": {"engine": "llama.cpp", "scheme": "gguf:q4_k_m"},
}
ENGINES = [name for name in _MODELS if name in DEFAULT_FORMATS]
CONTAINERS = ("docker", "compose", "kubernetes", "systemd")


def emitted(format_name: str, subject: EmitSubject) -> Emission:
    return load_emitter(find_format(format_name, subject.engine)[1])(subject)


def text_of(format_name: str, subject: EmitSubject) -> str:
    return emitted(format_name, subject).files[0].text


@pytest.fixture(scope="module", params=ENGINES)
def subject(request: pytest.FixtureRequest) -> EmitSubject:
    return setup(**_MODELS[request.param])


def pods(text: str) -> dict[str, Any]:
    deployment = next(each for each in yaml.safe_load_all(text) if each["kind"] == "Deployment")
    return deployment["spec"]["template"]["spec"]


@pytest.mark.parametrize("format_name", sorted(SURROUNDINGS))
def test_every_format_is_written_for_every_server(format_name: str, subject: EmitSubject) -> None:
    emission = emitted(format_name, subject)
    assert emission.files[0].text.endswith("\n")
    assert subject.spec_name in emission.files[0].text
    assert subject.checked_for in emission.files[0].text


def test_a_manifest_has_documented_fields_only(subject: EmitSubject) -> None:
    documents = list(yaml.safe_load_all(text_of("kubernetes", subject)))
    assert {"PersistentVolumeClaim", "Deployment", "Service"} <= {each["kind"] for each in documents}
    for each in documents:
        assert misfits(each, KUBERNETES[each["kind"]]) == []


def test_the_start_up_probe_waits_for_the_weights() -> None:
    small, large = setup("qwen3-0.6b"), setup("llama-3.1-70b", "h200", tp=4)
    waits = []
    for each in (small, large):
        probe = pods(text_of("kubernetes", each))["containers"][0]["startupProbe"]
        waits.append(probe["periodSeconds"] * probe["failureThreshold"])
        assert waits[-1] >= checkpoint_bytes(each.spec) / 100e6 + 200
    assert waits[0] < waits[1]


def test_a_pod_asks_for_the_gpus_of_the_budget_and_for_shared_memory() -> None:
    pod = pods(text_of("kubernetes", setup("llama-3.1-70b", "h200", tp=4)))
    container = pod["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert container["resources"]["requests"]["nvidia.com/gpu"] == "4"
    shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")["emptyDir"]
    assert shm == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert any(mount["mountPath"] == "/dev/shm" for mount in container["volumeMounts"])
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
    assert limit * GIB > setup("llama-3.1-70b", "h200", tp=4).budget.host_bytes + 16 * GIB


def test_a_pod_stops_after_its_requests() -> None:
    pod = pods(text_of("kubernetes", setup()))
    container = pod["containers"][0]
    sleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = int(container["args"][container["args"].index("--shutdown-timeout") + 1])
    assert pod["terminationGracePeriodSeconds"] >= sleep + drain + 15
    assert pod["enableServiceLinks"] is False


def test_a_release_without_a_graceful_stop_is_not_given_one() -> None:
    assert "--shutdown-timeout" not in text_of("docker", setup(version="0.10.2"))


def test_the_config_in_a_manifest_is_the_engines_own_letter_for_letter() -> None:
    subject = setup()
    own = text_of("vllm", subject)
    manifest = next(yaml.safe_load_all(text_of("kubernetes", subject)))
    assert manifest["data"]["vllm.yaml"].rstrip() == own.rstrip()
    compose = yaml.safe_load(text_of("compose", subject))
    assert compose["configs"]["engine"]["content"].replace("$$", "$").rstrip() == own.rstrip()
    script = text_of("docker", subject)
    assert own.rstrip() in script


def test_a_compose_file_has_documented_fields_only(subject: EmitSubject) -> None:
    assert misfits(yaml.safe_load(text_of("compose", subject)), COMPOSE) == []


def test_the_image_is_the_release_that_was_checked() -> None:
    for version in ("0.10.2", "0.33.0"):
        for format_name in ("docker", "compose", "kubernetes"):
            assert f"vllm/vllm-openai:v{version}" in text_of(format_name, setup(version=version))


def test_the_config_is_named_in_two_words() -> None:
    for format_name in CONTAINERS:
        assert "--config=" not in text_of(format_name, setup())
    args = pods(text_of("kubernetes", setup()))["containers"][0]["args"]
    assert args[args.index("--config") + 1] == "/etc/memplan/vllm.yaml"


def test_a_script_is_one_that_bash_reads(subject: EmitSubject, tmp_path: Path) -> None:
    for format_name in ("docker", "load-test"):
        script = tmp_path / f"{format_name}.sh"
        script.write_text(text_of(format_name, subject))
        done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def fake_docker(folder: Path) -> None:
    """A docker that prints every word that it was given, between brackets."""
    program = folder / "docker"
    program.write_text('#!/bin/sh\nfor word in "$@"; do printf "[%s]\\n" "$word"; done\n')
    program.chmod(0o755)


def test_the_docker_script_hands_over_every_word_unchanged(tmp_path: Path) -> None:
    fake_docker(tmp_path)
    subject = renamed(setup(), HOSTILE.replace("\n", " "))
    (tmp_path / "run.sh").write_text(text_of("docker", subject))
    path = f"{tmp_path}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "run.sh"], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, check=True
    )
    words = [line[1:-1] for line in done.stdout.splitlines()]
    assert words[0] == "run"
    assert f"{subject.model_reference}:{subject.model_reference}:ro" in words
    assert words[words.index("--shm-size") + 1] == "2g"
    assert words[words.index("--gpus") + 1] == "1"
    (written,) = tmp_path.glob("llm-*/vllm.yaml")
    assert yaml.safe_load(written.read_text())["model"] == subject.model_reference


@pytest.mark.parametrize("format_name", ["compose", "kubernetes", "alerts", "autoscaling", "limits"])
def test_a_hostile_name_stays_a_name(format_name: str) -> None:
    subject = renamed(setup(), HOSTILE)
    for each in yaml.safe_load_all(text_of(format_name, subject)):
        shape = {"compose": COMPOSE, "alerts": ALERTS}.get(format_name) or KUBERNETES.get(each.get("kind", ""))
        if shape:
            assert misfits(each, shape) == []


def test_compose_expands_nothing_of_a_hostile_name() -> None:
    text = text_of("compose", renamed(setup(), HOSTILE))
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert re.findall(r"(?<!\$)(?:\$\$)*\$(?!\$)\S*", code) == ['${HF_TOKEN:-}"']


def unit_sections(text: str) -> dict[str, list[tuple[str, str]]]:
    sections: dict[str, list[tuple[str, str]]] = {}
    current = ""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            current = line.strip("[]")
            sections[current] = []
        else:
            key, _, value = line.partition("=")
            sections[current].append((key, value))
    return sections


def test_a_unit_has_its_sections_and_gives_up_in_time(subject: EmitSubject) -> None:
    sections = unit_sections(text_of("systemd", subject))
    assert list(sections) == ["Unit", "Service", "Install"]
    service = dict(sections["Service"])
    assert shlex.split(service["ExecStart"])[0] == "/usr/bin/env"
    assert "0.0.0.0" not in service["ExecStart"]
    assert int(service["TimeoutStartSec"]) >= 240
    assert dict(sections["Unit"])["StartLimitBurst"] == "3"


def test_a_unit_of_a_hostile_name_has_no_line_of_its_own() -> None:
    sections = unit_sections(text_of("systemd", renamed(setup(), HOSTILE)))
    assert [key for key, _ in sections["Service"]].count("ExecStart") == 1
    assert "%n" not in dict(sections["Unit"])["Description"].replace("%%", "")


def test_a_unit_comes_with_the_config_that_it_reads() -> None:
    emission = emitted("systemd", setup())
    assert [file.name for file in emission.files] == ["llm-llama-3-1-8b-instruct.service", "vllm.yaml"]
    assert any("/etc/llm-llama-3-1-8b-instruct/vllm.yaml" in note for note in emission.notes)


def test_a_model_of_this_machine_is_mounted_where_it_is() -> None:
    subject = setup(reference="/srv/models/llama")
    pod = pods(text_of("kubernetes", subject))
    assert {"name": "model", "hostPath": {"path": "/srv/models/llama", "type": "Directory"}} in pod["volumes"]
    assert "--volume /srv/models/llama:/srv/models/llama:ro" in text_of("docker", subject)


def test_amd_cards_get_their_own_devices() -> None:
    subject = setup(gpu="mi300x")
    assert "amd.com/gpu" in pods(text_of("kubernetes", subject))["containers"][0]["resources"]["limits"]
    assert "--device /dev/kfd" in text_of("docker", subject)
    assert "rocm" in text_of("docker", subject)


def test_a_library_is_no_server() -> None:
    with pytest.raises(UsageError, match="transformers is a library"):
        text_of("docker", setup(engine="transformers", context=4096, concurrency=1))


def test_a_card_without_an_image_is_refused() -> None:
    with pytest.raises(UsageError, match="no image"):
        text_of("docker", setup(gpu="gaudi2"))


@pytest.mark.skipif(shutil.which("kubernetes-validate") is None, reason="kubernetes-validate is not installed")
def test_the_kubernetes_schemas_take_a_manifest(subject: EmitSubject, tmp_path: Path) -> None:
    (tmp_path / "manifest.yaml").write_text(text_of("kubernetes", subject))
    (tmp_path / "hpa.yaml").write_text(emitted("autoscaling", subject).files[1].text)
    for name in ("manifest.yaml", "hpa.yaml"):
        command = ["kubernetes-validate", "--strict", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_a_unit(subject: EmitSubject, tmp_path: Path) -> None:
    unit = tmp_path / "llm.service"
    unit.write_text(text_of("systemd", subject))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
