"""Tasks of EleutherAI's lm-eval: a model answers benchmark questions, scored by that library and not by memplan.

Source: lm-eval 0.4.13, `simple_evaluate` and its results, whose keys are `metric,filter` and `metric_stderr,filter`.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memplan.domain.quality import Figure, TaskScore
from memplan.errors import MissingExtra, Offline, SourceNotFound, UnsupportedModel, UsageError, did_you_mean
from memplan.quantize.forward import first_line, load_whole
from memplan.quantize.windows import load_tokenizer
from memplan.records import replace


def task_names(text: str) -> tuple[str, ...]:
    """Return the tasks of `--tasks`, which are names of lm-eval or YAML files.

    Raises: MissingExtra without the library; UsageError where none is named.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtra("--tasks needs lm-eval, which is not installed", hint="pip install lm-eval")
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError("--tasks names none", hint="such as --tasks hellaswag,arc_easy")
    return names


def run_tasks(
    path: Path,
    names: Sequence[str],
    *,
    base_path: Path | None = None,
    device: str = "cpu",
    max_documents: int = 0,
    seed: int = 0,
    offline: bool = False,
    trust_remote_code: bool = False,
) -> tuple[TaskScore, ...]:
    """Score a model on tasks, and its base beside it; the whole model is in memory.

    Raises: UsageError for an unknown task; Offline, SourceNotFound where its data are not at hand; UnsupportedModel.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager()
    known = list(manager.all_tasks)
    for name in names:
        if name not in known and not Path(name).is_file():
            hint = did_you_mean(name, known) or "a name that `lm-eval ls tasks` shows, or the YAML file of a task"
            raise UsageError(f"unknown task: `{name}`", hint=hint)
    if offline:
        _forbid_network()
    runs = [
        _scores(each, names, manager, device, max_documents, seed, trust_remote_code)
        for each in (path, base_path)
        if each is not None
    ]
    if len(runs) == 1:
        return runs[0]
    base = {(each.task, each.metric, each.filter): each.score for each in runs[1]}
    return tuple(replace(each, base=base[each.task, each.metric, each.filter]) for each in runs[0])


def _scores(
    path: Path,
    names: Sequence[str],
    manager: Any,
    device: str,
    max_documents: int,
    seed: int,
    trust_remote_code: bool,
) -> tuple[TaskScore, ...]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=load_whole(path, device, trust_remote_code),
        tokenizer=load_tokenizer(path, trust_remote_code=trust_remote_code),
        backend="causal",
        batch_size=8,
    )
    try:
        found = simple_evaluate(
            model,
            tasks=list(names),
            task_manager=manager,
            limit=max_documents or None,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            log_samples=False,
        )
    except ConnectionError as error:
        raise Offline(
            f"the data of --tasks {','.join(names)} are not on this disk: {first_line(error)}",
            hint="run once with a network, or give the YAML file of a task over files of your own",
        ) from error
    except OSError as error:
        raise SourceNotFound(
            f"cannot read the data of --tasks {','.join(names)}: {first_line(error)}",
            hint="look at the data_files of the task",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise UnsupportedModel(
            f"lm-eval could not run {','.join(names)}: {type(error).__name__}: {first_line(error)}",
            hint="try each task alone, and with another release of lm-eval",
        ) from error
    return _of_results(found or {})


def _of_results(found: Mapping[str, Any]) -> tuple[TaskScore, ...]:
    """The figures of lm-eval's results, in its order; groups are among them."""
    scores = []
    for task, results in found.get("results", {}).items():
        documents = found.get("n-samples", {}).get(task, {}).get("effective", 0)
        for key, value in results.items():
            metric, comma, chain = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = results.get(f"{metric}_stderr,{chain}")
            error = float(error) if isinstance(error, (int, float)) else float("nan")
            score = Figure(mean=float(value), standard_error=error)
            scores.append(TaskScore(task=task, metric=metric, filter=chain, documents=int(documents), score=score))
    return tuple(scores)


def _forbid_network() -> None:
    """What HF_HUB_OFFLINE says, which `datasets` and the hub's client have read when they were imported."""
    import datasets

    datasets.config.HF_HUB_OFFLINE = True
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_OFFLINE = True
