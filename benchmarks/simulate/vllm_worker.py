"""Replays requests through vLLM's own scheduler, a step at a time, and says what it did. Runs under an interpreter that
has vLLM; reads JSON cases, one a line, on stdin and answers each with one line.

A case names a folder with a model, the engine's arguments, the size of the pool and the requests, which arrive at a
step. `mode` "engine" runs vLLM's LLMEngine with the model, token by token; "scheduler" takes that engine's scheduler
alone, made anew for the case, and hands it made-up tokens, which allows traffic of any size; "asynchronous" ones are
served by the engine core's own queue of two batches, as on GPUs: the CPU's platform turns that off. What is read is the
same:
after every `schedule()` the blocks that are in use, the requests that run and wait, the tokens that were scheduled and
the preemptions so far.

A request's tokens follow from the ids of its texts, as `memplan.domain.simulation.Traffic` has them.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import json
import os
import random
import sys
from collections.abc import Callable
from typing import Any

os.environ.update(
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_LOGGING_LEVEL="ERROR",
    HF_HUB_OFFLINE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
)
_FIRST_TOKEN, _TOKENS = 3, 250


def main() -> None:
    """Answer the cases of stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever vLLM prints goes to stderr
    engines: dict[str, Any] = {}
    for line in sys.stdin:
        case = json.loads(line)
        answers.write(json.dumps(run(case, engines)) + "\n")
        answers.flush()


def run(case: dict[str, Any], engines: dict[str, Any]) -> dict[str, Any]:
    """Serve one case and return its steps."""
    key = json.dumps([case["model"], case["engine"], case["pool_blocks"] if case["mode"] == "engine" else 0])
    if key not in engines:
        engines.clear()  # one at a time fits in memory
        engines[key] = make_engine(case)
    engine = engines[key]
    if case["mode"] == "engine":
        driver: Any = WholeEngine(engine)
    elif case.get("asynchronous"):
        driver = QueueOfTwo(engine, case)
    else:
        driver = SchedulerAlone(engine, case)
    return replay(driver, case)


def make_engine(case: dict[str, Any]) -> Any:
    """vLLM's engine in this process."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    blocks = 1 + (case["pool_blocks"] if case["mode"] == "engine" else 1000)  # and the null block
    arguments = EngineArgs(
        model=case["model"], dtype="bfloat16", enforce_eager=True, num_gpu_blocks_override=blocks, **case["engine"]
    )
    return LLMEngine.from_engine_args(arguments)


def replay(driver: Any, case: dict[str, Any]) -> dict[str, Any]:
    """Hand the requests over at their steps until all have finished."""
    traffic = Requests(case["traffic"])
    names = ("held", "running", "waiting", "tokens", "preemptions")
    rows: dict[str, list[int]] = {name: [] for name in names}
    steps: list[int] = []
    step = 0
    while traffic.left():
        for index in traffic.due(step):
            driver.add(index, traffic.prompt(index), traffic.output_tokens[index], traffic.answer(index))
        if driver.is_busy():
            finished = driver.step()
            steps.append(step)
            for name, value in zip(names, driver.seen, strict=True):
                rows[name].append(value)
            for index, tokens in finished:
                traffic.finish(index, step + 1, tokens)
        step += 1
        if step > case.get("max_steps", 100_000):
            break
    return {
        "name": case["name"],
        "vllm": driver.version,
        "groups": driver.groups,
        "block_tokens": driver.block_tokens,
        "steps": steps,
        **rows,
        "finished": traffic.finished_at,
        "cached_tokens": [driver.cached.get(index, 0) for index in range(len(traffic.arrivals))],
    }


class Requests:
    """The requests of a case: when they come, and what their tokens are."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.arrivals: list[int] = columns["arrivals"]
        self.prompt_tokens: list[int] = columns["prompt_tokens"]
        self.output_tokens: list[int] = columns["output_tokens"]
        count = len(self.arrivals)
        self._prefixes = columns.get("prefixes", [])
        self._prefix_of = columns.get("prefix_of") or [-1] * count
        self._stream_of = columns.get("stream_of") or [-1] * count
        self._follows = columns.get("follows") or [-1] * count
        self._due: dict[int, list[int]] = {}
        for index, after in enumerate(self._follows):
            if after < 0:
                self._due.setdefault(self.arrivals[index], []).append(index)
        self.finished_at = [-1] * count
        self._texts: dict[str, tuple[random.Random, list[int]]] = {}
        self._written: dict[int, list[int]] = {}

    def left(self) -> bool:
        return any(step < 0 for step in self.finished_at)

    def due(self, step: int) -> list[int]:
        return self._due.pop(step, [])

    def finish(self, index: int, step: int, tokens: list[int]) -> None:
        """Note the end of a request; what follows it is due after its pause."""
        self.finished_at[index] = step
        self._written[index] = tokens
        for after, before in enumerate(self._follows):
            if before == index:
                self._due.setdefault(step + self.arrivals[after], []).append(after)

    def prompt(self, index: int) -> list[int]:
        """The tokens of a prompt. A turn that follows another of its stream begins with what was said there."""
        length = self.prompt_tokens[index]
        before = self._follows[index]
        if before >= 0 and self._stream_of[before] == self._stream_of[index] >= 0:
            said = self._written[before]
            return (said + self._own(index)[len(said) :])[:length]
        return self._own(index)[:length]

    def answer(self, index: int) -> list[int]:
        """The tokens that the answer should have, where they are made up."""
        return self._own(index)[self.prompt_tokens[index] :]

    def _own(self, index: int) -> list[int]:
        pieces = self._prefixes[self._prefix_of[index]] if self._prefix_of[index] >= 0 else []
        tokens = [token for content, length in pieces for token in self._text(f"piece {content}", length)]
        total = self.prompt_tokens[index] + self.output_tokens[index]
        stream = self._stream_of[index]
        name = f"stream {stream}" if stream >= 0 else f"request {index}"
        return (tokens + self._text(name, max(0, total - len(tokens))))[:total]

    def _text(self, name: str, length: int) -> list[int]:
        draw, tokens = self._texts.setdefault(name, (random.Random(name), []))
        while len(tokens) < length:
            tokens.append(_FIRST_TOKEN + draw.randrange(_TOKENS))
        return tokens[:length]


class WholeEngine:
    """vLLM's LLMEngine with its model, watched through its scheduler."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._core = engine.engine_core.engine_core
        self._watch = Watch(self._core.scheduler)
        self.version, self.groups, self.block_tokens = describe(self._core.scheduler)
        self.cached: dict[int, int] = {}
        self._core.scheduler.reset_prefix_cache()

    @property
    def seen(self) -> tuple[int, ...]:
        return self._watch.seen

    def add(self, index: int, prompt: list[int], output_tokens: int, answer: list[int]) -> None:
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True, detokenize=False)
        self._engine.add_request(str(index), {"prompt_token_ids": prompt}, sampling)

    def is_busy(self) -> bool:
        return bool(self._engine.has_unfinished_requests())

    def step(self) -> list[tuple[int, list[int]]]:
        done = []
        for output in self._engine.step():
            if output.num_cached_tokens is not None:
                self.cached.setdefault(int(output.request_id), output.num_cached_tokens)
            if output.finished:
                tokens = [*output.prompt_token_ids, *output.outputs[0].token_ids]
                done.append((int(output.request_id), tokens))
        return done


class SchedulerAlone:
    """vLLM's scheduler and cache manager, with tokens that nobody computed."""

    is_async = False

    def __init__(self, engine: Any, case: dict[str, Any]) -> None:
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

        base = engine.engine_core.engine_core.scheduler
        config = copy.copy(base.vllm_config)
        config.scheduler_config = copy.copy(config.scheduler_config)
        config.cache_config = copy.copy(config.cache_config)
        for name, value in case.get("scheduler", {}).items():
            assert hasattr(config.scheduler_config, name), name
            setattr(config.scheduler_config, name, value)
        cache = copy.copy(base.kv_cache_config)
        cache.num_blocks = config.cache_config.num_gpu_blocks = case["pool_blocks"] + 1
        config.cache_config.enable_prefix_caching = case["prefix_caching"]
        block = case.get("block_tokens", base.block_size)  # the CPU's kernels only have multiples of 32
        cache.kv_cache_groups = [
            dataclasses.replace(group, kv_cache_spec=dataclasses.replace(group.kv_cache_spec, block_size=block))
            for group in cache.kv_cache_groups
        ]
        config.cache_config.block_size = block
        config.scheduler_config.async_scheduling = self.is_async
        self._scheduler = self._made(type(base))(
            vllm_config=config,
            kv_cache_config=cache,
            structured_output_manager=base.structured_output_manager,
            block_size=block,
            hash_block_size=block,
            log_stats=False,
        )
        hasher = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hasher)
        self._hash = get_request_block_hasher(block, hasher)
        self._watch = Watch(self._scheduler)
        self._answers: dict[str, list[int]] = {}
        self._served: dict[str, Any] = {}
        self.version, self.groups, self.block_tokens = describe(self._scheduler)
        self.cached: dict[int, int] = {}

    def _made(self, kind: type) -> type:
        """The class of the scheduler."""
        return kind

    @property
    def seen(self) -> tuple[int, ...]:
        return self._watch.seen

    def add(self, index: int, prompt: list[int], output_tokens: int, answer: list[int]) -> None:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        sampling = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True, detokenize=False)
        request = Request(
            request_id=str(index),
            prompt_token_ids=prompt,
            sampling_params=sampling,
            pooling_params=None,
            block_hasher=self._hash,
        )
        self._answers[str(index)] = answer
        self._scheduler.add_request(request)

    def is_busy(self) -> bool:
        return self._scheduler.get_num_unfinished_requests() > 0

    def step(self) -> list[tuple[int, list[int]]]:
        output = self._scheduler.schedule()
        self._scheduler.update_from_output(output, self._computed(output))
        return self._ended()

    def _ended(self) -> list[tuple[int, list[int]]]:
        """The requests of the last step that have ended, with their tokens."""
        return [(int(name), list(each.all_token_ids)) for name, each in self._served.items() if each.is_finished()]

    def _computed(self, output: Any) -> Any:
        """What the model would have made of a step."""
        from vllm.v1.outputs import ModelRunnerOutput

        for new in output.scheduled_new_reqs:
            self.cached.setdefault(int(new.req_id), new.num_computed_tokens)
        names = list(output.num_scheduled_tokens)
        requests = self._served = {name: self._scheduler.requests[name] for name in names}
        starts = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        starts.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        sampled = []
        for name in names:
            request = requests[name]
            made = starts[name] + output.num_scheduled_tokens[name] >= request.num_tokens
            sampled.append([self._answers[name][request.num_output_tokens]] if made else [])
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: place for place, name in enumerate(names)},
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )


class QueueOfTwo(SchedulerAlone):
    """vLLM's asynchronous scheduler under the engine core's own queue of batches: a step is scheduled before the tokens
    of the one before are known. Only the model is made up.
    """

    is_async = True

    def __init__(self, engine: Any, case: dict[str, Any]) -> None:
        super().__init__(engine, case)
        self._core = copy.copy(engine.engine_core.engine_core)
        self._core.scheduler = self._scheduler
        self._core.model_executor = self
        self._core.batch_queue_size = 2
        self._core.batch_queue = collections.deque(maxlen=2)
        self._scheduled: Any = None

    def _made(self, kind: type) -> type:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler

        return AsyncScheduler

    def step(self) -> list[tuple[int, list[int]]]:
        self._served = {}
        self._core.step_with_batch_queue()
        return self._ended()

    def execute_model(self, output: Any, non_block: bool) -> Later:
        """What the core asks of its workers first: of a step without tokens this is its result."""
        self._scheduled = output
        return Later(lambda: self._computed(output))

    def sample_tokens(self, grammar: Any, non_block: bool) -> Later:
        """What it asks then; the answer is waited for a step later."""
        output = self._scheduled
        return Later(lambda: self._computed(output))


class Later:
    """A result that is made when somebody waits for it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.result = make


class Watch:
    """Reads a scheduler right after it has scheduled a step."""

    def __init__(self, scheduler: Any) -> None:
        self.seen: tuple[int, ...] = ()
        self._preemptions = 0
        plain_schedule, plain_preempt = scheduler.schedule, scheduler._preempt_request
        pool = scheduler.kv_cache_manager.block_pool

        def preempt(*given: Any, **named: Any) -> Any:
            self._preemptions += 1
            return plain_preempt(*given, **named)

        def schedule(*given: Any, **named: Any) -> Any:
            output = plain_schedule(*given, **named)
            held = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
            running, waiting = scheduler.get_request_counts()
            self.seen = (held, running, waiting, output.total_num_scheduled_tokens, self._preemptions)
            return output

        scheduler.schedule, scheduler._preempt_request = schedule, preempt


def describe(scheduler: Any) -> tuple[str, list[dict[str, Any]], int]:
    """vLLM's release, what its groups of layers keep, and the scheduler's block."""
    import vllm

    groups = [
        {
            "kind": type(group.kv_cache_spec).__name__,
            "block_tokens": group.kv_cache_spec.block_size,
            "window_tokens": getattr(group.kv_cache_spec, "sliding_window", None),
            "layers": len(group.layer_names),
        }
        for group in scheduler.kv_cache_config.kv_cache_groups
    ]
    return vllm.__version__, groups, scheduler.block_size


if __name__ == "__main__":
    main()
