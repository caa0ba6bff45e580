"""Serving engines: each turns a model, a GPU and settings into a MemoryBudget by its own rules at a given release.

Engines compose the formulas of `budget` with the versioned rule tables of `catalog/engines`. An engine is one folder or
file here and one line in `registry`.
"""
