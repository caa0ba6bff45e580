"""Training answers from profiles of a model's own code: the remembered one, or one that a child process makes first.

Nothing of torch is imported here. The child runs where the `profile` extra is installed, once for each model, setting
and release of the packages; after that the answer comes from the cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from memplan.cli.options import Given
from memplan.domain.training_budget import TrainingBudget
from memplan.domain.training_profile import ProfiledStep, TrainingProfile
from memplan.engines.training.answer import TrainingAsked
from memplan.engines.training.profile_cache import find_profile, plain_step
from memplan.engines.training.profiled import answer_profiled, changed_questions, profiled_step
from memplan.errors import MemplanError, MissingExtra, SourceError, UnsupportedModel, UsageError
from memplan.records import replace

_KINDS: dict[int, type[MemplanError]] = {2: UsageError, 3: SourceError, 4: UnsupportedModel, 5: MissingExtra}
_QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class ProfiledAnswers:
    """Answers questions about one model."""

    def __init__(self, given: Given) -> None:
        self._given = given

    def answer(self, asked: TrainingAsked) -> TrainingBudget:
        """Return the budget of a profiled step; of one that does not fit, changes are profiled as well.

        Raises: UsageError for what is not profiled; MissingExtra where nothing is remembered and nothing can run;
        UnsupportedModel, SourceError as the profile does.
        """
        step = profiled_step(asked)
        profile = self._find(step) or self._made([step])
        budget = answer_profiled(asked, profile, self._find)
        if asked.with_remedies and budget.verdict != "fits" and _can_run():
            questions = (replace(asked.question, **fields) for _, fields, _, _ in changed_questions(asked.question))
            steps = [profiled_step(replace(asked, question=each)) for each in questions]
            missing = [each for each in steps if self._find(each) is None]
            if missing:
                self._make(missing)
            budget = answer_profiled(asked, profile, self._find)
        return budget

    @cached_property
    def _config(self) -> Mapping[str, object]:
        from memplan.introspect.resolve import find_running_config

        given = self._given
        return find_running_config(given["model"], revision=given.get("revision"), offline=given.get("offline", False))[
            0
        ]

    @cached_property
    def _versions(self) -> dict[str, str]:
        from memplan.profile.packages import installed_versions

        return installed_versions()

    def _find(self, step: ProfiledStep) -> TrainingProfile | None:
        return find_profile(self._config, step, self._versions)

    def _made(self, steps: Sequence[ProfiledStep]) -> TrainingProfile:
        if not _can_run():
            raise MissingExtra(
                f"{self._given['model']} is answered by a profile of its own code, and none is remembered",
                hint="pip install 'memplan[profile]' and run this again: it is made once and then remembered",
            )
        self._make(steps)
        found = self._find(steps[0])
        if found is None:
            raise UnsupportedModel("the profile that was made cannot be read back", hint="set XDG_CACHE_HOME")
        return found

    def _make(self, steps: Sequence[ProfiledStep]) -> None:
        """Have a child make profiles. What it prints never reaches stdout."""
        many = f"{len(steps)} profiles" if len(steps) > 1 else "a profile"
        print(f"note: making {many} of the model's own code, which is remembered", file=sys.stderr, flush=True)
        names = ("model", "revision", "offline", "trust_remote_code")
        content: dict[str, Any] = {name: self._given.get(name) for name in names}
        content["steps"] = [plain_step(each) for each in steps]
        done = subprocess.run(
            [sys.executable, "-m", "memplan.profile.for_training"],
            input=json.dumps(content),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **_QUIET},
        )
        try:
            said = json.loads(done.stdout.splitlines()[-1])
            error = said.get("error")
        except (ValueError, IndexError, AttributeError):
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise UnsupportedModel(f"the profile's process died: {last[0][:200]}") from None
        if error:
            raise _KINDS.get(said.get("exit_code"), UnsupportedModel)(str(error), hint=said.get("hint"))


def _can_run() -> bool:
    """Whether the packages of a profile are there; none is imported."""
    return all(find_spec(name) is not None for name in ("torch", "transformers"))
