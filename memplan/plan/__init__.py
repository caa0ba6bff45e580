"""The search for a way to serve: candidates, what rules them out, which is best for a goal.

Knows models, GPUs, engines and prices through the rooms below; knows no files, no terminal and no network.
"""
