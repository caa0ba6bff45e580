"""vLLM's own answer to where cache blocks go: runs in vLLM's interpreter, reads questions and writes answers as JSON.

For every question (one line on stdin) the engine's configuration is made as a server would make it, the model's class
is laid out on the meta device, its layers are asked for their cache specs, and vLLM groups and sizes them. The process
pretends to have a GPU (see pretend_cuda.py). One line of JSON answers each question.

A question: {"config": folder, "capability": [9, 0], "engine": {EngineArgs...}, "contexts": [...],
"memories": [...], "limit": tokens of the longest request that is looked for}.
An answer: {"layers": ..., "runs": [{"context", "memory", "blocks", "groups", "tokens", "concurrency", ...}]} or
{"problem": text}.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import sys
import traceback
from typing import Any, ClassVar

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

NAMES = {(8, 0): "NVIDIA A100-SXM4-80GB", (9, 0): "NVIDIA H100 80GB HBM3", (10, 0): "NVIDIA B200"}
GIB = 1 << 30


def main() -> None:
    """Answer questions until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever vLLM prints goes to stderr
    capability = tuple(int(part) for part in sys.argv[1].split("."))
    from pretend_cuda import pretend

    _allow_known_config_names()
    pretend(capability, int(sys.argv[2]), NAMES[capability])
    for line in sys.stdin:
        try:
            answer = plan(json.loads(line))
        except Exception as error:  # every failure is an answer, the next question may do better
            text = " ".join(str(error).split())
            where = traceback.extract_tb(error.__traceback__)[-1]
            answer = {
                "problem": f"{type(error).__name__}: {text[:300]} ({os.path.basename(where.filename)}:{where.lineno})"
            }
            if os.environ.get("KV_ORACLE_TRACE"):
                traceback.print_exc()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _allow_known_config_names() -> None:
    """Old releases bring config classes that newer transformers has by itself, under the same names."""
    from transformers import AutoConfig

    register = AutoConfig.register
    AutoConfig.register = staticmethod(lambda name, config, exist_ok=False: register(name, config, exist_ok=True))


def plan(question: dict[str, Any]) -> dict[str, Any]:
    """Build the model of one question and size its cache for every context and memory."""
    config = engine_config(question)
    specs = layer_specs(config)
    runs = [
        sized(config, specs, context, memory, question["limit"])
        for context in question["contexts"]
        for memory in question["memories"]
    ]
    cache, scheduler = config.cache_config, config.scheduler_config
    return {
        "layers": describe(specs.values()),
        "kv_dtype": cache.cache_dtype,
        "prefix_caching": cache.enable_prefix_caching,
        "state_mode": getattr(cache, "mamba_cache_mode", None),
        "max_num_seqs": scheduler.max_num_seqs,
        "batched_tokens": scheduler.max_num_batched_tokens,
        "in_flight_tokens": getattr(config, "max_in_flight_tokens", None),
        "runs": runs,
    }


def engine_config(question: dict[str, Any]) -> Any:
    """The configuration that a server with these arguments would start with."""
    from pretend_cuda import pretend_ranks
    from vllm.engine.arg_utils import EngineArgs

    _learn_config(question["config"])
    asked = dict(question["engine"])
    ranks = asked.get("tensor_parallel_size", 1)
    if ranks > 1:
        asked["distributed_executor_backend"] = "mp"
    longest = max(question["contexts"])
    arguments = EngineArgs(
        model=question["config"], skip_tokenizer_init=True, load_format="dummy", max_model_len=longest, **asked
    )
    pretend_ranks(ranks)
    return arguments.create_engine_config()


def _learn_config(folder: str) -> None:
    """Let transformers read a config whose class is only in the model's own repository: as it is, without defaults."""
    from transformers import AutoConfig, PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        name = json.load(file).get("model_type", "")
    if name and name not in CONFIG_MAPPING and name not in _CONFIG_REGISTRY:
        AutoConfig.register(name, type("RepositoryConfig", (PretrainedConfig,), {"model_type": name}))


def layer_specs(config: Any) -> dict[str, Any]:
    """Lay the model (and its draft) out on the meta device and ask its layers what they cache."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform

    _make_workspace()
    usual = torch.get_default_dtype()
    torch.set_default_dtype(config.model_config.dtype)
    try:
        with set_current_vllm_config(config, check_compile=False), torch.device("meta"):
            initialize_model(vllm_config=config)
            draft = config.speculative_config
            if draft is not None and draft.draft_model_config is not None:
                initialize_model(vllm_config=config, model_config=draft.draft_model_config, prefix="draft")
    finally:
        torch.set_default_dtype(usual)
    if hasattr(type(current_platform), "update_block_size_for_backend"):
        current_platform.update_block_size_for_backend(config)
    with set_current_vllm_config(config, check_compile=False):
        return _asked_by_the_runner(config)


def _make_workspace() -> None:
    """Some attention layers reserve a place in the worker's workspace when they are made."""
    import torch

    try:
        from vllm.v1.worker.workspace import init_workspace_manager, is_workspace_manager_initialized
    except ImportError:
        return
    if not is_workspace_manager_initialized():
        init_workspace_manager(torch.device("meta"))


def _asked_by_the_runner(config: Any) -> dict[str, Any]:
    """What the model runner collects from the layers; the V2 runner's function where there is one."""
    if getattr(config, "use_v2_model_runner", False):
        from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec

        found = get_kv_cache_spec(config)
    else:
        from types import SimpleNamespace

        from vllm.v1.worker import gpu_model_runner as runner

        kv_dtype = config.cache_config.cache_dtype
        types = getattr(runner, "STR_DTYPE_TO_TORCH_DTYPE", {})
        model = config.model_config
        stand_in = SimpleNamespace(
            vllm_config=config,
            model_config=model,
            cache_config=config.cache_config,
            speculative_config=config.speculative_config,
            kv_cache_dtype=model.dtype if kv_dtype == "auto" else types.get(kv_dtype),
            attention_chunk_size=getattr(model, "attention_chunk_size", None),
            shared_kv_cache_layers={},
        )
        stand_in._maybe_pad_mamba_page_size = getattr(
            runner.GPUModelRunner, "_maybe_pad_mamba_page_size", lambda *_: None
        ).__get__(stand_in)
        found = runner.GPUModelRunner.get_kv_cache_spec(stand_in)
    return dict(found)


def sized(config: Any, specs: dict[str, Any], context: int, memory: int, limit: int) -> dict[str, Any]:
    """vLLM's plan for one context and one size of cache memory."""
    config.model_config.max_model_len = context
    cache = config.cache_config
    if getattr(cache, "mamba_cache_mode", "none") == "none" and getattr(cache, "mamba_block_size", None):
        cache.mamba_block_size = context
        specs = {name: _for_context(spec, context) for name, spec in specs.items()}
    run: dict[str, Any] = {"context": context, "memory": memory}
    if not specs:
        return run | {"blocks": 0, "groups": [], "tokens": 0, "concurrency": 0.0}
    resolve_layout(config, specs)
    planned, groups = make_plan(config, specs, memory)
    tokens, concurrency = printed(config, planned)
    return run | {
        "blocks": planned.num_blocks,
        "groups": [describe_group(group) for group in groups],
        "tokens": tokens,
        "concurrency": concurrency,
        "block_size": smallest_block(groups),
        "longest": longest_request(config, groups, memory, limit),
    }


def _for_context(spec: Any, context: int) -> Any:
    """A state of which no prefixes are cached stands for the whole context."""
    return dataclasses.replace(spec, block_size=context) if type(spec).__name__ == "MambaSpec" else spec


def smallest_block(groups: list[Any]) -> int:
    """The smallest block of the groups that hold tokens; of states where there are only states."""
    specs = [group.kv_cache_spec for group in groups]
    holding = [spec for spec in specs if type(spec).__name__ != "MambaSpec"] or specs
    return int(min(spec.block_size for spec in holding))


def resolve_layout(config: Any, specs: dict[str, Any]) -> None:
    """Choose the cache layout as the engine's core does, from 0.28 on, with the layouts that the backends take."""
    try:
        from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts, resolve_kv_cache_layout
    except ImportError:
        return
    from vllm.config import set_current_vllm_config
    from vllm.v1.worker.worker_base import get_current_attn_backends

    with set_current_vllm_config(config, check_compile=False):
        layouts = [layout.name for layout in get_supported_kv_cache_layouts(get_current_attn_backends(config))]
    resolve_kv_cache_layout(config, [layouts], list(specs.values()))


def make_plan(config: Any, specs: dict[str, Any], memory: int) -> tuple[Any, list[Any]]:
    """The plan of a single worker, made without asking whether one request fits, and the groups before it."""
    planning = _planning_module()
    for check in ("_check_enough_kv_cache_memory", "check_enough_kv_cache_memory"):
        if hasattr(planning, check):
            setattr(planning, check, lambda *_, **__: None)
    planning.logger = Listener()
    if hasattr(planning, "get_global_kv_cache_groups"):
        groups = planning.get_global_kv_cache_groups(config, [dict(specs)])
        plan = planning.get_kv_cache_configs(config, [dict(specs)], [memory], groups)[0]
    elif hasattr(planning, "get_kv_cache_configs"):
        plan = planning.get_kv_cache_configs(config, [dict(specs)], [memory])[0]
    else:
        plan = planning.get_kv_cache_config(config, dict(specs), memory)
    return plan, plan.kv_cache_groups


def _planning_module() -> Any:
    try:
        from vllm.v1.core import kv_cache_planning as planning
    except ImportError:
        from vllm.v1.core import kv_cache_utils as planning
    return planning


class Listener:
    """A logger that remembers what the planner prints."""

    heard: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._hear

    def _hear(self, text: object, *values: object, **_: object) -> None:
        values = tuple(value for value in values if not str(value).startswith("LogScope"))
        self.heard.append(str(text) % values if values else str(text))


def printed(config: Any, plan: Any) -> tuple[int, float]:
    """The tokens and the concurrency of the start-up lines."""
    from vllm.v1.core import kv_cache_utils as utils

    if hasattr(utils, "get_kv_cache_capacity"):
        tokens, concurrency = utils.get_kv_cache_capacity(config, utils.generate_scheduler_kv_cache_config([plan]))
        return int(tokens), float(concurrency)
    tokens = concurrency = 0
    for line in Listener.heard:
        if match := re.search(r"KV cache size: ([\d,]+) tokens", line):
            tokens = int(match[1].replace(",", ""))
        if match := re.search(r"Maximum concurrency .*: ([\d.]+)x", line):
            concurrency = float(match[1])
    Listener.heard.clear()
    return tokens, concurrency


def longest_request(config: Any, groups: list[Any], memory: int, limit: int) -> int | None:
    """The longest request that vLLM would offer for this memory, up to `limit`; None before it could say."""
    planning = _planning_module()
    estimate = getattr(planning, "_estimate_max_model_len_from_groups", None)
    if estimate is None:
        return None
    if len(groups) > 1 and "any_spec" in inspect.getsource(planning._max_memory_usage_bytes_from_groups):
        return None  # until 0.18 only the first group was counted
    config.model_config.max_model_len = limit
    pool = getattr(planning, "_pool_bytes_per_block", None)
    if pool is not None and "null block" in inspect.getsource(planning.get_kv_cache_configs):
        # The start-up check, which is what calls this, leaves out the block that the pool holds back.
        memory -= pool(config, groups) if len(inspect.signature(pool).parameters) == 2 else pool(groups)
    if hasattr(planning, "DefaultKVCacheConfigBuilder"):
        return int(estimate(planning.DefaultKVCacheConfigBuilder(), config, groups, memory))
    return int(estimate(config, groups, memory))


def describe_group(group: Any) -> dict[str, Any]:
    """One group: its layers and what kind of pages they have."""
    return {"layers": len(group.layer_names), **one(group.kv_cache_spec)}


def describe(specs: Any) -> list[dict[str, Any]]:
    """Equal layers once, with how many there are."""
    counts: dict[str, int] = {}
    for spec in specs:
        text = json.dumps(one(spec))
        counts[text] = counts.get(text, 0) + 1
    return [{"count": count, **json.loads(text)} for text, count in counts.items()]


def one(spec: Any) -> dict[str, Any]:
    """The facts of one spec that decide sizes."""
    facts = {"kind": type(spec).__name__, "block_size": spec.block_size, "page_bytes": spec.page_size_bytes}
    for name in ("num_kv_heads", "head_size", "head_size_v", "sliding_window", "attention_chunk_size", "shapes"):
        value = getattr(spec, name, None)
        if value is not None:
            facts[name] = value
    return facts


if __name__ == "__main__":
    main()
