"""TensorRT-LLM 0.8 to 1.3: its two flows, what profiling measures, its cache blocks, and the budget they make."""
