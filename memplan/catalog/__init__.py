"""Facts as data, each with its source: GPUs, models, and how they are named. No formulas, no network."""
