"""Why a run went out of memory: logs, tracebacks, configs and servers read as evidence, and a cause named from it.

Nothing that is read is executed or trusted: sizes, lines and counts are bounded, and secrets are never repeated.
"""
