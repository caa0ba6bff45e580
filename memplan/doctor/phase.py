"""At which stage of its life an engine was when memory ran out: from the functions on the stack, and from what it had
already said.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Literal

Stage = Literal["load", "profile", "sampler", "kv", "graphs", "serving", "unknown"]

# The most telling first: profiling calls the model, too, and capture calls the sampler.
_FUNCTIONS: tuple[tuple[Stage, re.Pattern[str]], ...] = (
    ("sampler", re.compile(r"in _dummy_sampler_run\b|warming up sampler")),
    (
        "graphs",
        re.compile(
            r"in (?:capture_model|capture_one_batch_size|_?capture_cudagraphs?|init_(?:cuda|device)_graphs?|capture|"
            r"_warmup_and_capture|capture_graphs?)\b|cuda_?graph(?:_runner|_utils)?\.py|torch\.cuda\.graph\(|"
            r"in (?:capture_begin|__enter__)\b.{0,80}graphs\.py"
        ),
    ),
    (
        "kv",
        re.compile(
            r"in (?:_?allocate_kv_cache\w*|initialize_kv_cache\w*|allocate_gpu_cache|_create_buffers|init_memory_pool|"
            r"init_cache_engine|_init_cache_engine|initialize_from_config|initialize_cache)\b|cache_engine\.py|memory_pool\.py"
        ),
    ),
    (
        "profile",
        re.compile(
            r"in (?:profile_run|determine_num_available_blocks|determine_available_memory|profile_num_available_blocks|"
            r"_dummy_run|_initialize_kv_caches|profile_max_num_token\w*|_profile_multimodal|profile_cudagraph_memory)\b"
        ),
    ),
    (
        "load",
        re.compile(
            r"in (?:load_model|load_weights|create_weights|process_weights_after_loading|_?initialize_model|get_model|"
            r"from_pretrained|load_state_dict|_load_\w+|init_model|set_module_tensor_to_device|weight_loader)\b|"
            r"model_loader|model_executor/parameter\.py"
        ),
    ),
    (
        "serving",
        re.compile(
            r"in (?:execute_model|forward_batch_generation|event_loop_\w+|run_busy_loop|process_batch_result|"
            r"step_async|engine_step|run_batch|forward_extend|forward_decode|_process_engine_step)\b"
        ),
    ),
)
_RANK = {stage: rank for rank, (stage, _) in enumerate(_FUNCTIONS)}
_NEAR = 160  # lines of one traceback, with those of the ranks beside it
# What an engine says when a stage is over or begins, and the stage that it is in from then on.
_MILESTONES: tuple[tuple[Stage, tuple[str, ...]], ...] = (
    ("load", ("vllm", "sglang_begin", "llama_cpp")),
    ("profile", ("vllm_weights", "vllm_media", "sglang_loaded", "trtllm_weights", "trtllm_engine")),
    (
        "graphs",
        ("vllm_kv_tokens", "vllm_blocks", "vllm_concurrency", "vllm_capturing", "sglang_pool_end", "sglang_capture"),
    ),
    (
        "serving",
        ("vllm_ready", "vllm_graphs", "vllm_stats", "sglang_ready", "sglang_tokens", "sglang_stats", "llama_ready"),
    ),
)
_NAMED = {name: stage for stage, names in _MILESTONES for name in names}


class Phase:
    """The stage so far. `at` gives the stage of something that is met on a line."""

    def __init__(self) -> None:
        self.said: Stage = "unknown"
        self._stacked: deque[tuple[int, Stage]] = deque(maxlen=256)

    def stacked(self, line: int, text: str) -> None:
        """Take a line of a traceback in."""
        for stage, functions in _FUNCTIONS:
            if functions.search(text):
                self._stacked.append((line, stage))
                return

    def met(self, name: str) -> None:
        """Take a message of the engine in."""
        stage = _NAMED.get(name)
        order = ("unknown", "load", "profile", "graphs", "serving")
        if stage is not None and (self.said == "unknown" or order.index(stage) > order.index(self.said)):
            self.said = stage

    def stack_near(self, line: int) -> Stage:
        """The most telling stage among functions near a line, before and after it; unknown without any."""
        near = [stage for at, stage in self._stacked if abs(at - line) <= _NEAR]
        return min(near, key=lambda stage: _RANK[stage]) if near else "unknown"
