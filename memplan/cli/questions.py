"""From given options to questions for the pipeline: every device, engine and weight scheme that was named."""

from __future__ import annotations

import sys

from memplan.cli.options import Given
from memplan.cli.serving_options import Device, listed, parse_devices, serving_settings
from memplan.domain.holders import Holders
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.pipeline import Question
from memplan.records import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a command line asks: the model as loaded, the settings, and what they are asked of.

    `devices` is empty when no GPU was named. `schemes` and `engines` have one entry when none was named: the
    checkpoint's own storage (None), and the default engine.
    """

    given: Given
    spec: ModelSpec
    settings: ServingSettings
    devices: tuple[Device, ...]
    engines: tuple[tuple[str, str | None], ...]
    schemes: tuple[str | None, ...]

    def questions(self) -> list[Question]:
        """One question per device, engine and scheme, in the order they were named."""
        return [
            self.question(device, engine, scheme)
            for device in self.devices
            for engine in self.engines
            for scheme in self.schemes
        ]

    def holders(self) -> Holders:
        """What the model needs when no GPU was named, and which GPUs hold it."""
        from memplan.catalog.gpus import usual_gpus
        from memplan.pipeline import find_holders

        gpus = usual_gpus()
        return find_holders(self.question(Device(gpu=gpus[0]), self.engines[0], self.schemes[0]), gpus)

    def question(self, device: Device, engine: tuple[str, str | None], scheme: str | None) -> Question:
        """The question of one device, engine and scheme."""
        from memplan.pipeline import with_scheme

        settings = replace(self.settings, quant=scheme, gpu_free_bytes=device.free_bytes)
        if engine[0] == "transformers":
            from memplan.cli.corrections import read_corrections

            settings = replace(settings, corrections=read_corrections(device.gpu.name, self.spec.name))
        else:
            from memplan.catalog.rules import load_rules
            from memplan.cli.start_up_corrections import read_start_ups

            release = load_rules(*engine).version
            ranks = settings.layout.num_ranks
            learned = read_start_ups(engine[0], release, device.gpu.name, self.spec.name, ranks)
            settings = replace(settings, corrections=learned)
        return Question(
            spec=with_scheme(self.spec, scheme),
            base_spec=self.spec,
            gpu=device.gpu,
            settings=settings,
            engine=engine[0],
            version=engine[1],
            num_gpus=device.count,
            sharing=self.given.get("sharing", 1),
            with_remedies=not self.given.get("quiet"),
        )


def _with_config(given: Given) -> Given:
    """Fill in what the engine config that is named says; what was given before wins."""
    if "config" not in given:
        return given
    from memplan.cli.engine_config import merged, read_engine_config

    found, notes = read_engine_config(given["config"], given.get("engine"))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    both = merged(given, found)
    return {name: value for name, value in both.items() if name != "config"}


def ask(given: Given) -> Asked:
    """Read a command's options into what they ask; a config file and the directory's state fill in what is missing.

    Raises: MemplanError for a bad value, an unknown name or a model that cannot be read.
    """
    from memplan.cli.state import filled_in
    from memplan.engines.registry import parse_engine
    from memplan.pipeline import load_draft, load_model

    given = _with_config(filled_in(_with_config(given)))
    engines = tuple(parse_engine(name) for name in listed(given, "engine")) or (parse_engine(None),)
    if "set" in given and {name for name, _ in engines} == {"vllm"}:
        from memplan.cli.engine_config import with_own_names

        given = with_own_names(given, "vllm")
    devices = parse_devices(given.get("gpu"), memory=given.get("gpu_memory"), free=given.get("gpu_free"))
    settings = serving_settings(given)
    source = {
        "revision": given.get("revision"),
        "offline": given.get("offline", False),
        "introspect": given.get("introspect", "auto"),
        "trust_remote_code": given.get("trust_remote_code", False),
    }
    spec = load_model(given["model"], **source)
    if draft := given.get("draft_model"):
        settings = replace(settings, draft=load_draft(spec, draft, **source))
    online = given.get("online_quant") if not spec.quantization else None
    schemes: tuple[str | None, ...] = listed(given, "quant") or (online,)
    return Asked(given=given, spec=spec, settings=settings, devices=devices, engines=engines, schemes=schemes)
