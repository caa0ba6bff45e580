"""An offline batch with vLLM's `LLM` class: the same options as vllm.yaml, as keyword arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator

from memplan.catalog.option_tables import load_option_table
from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit.vllm_yaml import entries, environment
from memplan.emit.words import header
from memplan.emit.yaml_text import Entry, comment
from memplan.errors import UsageError

FILE_NAME = "batch.py"
_JSON_OPTIONS = ("limit-mm-per-prompt", "speculative-config")


def emit(subject: EmitSubject) -> Emission:
    """Return batch.py. Raises: UsageError for several replicas, which one LLM does not have."""
    options = load_option_table("vllm", subject.version)
    if subject.settings.layout.data > 1:
        raise UsageError("one LLM has one replica", hint="leave --dp out, and start the script once for each replica")
    variables = "".join(f"{name}={value} " for name, value in environment(subject).items())
    lines = [
        *comment(header(subject, f"{variables}python {FILE_NAME}")),
        "from vllm import LLM, SamplingParams",
        "",
        "",
    ]
    lines += ["def main() -> None:", "    llm = LLM("]
    if options.form("model") == "command":
        lines.append(f"        model={json.dumps(subject.model_reference)},")
    for entry in entries(subject, options):
        lines += [f"        {line}" for line in (comment([entry.why]) if entry.why else [])]
        lines.append(f"        {_argument(entry)},")
    lines += ["    )", *_usage()]
    return Emission(files=(EmittedFile(name=FILE_NAME, text="\n".join(lines) + "\n", media_type="text/x-python"),))


def _argument(entry: Entry) -> str:
    name, value = entry.key.replace("-", "_"), entry.value
    if name.startswith("no_") and value is True:
        return f"{name.removeprefix('no_')}=False"
    if value == "false":
        return f"{name}=False"
    if entry.key in _JSON_OPTIONS and isinstance(value, str):
        value = json.loads(value) if value.startswith("{") else _pairs(value)
    return f"{name}={json.dumps(value) if isinstance(value, str) else repr(value)}"


def _pairs(text: str) -> dict[str, int]:
    return {name: int(count) for name, _, count in (part.partition("=") for part in text.split(","))}


def _usage() -> Iterator[str]:
    yield from (
        '    prompts = ["Why is the sky blue?"]',
        "    for output in llm.generate(prompts, SamplingParams(max_tokens=256)):",
        "        print(output.outputs[0].text)",
        "",
        "",
        "# The processes that vLLM starts read this file again; without this line they would start more of them.",
        'if __name__ == "__main__":',
        "    main()",
    )
