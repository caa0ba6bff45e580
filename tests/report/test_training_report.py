"""A training budget on every page: within its width, escaped, with the peak and the cheapest change where one looks."""

from __future__ import annotations

import json
from functools import cache

import pytest
from parsed_page import Page

from memplan.catalog.gpus import find_gpu
from memplan.domain.training_budget import TrainingBudget
from memplan.domain.training_question import TrainingQuestion
from memplan.engines.training.answer import TrainingAsked, answer_training
from memplan.pipeline import load_model
from memplan.records import replace
from memplan.report.layout import Style
from memplan.report.training_html import html_training
from memplan.report.training_json import training_json
from memplan.report.training_markdown import markdown_training
from memplan.report.training_text import render_training, render_training_table, render_training_verdict

QUESTIONS = {
    "lora": TrainingQuestion(method="lora", sequence_tokens=4096, micro_batch=2),
    "full": TrainingQuestion(method="full", num_gpus=8, precision="bf16"),
    "qlora": TrainingQuestion(method="qlora", checkpointing="full", optimizer="paged-adamw-8bit"),
}
HOSTILE = "a|b`<script>alert(1)</script>\x1b[31m\n# name"


@cache
def budget(name: str) -> TrainingBudget:
    spec = load_model("llama-3.1-8b", revision=None, offline=True, introspect="auto")
    return answer_training(TrainingAsked(spec=spec, gpu=find_gpu("rtx-4090"), question=QUESTIONS[name]))


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_page_keeps_within_its_width(name: str, width: int) -> None:
    text = render_training(budget(name), Style(width=width))
    assert [line for line in text.splitlines() if len(line) > width] == []


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_page_needs_no_colour_and_no_block_characters(name: str) -> None:
    text = render_training(budget(name), Style(unicode=False))
    assert "\x1b" not in text
    assert text.isascii()


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_bar_has_a_part_for_every_category_and_the_width_of_the_page(name: str) -> None:
    text = render_training(budget(name), Style(width=100, unicode=False))
    bar = next(line for line in text.splitlines() if line.startswith("["))
    assert len(bar) == 100
    assert len(set(bar[1:-1])) >= len({line.category for line in budget(name).lines})


def test_the_phase_that_peaks_is_marked_on_every_page() -> None:
    found = budget("lora")
    assert found.peak_phase == "backward"
    assert "> backward" in render_training(found, Style())
    assert "backward <" in markdown_training([found]).replace("\\<", "<")
    assert "backward &lt;" in html_training([found])
    assert json.loads(training_json([found]))["peak_phase"] == "backward"


def test_the_cheapest_change_is_named_first_and_marked_in_the_list() -> None:
    found = budget("lora")
    best = found.cheapest
    assert best is not None
    text = render_training(found, Style(width=160))
    assert f"Cheapest change that mends it: {best.change}" in text
    assert f"> {best.change}" in text
    assert f"**`{best.change}`**" in markdown_training([found])


def test_what_a_file_says_is_never_read_as_a_page() -> None:
    found = replace(budget("full"), model_name=HOSTILE, warnings=(HOSTILE,), gpu_name=HOSTILE)
    assert "<script>" not in html_training([found])
    assert "<script>" not in markdown_training([found]).replace("\\<script>", "")
    assert "\x1b[31m" not in render_training(found, Style())
    assert "\x1b[31m" not in render_training_verdict(found, Style(), named=True)
    assert json.loads(training_json([found]))["model"]["name"] == HOSTILE


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_html_page_is_well_formed_and_fetches_nothing(name: str) -> None:
    page = Page(html_training([replace(budget(name), warnings=(HOSTILE,))]))
    assert page.counts["table"] >= 2
    assert page.outside == []
    assert Page(html_training([budget("lora"), budget("full")])).counts["h2"] == 2


def test_tables_of_markdown_have_as_many_cells_in_every_row() -> None:
    width = 0
    for line in markdown_training([budget("full")]).splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = line.replace("\\|", "").count("|")
        assert width in (0, cells), line
        width = cells


def test_several_gpus_are_one_table_and_those_that_do_not_hold_it_are_named() -> None:
    several = [budget("lora"), budget("qlora")]
    text = render_training_table(several, ("t4", "l4"), Style())
    assert text.count("rtx-4090") == 2
    assert "Do not hold it: t4, l4." in text
    assert "No GPU holds it" in html_training([], ("t4",))
    assert "t4" in markdown_training([], ("t4",))
    assert json.loads(training_json([], ("t4",)))["left_out"] == ["t4"]
