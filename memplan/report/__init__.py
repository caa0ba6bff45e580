"""Budgets as text, Markdown, HTML and JSON. Renderers compute nothing and never look at the terminal: width and colour
are arguments."""
