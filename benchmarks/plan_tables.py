"""The decision matrix of the field, as the planner answers it now: one row for every recipe of recipes/plan/.

python benchmarks/plan_tables.py
"""

from __future__ import annotations

from pathlib import Path

import yaml

from memplan.cli.plan_recipes import read_recipe, surprises_of
from memplan.cli.plan_request import plan_request
from memplan.pipeline import load_model
from memplan.plan.search import search
from memplan.report import plan_words as words

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "plan"
_HEAD = "| when | scenario | plan | requests/s | $/hour |\n|---|---|---|---:|---:|"


def plans_table() -> str:
    """Return the table as Markdown. Raises: SystemExit when a recipe is not answered as it expects."""
    rows = [_HEAD]
    for path in sorted(RECIPES.glob("*.yaml"), key=lambda path: (_when(path), path.stem)):
        expected, scenario = read_recipe(path)
        spec = load_model(scenario["model"], revision=None, offline=True, introspect="auto")
        answer = search(spec, plan_request(scenario, spec), with_nearest=False)
        if surprises := surprises_of(expected, answer):
            raise SystemExit(f"{path.name}: {'; '.join(surprises)}")
        winner = answer.winner
        link = f"[{expected.title}](recipes/plan/{path.name})"
        if winner is None:
            limits = ", ".join(words.LIMITS[limit] for limit in answer.binding)
            rows.append(f"| {_when(path)} | {link} | no plan: {limits} | - | - |")
            continue
        price = f"{winner.usd_per_hour:,.2f}" if winner.usd_per_hour is not None else "-"
        plan = (
            f"{words.gpus(winner)}, {winner.engine}, {words.cut(winner)}, "
            f"{winner.weights_scheme}, cache {words.cache(winner)}"
        )
        rows.append(f"| {_when(path)} | {link} | {plan} | {winner.speed.request_per_s:.2g} | {price} |")
    return "\n".join(rows)


def _when(path: Path) -> str:
    return str(yaml.safe_load(path.read_text(encoding="utf-8"))["recipe"]["when"])


if __name__ == "__main__":
    print(plans_table())
