"""Reads torchtitan configs with torchtitan's own manager and prints them: run by an interpreter that has it."""

import dataclasses
import json
import sys

from torchtitan.config.manager import ConfigManager

made = []
for path in sys.argv[1:]:
    made.append(dataclasses.asdict(ConfigManager().parse_args(["--job.config_file", path])))
print(json.dumps(made, default=str))
