"""The models that torchtitan can be told to build, by their own names.

Source: torchtitan 0.2.2, models/llama3/__init__.py, models/qwen3/__init__.py, models/deepseek_v3/__init__.py.
"""

from __future__ import annotations

from memplan.domain.model import ModelSpec

# By model type, hidden size and number of layers.
_FLAVORS = {
    ("llama", 4096, 32): ("llama3", "8B"),
    ("llama", 8192, 80): ("llama3", "70B"),
    ("llama", 16384, 126): ("llama3", "405B"),
    ("qwen3", 1024, 28): ("qwen3", "0.6B"),
    ("qwen3", 2048, 28): ("qwen3", "1.7B"),
    ("qwen3", 2560, 36): ("qwen3", "4B"),
    ("qwen3", 4096, 36): ("qwen3", "8B"),
    ("qwen3", 5120, 40): ("qwen3", "14B"),
    ("qwen3", 5120, 64): ("qwen3", "32B"),
    ("qwen3_moe", 2048, 48): ("qwen3", "30B-A3B"),
    ("qwen3_moe", 4096, 94): ("qwen3", "235B-A22B"),
    ("deepseek_v2", 2048, 27): ("deepseek_v3", "16B"),
    ("deepseek_v2", 5120, 60): ("deepseek_v3", "236B"),
    ("deepseek_v3", 7168, 61): ("deepseek_v3", "671B"),
}
_LLAMA3_WORDS = 128256


def find_flavor(spec: ModelSpec) -> tuple[str, str] | None:
    """Name and flavor of a model; None where torchtitan has none."""
    found = _FLAVORS.get((spec.model_type, spec.hidden_size, spec.num_layers))
    return None if found is not None and found[0] == "llama3" and spec.vocab_size != _LLAMA3_WORDS else found
