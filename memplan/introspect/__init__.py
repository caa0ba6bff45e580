"""From anything a person names to a ModelSpec: catalogue, hub, directory, config, safetensors, GGUF.

This is the only part of memplan, beside `doctor`, that may talk to a network. It knows checkpoints and configs; it
knows no GPU, no engine and no budget.
"""
