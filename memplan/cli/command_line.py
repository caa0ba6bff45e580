"""A command line as a person would type it, from the options that were given or filled in."""

from __future__ import annotations

import shlex

from memplan.cli.options import MODEL, PLAN_OPTIONS, PLAN_TRAINING_OPTIONS, SIMULATE_OPTIONS, WORKLOAD, Given

# What a search or a simulation is asked, and what it found does not depend on.
_ASKED_OF_A_SEARCH = frozenset(option.name for option in (*PLAN_OPTIONS, *PLAN_TRAINING_OPTIONS, *SIMULATE_OPTIONS))


def command_line(command: str, given: Given, **more: str) -> str:
    """Return the line that gives `given` its options again, in any directory. `more` are options of the command."""
    words = ["memplan", command]
    if MODEL.name in given:
        words.append(str(given[MODEL.name]))
    for name, option in WORKLOAD.items():
        value = given.get(name)
        if name == MODEL.name or name in _ASKED_OF_A_SEARCH:
            continue
        if value is None or (option.kind is bool and option.flags and not value):
            continue
        flag = option.flags[-1] if option.flags else f"--{name.replace('_', '-')}"
        if option.kind is bool:
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif option.kind == list[str]:
            for item in value:
                words += [flag, str(item)]
        else:
            words += [flag, str(value)]
    for name, text in more.items():
        words += [f"--{name}", text]
    return shlex.join(words)
