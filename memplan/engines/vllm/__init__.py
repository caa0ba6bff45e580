"""vLLM 0.2 to 0.33: its defaults, its profiling run, its cache groups, and the budget they make."""
