"""The style sheet of the HTML page: light and dark by the reader's preference, and fit for paper.

Colours are variables, so that a figure needs no script to change with the theme. Text keeps a contrast of 4.5 to 1
and marks one of 3 to 1 against what is behind them, in both themes (WCAG 2.2, AA).
"""

from __future__ import annotations

from collections.abc import Iterable

LIGHT = {
    "page": "#ffffff",
    "card": "#f6f8fa",
    "text": "#1b1f24",
    "muted": "#57606a",
    "rule": "#d0d7de",
    "link": "#0b5cad",
    "fits": "#116329",
    "tight": "#7d4e00",
    "no": "#a40e26",
    "weights": "#2563c9",
    "activation_peak": "#b4540a",
    "cuda_graph": "#7a3fd0",
    "non_torch": "#80660a",
    "kv_asked": "#1a7f45",
    "kv_spare": "#4d9a6c",
    "outside_budget": "#6e7781",
    "unused": "#8c959f",
    "missing": "#c1272d",
    "gradients": "#a8246e",
    "workspace": "#0e6f80",
    "on": "#ffffff",
    "heat0": "#dff3e6",
    "heat1": "#a9dcbc",
    "heat2": "#5fb784",
    "heat3": "#17643a",
    "heat0-text": "#1b1f24",
    "heat1-text": "#1b1f24",
    "heat2-text": "#10151a",
    "heat3-text": "#ffffff",
}
DARK = {
    "page": "#0d1117",
    "card": "#161b22",
    "text": "#e6edf3",
    "muted": "#9aa4af",
    "rule": "#3d444d",
    "link": "#79b8ff",
    "fits": "#56d364",
    "tight": "#e3b341",
    "no": "#ff8078",
    "weights": "#5e9bf5",
    "activation_peak": "#f0a35e",
    "cuda_graph": "#c39bff",
    "non_torch": "#d9b93b",
    "kv_asked": "#56d364",
    "kv_spare": "#2f9150",
    "outside_budget": "#9aa4af",
    "unused": "#6e7681",
    "missing": "#ff7b72",
    "gradients": "#ff8ac4",
    "workspace": "#39c5cf",
    "on": "#05080b",
    "heat0": "#12301d",
    "heat1": "#1a512f",
    "heat2": "#2f9150",
    "heat3": "#7ee2a0",
    "heat0-text": "#e6edf3",
    "heat1-text": "#e6edf3",
    "heat2-text": "#05080b",
    "heat3-text": "#05080b",
}
BAR_KEYS = (
    "weights",
    "activation_peak",
    "cuda_graph",
    "non_torch",
    "kv_asked",
    "kv_spare",
    "outside_budget",
    "unused",
    "missing",
    "gradients",
    "workspace",
)

_RULES = """
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 3rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .25rem; overflow-wrap: anywhere }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem }
p { margin: .5rem 0 }
a { color: var(--link) }
code { font: .9em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere }
.sub, .note, caption, footer { color: var(--muted) }
.verdict { border-left: .4rem solid var(--muted); background: var(--card); padding: .75rem 1rem; margin: 1rem 0;
  border-radius: .25rem }
.verdict p { overflow-wrap: anywhere }
.verdict.fits { border-color: var(--fits) }
.verdict.tight { border-color: var(--tight) }
.verdict.does_not_fit { border-color: var(--no) }
.verdict ul { margin: .25rem 0; padding-left: 1.25rem }
.word { font-weight: 700 }
.fits .word, td.fits { color: var(--fits) }
.tight .word, td.tight { color: var(--tight) }
.does_not_fit .word, td.does_not_fit { color: var(--no) }
td.fits, td.tight, td.does_not_fit { font-weight: 600 }
figure { margin: 1rem 0 }
figcaption { color: var(--muted); margin-bottom: .25rem }
.scroll { overflow-x: auto }
.scroll:focus-visible { outline: 2px solid var(--link) }
svg { display: block; width: 100%; min-width: 34rem; height: auto }
svg text { font: 12px system-ui, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--text) }
svg .faint { fill: var(--muted) }
svg .axis { stroke: var(--muted); stroke-width: 1 }
svg .end { stroke: var(--text); stroke-width: 2 }
svg .whisker { stroke: var(--text); stroke-width: 1.5 }
svg .frame { fill: none; stroke: var(--muted) }
svg .grid { stroke: var(--rule) }
svg .box { fill: var(--card); stroke: var(--rule) }
svg .halo { paint-order: stroke; stroke: var(--page); stroke-width: 4px }
svg .on { fill: var(--on) }
table { border-collapse: collapse; font-size: .9rem; width: 100% }
caption { text-align: left; padding: 0 0 .35rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--rule) }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom }
tbody th { font-weight: 400 }
tr.sum th, tr.sum td:nth-child(2) { font-weight: 600 }
tr.part th { padding-left: 1.6rem }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
tr.best th { font-weight: 600 }
table.lines { min-width: 46rem }
table.largest { min-width: 54rem }
.largest th, .largest td:nth-child(2), .largest td:nth-child(3) { white-space: nowrap }
.largest td { overflow-wrap: anywhere }
table.wide { font-size: .85rem }
.wide th, .wide td { white-space: nowrap; padding: .3rem .45rem }
.lines th:first-child { min-width: 11rem }
.lines td:nth-child(4), .lines thead th { white-space: nowrap }
.lines td:last-child { color: var(--muted); overflow-wrap: anywhere; font-size: .8rem; width: 22% }
.key { list-style: none; margin: .5rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .15rem 1.1rem;
  font-size: .9rem }
.key span { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; vertical-align: -.05rem;
  border: 1px solid var(--muted) }
.key .line { height: 0; border: 0; border-top: 2px solid var(--text); vertical-align: .25rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .5rem 0 }
dt { color: var(--muted) }
dd { margin: 0 }
footer { margin-top: 3rem; border-top: 1px solid var(--rule); padding-top: .75rem; font-size: .85rem }
@media print {
  main { max-width: none; padding: 0 }
  body { font-size: 10pt; -webkit-print-color-adjust: exact; print-color-adjust: exact }
  h2 { break-before: page }
  h2.first { break-before: auto }
  h3, figcaption, caption { break-after: avoid }
  figure, tr, .verdict { break-inside: avoid }
  .scroll { overflow: visible }
  svg { min-width: 0 }
}
"""


def style_sheet() -> str:
    """Return the style sheet of every page; paper takes the light colours."""
    fills = "\n".join(f".c-{key} {{ fill: var(--{key}); background: var(--{key}) }}" for key in BAR_KEYS)
    steps = range(4)
    heat = "\n".join(f"rect.h{n} {{ fill: var(--heat{n}) }} text.h{n} {{ fill: var(--heat{n}-text) }}" for n in steps)
    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}"
    scheme = ":root { color-scheme: light dark; " + _variables(LIGHT) + " }"
    return "\n".join([scheme, dark, fills, heat, ".c-unused { fill: none; background: none }", _RULES.strip()])


def line_style(colors: Iterable[str]) -> str:
    """Return the rules of curves in these colours, for pages that draw some."""
    return "\n".join(f"svg .line-{color} {{ fill: none; stroke: var(--{color}); stroke-width: 2 }}" for color in colors)


def _variables(colors: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colors.items())
