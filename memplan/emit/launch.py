"""How an engine is started in a container or a unit: its image, its command, its config file, its port and its probes.

The config is the one of the engine's own format, letter for letter; what a server needs beside it (an address, metrics,
a graceful stop) is given as arguments, which win over the file.

Source: the engines' Dockerfiles and documentation of the images vllm/vllm-openai, lmsysorg/sglang,
nvcr.io/nvidia/tensorrt-llm/release and ghcr.io/ggml-org/llama.cpp; vLLM reads `--config FILE` as two words only.
"""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath

from memplan.catalog.engine_metrics import engine_metrics
from memplan.catalog.rules import load_rules, parse_release
from memplan.domain.emission import EmitSubject, EmittedFile
from memplan.emit.registry import DEFAULT_FORMATS, find_format, load_emitter
from memplan.emit.sizing import DRAIN_S
from memplan.emit.vllm_yaml import environment as vllm_variables
from memplan.errors import UsageError
from memplan.records import dataclass

CONFIG_FOLDER = "/etc/memplan"
CACHE_FOLDER = "/cache"
_METRICS_LINE = "return_perf_metrics: true"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One engine as a server. `command` holds every word, the program first; `config` is read from `config_path`.

    `environment` has no secrets; `model_folder` is the folder of a model on this machine, None for one of the hub.
    """

    image: str
    command: tuple[str, ...]
    config: EmittedFile | None
    port: int
    environment: tuple[tuple[str, str], ...]
    model_folder: str | None
    metrics_path: str
    health_path: str = "/health"
    notes: tuple[str, ...] = ()

    @property
    def config_path(self) -> str | None:
        return f"{CONFIG_FOLDER}/{self.config.name}" if self.config else None


def launch(subject: EmitSubject) -> Launch:
    """Return how the engine of `subject` is started.

    Raises: UsageError for an engine that is no server, a device without a published image, or a setup that the engine's
    own format refuses.
    """
    if subject.engine not in _STARTS:
        raise UsageError(
            f"{subject.engine} is a library, not a server", hint=f"name a server: --engine {', '.join(_STARTS)}"
        )
    if subject.gpu.vendor not in _IMAGES[subject.engine]:
        raise UsageError(
            f"no image of {subject.engine} is known for {subject.gpu.name}",
            hint="write the engine's own config (no --format) and start it without a container",
        )
    return _STARTS[subject.engine](subject)


def tensor_count_words(subject: EmitSubject) -> str:
    """How the GPUs are used: `2 GPUs: 2 x tensor parallel`."""
    layout = subject.settings.layout
    parts = [f"{size} x {name}" for name, size in _parallel(layout.tensor, layout.pipeline, layout.data) if size > 1]
    return f"{subject.budget.num_gpus} GPU{'s' if subject.budget.num_gpus > 1 else ''}" + (
        f": {', '.join(parts)} parallel" if parts else ""
    )


def _parallel(tensor: int, pipeline: int, data: int) -> tuple[tuple[str, int], ...]:
    return (("tensor", tensor), ("pipeline", pipeline), ("data", data))


def _own_config(subject: EmitSubject) -> tuple[EmittedFile, tuple[str, ...]]:
    """The first file of the engine's own format, and its notes."""
    emission = load_emitter(find_format(DEFAULT_FORMATS.get(subject.engine), subject.engine)[1])(subject)
    return emission.files[0], emission.notes


def _vllm(subject: EmitSubject) -> Launch:
    config, notes = _own_config(subject)
    named = any(line.startswith("model:") for line in config.text.splitlines())
    words = [
        "vllm",
        "serve",
        *([] if named else [subject.model_reference]),
        "--config",
        f"{CONFIG_FOLDER}/{config.name}",
    ]
    words += ["--host", "0.0.0.0", "--port", "8000"]
    if parse_release(subject.version) >= (0, 18, 1):
        words += ["--shutdown-timeout", str(DRAIN_S)]  # requests in flight end before the server does
    environment = (*_hub_folders(), ("VLLM_CACHE_ROOT", f"{CACHE_FOLDER}/vllm"), *vllm_variables(subject).items())
    return _launch(subject, words, config, 8000, environment, notes)


def _sglang(subject: EmitSubject) -> Launch:
    config, notes = _own_config(subject)
    words = ["python3", "-m", "sglang.launch_server", "--config", f"{CONFIG_FOLDER}/{config.name}"]
    words += ["--host", "0.0.0.0", "--port", "30000", "--enable-metrics"]
    return _launch(subject, words, config, 30000, _hub_folders(), notes)


def _tensorrt_llm(subject: EmitSubject) -> Launch:
    config, notes = _own_config(subject)
    text = config.text if _METRICS_LINE in config.text else f"{config.text.rstrip()}\n{_METRICS_LINE}\n"
    config = EmittedFile(name=config.name, text=text, media_type=config.media_type)
    words = ["trtllm-serve", subject.model_reference, "--extra_llm_api_options", f"{CONFIG_FOLDER}/{config.name}"]
    words += ["--host", "0.0.0.0", "--port", "8000"]
    return _launch(subject, words, config, 8000, _hub_folders(), notes)


def _llama_cpp(subject: EmitSubject) -> Launch:
    """llama-server has no config file for one model: its arguments are the config."""
    config, notes = _own_config(subject)
    words = shlex.split(config.text.replace("\\\n", " "), comments=True)
    first = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    arguments = ["--host", "0.0.0.0", "--port", "8080", "--metrics"]
    environment = (("LLAMA_CACHE", f"{CACHE_FOLDER}/llama.cpp"),)
    return _launch(subject, ["/app/llama-server", *words[first:], *arguments], None, 8080, environment, notes)


def _launch(
    subject: EmitSubject,
    words: list[str],
    config: EmittedFile | None,
    port: int,
    environment: tuple[tuple[str, str], ...],
    notes: tuple[str, ...],
) -> Launch:
    image, image_notes = _image(subject)
    reference = PurePosixPath(subject.model_reference)
    is_file = reference.suffix in (".gguf", ".safetensors")
    generation = subject.budget.settings.get("engine_generation", "v1")
    metrics = engine_metrics(subject.engine, subject.version, generation=generation)
    return Launch(
        image=image,
        command=tuple(words),
        config=config,
        port=port,
        environment=environment,
        model_folder=str(reference.parent if is_file else reference) if reference.is_absolute() else None,
        metrics_path=metrics.path,
        notes=(*notes, *image_notes),
    )


def _image(subject: EmitSubject) -> tuple[str, tuple[str, ...]]:
    """The image of the very release that the budget was computed for: another one has other rules."""
    pattern = _IMAGES[subject.engine][subject.gpu.vendor]
    version = subject.version.removeprefix("v")
    if subject.engine == "llama.cpp" and version == load_rules("llama.cpp", None).version:
        return pattern.partition("-{version}")[0], (
            "the image has no build in its tag: pin it with @sha256 once it runs, or name a build with --engine",
        )
    notes = () if subject.gpu.vendor == "nvidia" else (f"check that the image has the tag of {subject.version}",)
    return pattern.format(version=version), notes


def _hub_folders() -> tuple[tuple[str, str], ...]:
    return (("HF_HOME", f"{CACHE_FOLDER}/hf"),)


_IMAGES = {
    "vllm": {"nvidia": "vllm/vllm-openai:v{version}", "amd": "vllm/vllm-openai-rocm:v{version}"},
    "sglang": {"nvidia": "lmsysorg/sglang:v{version}", "amd": "lmsysorg/sglang:v{version}-rocm700-mi30x"},
    "tensorrt-llm": {"nvidia": "nvcr.io/nvidia/tensorrt-llm/release:{version}"},
    "llama.cpp": {
        "nvidia": "ghcr.io/ggml-org/llama.cpp:server-cuda-{version}",
        "amd": "ghcr.io/ggml-org/llama.cpp:server-rocm-{version}",
        "intel": "ghcr.io/ggml-org/llama.cpp:server-intel-{version}",
    },
}
_STARTS = {"vllm": _vllm, "sglang": _sglang, "tensorrt-llm": _tensorrt_llm, "llama.cpp": _llama_cpp}
