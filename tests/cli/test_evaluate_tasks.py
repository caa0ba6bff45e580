"""`memplan evaluate --tasks`: lm-eval's own score of a task over local files, and one line where that cannot be."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest
from memplan_in_process import Memplan

pytest.importorskip("torch")
pytest.importorskip("transformers")

HAS_LM_EVAL = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not HAS_LM_EVAL, reason="lm-eval is not installed")
SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "memplan.quality.json"
FEW = ("--text", "code", "--max-documents", "1", "--window", "256", "--device", "cpu")
TASK = """\
task: endings
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: "{{{{ends}}}}"
doc_to_target: "{{{{right}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def endings(tmp_path: Path) -> Path:
    """A task of which sentence ends in words, and which in the same letters shuffled."""
    rows = [
        {"start": "The heart pumps", "ends": [" blood through the body.", " odolb hguorht eht ydob."], "right": 0},
        {"start": "def add(a, b):", "ends": ["\n   nruter )a +b(", "\n    return a + b"], "right": 1},
    ]
    data = tmp_path / "endings.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "endings.yaml"
    path.write_text(TASK.format(data=data))
    return path


@pytest.mark.skipif(HAS_LM_EVAL, reason="lm-eval is installed")
def test_without_lm_eval_its_install_command_is_named(memplan_here: Memplan) -> None:
    done = memplan_here("evaluate", "demo", *FEW, "--tasks", "hellaswag")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == "error: --tasks needs lm-eval, which is not installed\n\nhint: pip install lm-eval\n"


def test_tasks_and_a_rounded_cache_exclude_each_other(memplan_here: Memplan) -> None:
    done = memplan_here("evaluate", "demo", *FEW, "--tasks", "hellaswag", "--kv-dtype", "fp8")
    assert done.returncode == 2
    assert "--tasks run with the model's own cache" in done.stderr


@needs_lm_eval
def test_a_task_over_local_files_is_scored_beside_the_base(memplan_here: Memplan, endings: Path) -> None:
    done = memplan_here("evaluate", "demo", "--text", "code", "--max-documents", "2", "--window", "256",
                        "--device", "cpu", "--tasks", str(endings), "--against", "demo", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    jsonschema.validate(content, json.loads(SCHEMA.read_text()))
    (score,) = content["tasks"]
    assert (score["task"], score["metric"], score["filter"], score["documents"]) == ("endings", "acc", "none", 2)
    assert score["score"]["mean"] == 1.0
    assert score["base"] == score["score"]


@needs_lm_eval
def test_the_page_has_a_line_for_every_task(memplan_here: Memplan, endings: Path) -> None:
    done = memplan_here("evaluate", "demo", *FEW, "--tasks", str(endings))
    assert done.returncode == 0, done.stderr
    assert next(line for line in done.stdout.splitlines() if line.startswith("endings")).split()[:2] == [
        "endings",
        "acc",
    ]


@needs_lm_eval
def test_a_task_that_nothing_is_called_by_is_one_line(memplan_here: Memplan) -> None:
    done = memplan_here("evaluate", "demo", *FEW, "--tasks", "helaswag")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: unknown task: `helaswag`" in done.stderr
    assert "hellaswag" in done.stderr.partition("hint: ")[2]


@needs_lm_eval
def test_data_that_are_on_no_disk_are_named_when_offline(memplan_here: Memplan) -> None:
    done = memplan_here("evaluate", "demo", *FEW, "--tasks", "hellaswag", "--offline")
    assert (done.returncode, done.stdout) == (3, "")
    assert "error: the data of --tasks hellaswag are not on this disk: " in done.stderr


@needs_lm_eval
def test_a_task_whose_file_is_gone_is_one_line(memplan_here: Memplan, endings: Path) -> None:
    endings.with_name("endings.jsonl").unlink()
    done = memplan_here("evaluate", "demo", *FEW, "--tasks", str(endings))
    assert (done.returncode, done.stdout) == (3, "")
    assert "error: cannot read the data of --tasks" in done.stderr
