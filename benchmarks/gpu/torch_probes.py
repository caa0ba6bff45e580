"""What torch and the driver take by themselves: the terms of a budget that need no engine to be measured.

Each probe is a function of a meter and a `small` flag (tiny shapes, for a rehearsal on the CPU) that yields rows of
settings and bytes. Each is run in a fresh process, because contexts, handles and workspaces come once per process.
The shapes are those of vLLM's and transformers' own calls; the code is not theirs.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from meter import Meter, Reading, driver_free_bytes

Row = dict[str, Any]
Probe = Callable[[Meter, bool], Iterator[Row]]
MIB = 2**20


def context(meter: Meter, small: bool) -> Iterator[Row]:
    """Bytes outside torch after each first: the context, a kernel, a matrix product, a sort, a stream, a graph."""
    import torch

    free_before = driver_free_bytes()
    device = torch.device(meter.device)
    square = 64 if small else 2048
    kept: list[Any] = []

    def note(name: str) -> Row:
        now = meter.read()
        # Free bytes are what both ways of asking agree on; their totals differ by what the driver keeps back.
        before = None if free_before is None else now.device_total_bytes - free_before
        outside = None if before is None or meter.device != "cuda" else now.outside_bytes - before
        return {"after": name, "outside_bytes": outside, **_bytes(now)}

    if meter.device == "cuda":
        torch.cuda.init()
    yield note("context")
    kept.append(torch.empty(1024, device=device))
    yield note("first allocation")
    kept.append(torch.ones(square, square, device=device, dtype=torch.bfloat16) + 1)
    yield note("first kernel")
    kept.append(kept[-1] @ kept[-1])
    yield note("first matrix product")
    kept.append(torch.nn.functional.linear(kept[-1], kept[-1], kept[-1][0]))
    yield note("first product with a bias")
    kept.append(torch.rand(8, 32000, device=device).sort(dim=-1))
    yield note("first sort")
    kept.append(torch.rand(8, 32000, device=device).softmax(dim=-1).exponential_())
    yield note("first softmax and random numbers")
    query = torch.ones(1, 8, square, 128, device=device, dtype=torch.bfloat16)
    kept.append(torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True))
    yield note("first attention")
    if meter.device == "cuda":
        with torch.cuda.stream(torch.cuda.Stream()):
            kept.append(kept[2] @ kept[2])
        yield note("a product on a second stream")


def nccl(meter: Meter, small: bool) -> Iterator[Row]:
    """Bytes outside torch of a process group of one rank: made, used, and used for a gather."""
    import torch
    import torch.distributed as distributed

    tensor = torch.ones(1024 if small else MIB, device=meter.device)
    start = meter.restart()
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if meter.device == "cuda" else "gloo"
        distributed.init_process_group(backend, init_method=f"file://{folder}/meet", rank=0, world_size=1)
        yield _outside("group made", meter.restart(), start)
        distributed.all_reduce(tensor)
        yield _outside("first all-reduce", meter.restart(), start)
        distributed.all_gather([torch.empty_like(tensor)], tensor)
        yield _outside("first all-gather", meter.restart(), start)
        distributed.destroy_process_group()


def matmul_workspace(meter: Meter, small: bool) -> Iterator[Row]:
    """What cuBLAS and cuBLASLt keep inside the caching allocator, by the call, the type and the rows."""
    import torch

    width = 64 if small else 4096
    dtypes = (torch.bfloat16, torch.float32) if small else (torch.bfloat16, torch.float16, torch.float32)
    for dtype in dtypes:
        weight = torch.ones(width, width, device=meter.device, dtype=dtype)
        bias = weight[0].clone()
        for rows in (1, 16) if small else (1, 16, 256, 4096):
            rows_in = torch.ones(rows, width, device=meter.device, dtype=dtype)
            calls = {
                "product": lambda a=rows_in, w=weight: a @ w,
                "with a bias": lambda a=rows_in, w=weight, b=bias: torch.nn.functional.linear(a, w, b),
                "batched": lambda a=rows_in, w=weight: torch.bmm(a[None], w[None]),
            }
            for name, call in calls.items():
                if meter.device == "cuda":
                    torch._C._cuda_clearCublasWorkspaces()
                before = meter.restart()
                call()
                after = meter.read()
                yield {
                    "call": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "rows": rows,
                    "width": width,
                    "setting": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
                    "workspace_bytes": after.allocated_bytes - before.allocated_bytes,
                }


def allocator(meter: Meter, small: bool) -> Iterator[Row]:
    """One request on an empty allocator: what it counts as allocated, and what segment is taken for it."""
    import torch

    edges = (512, MIB, 2 * MIB, 10 * MIB, 20 * MIB) if small else (512, MIB, 2 * MIB, 10 * MIB, 20 * MIB, 100 * MIB)
    around = [1, *(size + step for size in edges for step in (-1, 0, 1)), 3 * MIB, 21 * MIB + 513]
    for size in around if small else [*around, 1000 * MIB + 1]:
        before = meter.restart()
        kept = torch.empty(size, dtype=torch.uint8, device=meter.device)
        after = meter.read()
        del kept
        yield {
            "asked_bytes": size,
            "allocated_bytes": after.allocated_bytes - before.allocated_bytes,
            "reserved_bytes": after.reserved_bytes - before.reserved_bytes,
            "setting": os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
        }


def reserved(meter: Meter, small: bool) -> Iterator[Row]:
    """Reserved against allocated, as passes of changing lengths follow one another through a layer."""
    import torch

    width, inner = (64, 128) if small else (4096, 14336)
    gate = torch.ones(width, 2 * inner, device=meter.device, dtype=torch.bfloat16)
    down = torch.ones(inner, width, device=meter.device, dtype=torch.bfloat16)
    meter.restart()
    lengths = (64, 3, 33) if small else (8192, 17, 4096, 8191, 1, 6000, 2048, 8192, 7777, 5, 8192)
    for step, tokens in enumerate(lengths):
        hidden = torch.ones(tokens, width, device=meter.device, dtype=torch.bfloat16)
        for _ in range(2):
            first, second = (hidden @ gate).chunk(2, dim=-1)
            hidden = hidden + (torch.nn.functional.silu(first) * second) @ down
        del first, second
        now = meter.read()
        yield {
            "step": step,
            "tokens": tokens,
            "setting": os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
            **_bytes(now),
        }


def sampler(meter: Meter, small: bool) -> Iterator[Row]:
    """Peak of sampling with torch alone: greedy, random, top-k and top-p by a full sort, log-probabilities."""
    import torch

    for vocabulary in (512, 1000) if small else (32000, 128256, 151936, 262144):
        for sequences in (2, 8) if small else (16, 256, 1024):
            logits = torch.rand(sequences, vocabulary, device=meter.device).to(torch.bfloat16)
            for name, step in _SAMPLING.items():
                row = {"step": name, "sequences": sequences, "vocabulary": vocabulary}
                yield {**row, **meter.peak(lambda logits=logits, step=step: step(logits))}
            del logits


def _greedy(logits: Any) -> Any:
    return logits.float().argmax(dim=-1)


def _random(logits: Any) -> Any:
    import torch

    chances = logits.float().div_(0.5).softmax(dim=-1)
    return chances.div_(torch.empty_like(chances).exponential_()).argmax(dim=-1)


def _top_k_top_p(logits: Any) -> Any:
    """Sort all logits, mask what top-k and top-p leave out, put the rest back in place, draw."""
    import torch

    logits = logits.float().div_(0.5)
    ordered, places = logits.sort(dim=-1, descending=False)
    at = torch.full((logits.shape[0], 1), 1, device=logits.device, dtype=torch.long)
    ordered.masked_fill_(ordered < ordered.gather(1, at), -float("inf"))
    running = ordered.softmax(dim=-1).cumsum(dim=-1)
    out = running <= 1 - 0.9
    out[:, -1] = False
    ordered.masked_fill_(out, -float("inf"))
    logits = logits.scatter_(dim=-1, index=places, src=ordered)
    chances = logits.softmax(dim=-1, dtype=torch.float32)
    return chances.div_(torch.empty_like(chances).exponential_()).argmax(dim=-1)


def _log_probabilities(logits: Any) -> Any:
    """Log-probabilities of all words, the 20 best, and the rank of the word that was drawn."""
    logits = logits.float()
    scores = logits.log_softmax(dim=-1)
    drawn = logits.argmax(dim=-1, keepdim=True)
    best = scores.topk(20, dim=-1)
    rank = (scores >= scores.gather(-1, drawn)).sum(-1)
    return best, rank


_SAMPLING: dict[str, Callable[[Any], Any]] = {
    "greedy": _greedy,
    "random": _random,
    "top-k and top-p": _top_k_top_p,
    "log-probabilities": _log_probabilities,
}


def attention(meter: Meter, small: bool) -> Iterator[Row]:
    """What attention takes beyond its inputs and its result, by kernel, length and grouping of heads."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    heads, width = (4, 16) if small else (32, 128)
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        for tokens in (32, 64) if small else (512, 2048, 8192):
            for kv_heads in (heads, heads // 4):
                shape = {"batch": 1, "tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_size": width}
                query = torch.ones(1, heads, tokens, width, device=meter.device, dtype=torch.bfloat16)
                key = torch.ones(1, kv_heads, tokens, width, device=meter.device, dtype=torch.bfloat16)

                def call(query: Any = query, key: Any = key, backend: Any = backend) -> Any:
                    with sdpa_kernel(backend):
                        return torch.nn.functional.scaled_dot_product_attention(
                            query, key, key, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
                        )

                row = {"kernel": backend.name.lower(), **shape}
                try:
                    with torch.no_grad():
                        yield {**row, **meter.peak(call), "result_bytes": query.nbytes}
                except RuntimeError as error:  # a kernel that does not take this shape, or memory that ran out
                    yield {**row, "problem": str(error).splitlines()[0][:200]}


def graphs(meter: Meter, small: bool) -> Iterator[Row]:
    """What captured graphs take, inside their pool and outside torch, by how many kernels each holds."""
    import torch

    if meter.device != "cuda":
        yield {"kernels": 0, "graphs": 0, "outside_bytes": 0, "pool_bytes": 0}
        return
    weight = torch.ones(1024, 1024, device="cuda", dtype=torch.bfloat16)
    for kernels in (20, 200, 1000):
        start = meter.restart()
        pool, captured = torch.cuda.graph_pool_handle(), []
        rows_in = torch.ones(256, 1024, device="cuda", dtype=torch.bfloat16)
        for number in range(1, 17):
            rows = rows_in[: 256 // number]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                hidden = rows
                for _ in range(kernels // 2):
                    hidden = torch.relu_(hidden @ weight)
            captured.append(graph)
            if number in (1, 2, 4, 8, 16):
                now = meter.read()
                yield {
                    "kernels": kernels,
                    "graphs": number,
                    "outside_bytes": now.outside_bytes - start.outside_bytes,
                    "pool_bytes": now.reserved_bytes - start.reserved_bytes,
                }
        del captured, graph, hidden


def compiled(meter: Meter, small: bool) -> Iterator[Row]:
    """Bytes outside torch that loaded Triton kernels take, by their number (each a kernel of its own)."""
    import torch

    start = meter.restart()
    values = torch.ones(4096, device=meter.device)
    for number in range(1, 3 if small else 17):
        with contextlib.suppress(Exception):  # without a compiler there is nothing to measure; the rows then say so
            torch.compile(lambda x, number=number: torch.sin(x + number) * number, dynamic=False)(values)
        now = meter.read()
        yield {"kernels": number, "outside_bytes": now.outside_bytes - start.outside_bytes}


def forward(meter: Meter, small: bool) -> Iterator[Row]:
    """Peak of a gated MLP above its input, without gradients, by tokens and widths."""
    import torch

    for width, inner in ((64, 128),) if small else ((4096, 14336), (8192, 28672), (2048, 6144)):
        gate = torch.ones(2 * inner, width, device=meter.device, dtype=torch.bfloat16)
        down = torch.ones(width, inner, device=meter.device, dtype=torch.bfloat16)
        for tokens in (8, 32) if small else (256, 2048, 8192, 16384):
            hidden = torch.ones(tokens, width, device=meter.device, dtype=torch.bfloat16)

            def call(hidden: Any = hidden, gate: Any = gate, down: Any = down) -> Any:
                with torch.no_grad():
                    first, second = torch.nn.functional.linear(hidden, gate).chunk(2, dim=-1)
                    return torch.nn.functional.linear(torch.nn.functional.silu(first) * second, down)

            yield {"tokens": tokens, "width": width, "inner": inner, **meter.peak(call)}
        del gate, down


def _bytes(now: Reading) -> Row:
    return {
        "allocated_bytes": now.allocated_bytes,
        "reserved_bytes": now.reserved_bytes,
        "allocated_peak_bytes": now.allocated_peak_bytes,
        "reserved_peak_bytes": now.reserved_peak_bytes,
        "inactive_split_bytes": now.inactive_split_bytes,
    }


def _outside(name: str, now: Reading, start: Reading) -> Row:
    return {"after": name, "outside_bytes": now.outside_bytes - start.outside_bytes}


# name -> (probe, environment, a first guess at its seconds). The allocator reads its settings once per process.
PROBES: dict[str, tuple[Probe, dict[str, str], int]] = {
    "context": (context, {}, 15),
    "matmul_workspace": (matmul_workspace, {}, 10),
    "sampler": (sampler, {}, 15),
    "allocator": (allocator, {}, 10),
    "allocator_expandable": (allocator, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, 10),
    "reserved": (reserved, {}, 10),
    "reserved_expandable": (reserved, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, 10),
    "attention": (attention, {}, 15),
    "forward": (forward, {}, 15),
    "graphs": (graphs, {}, 20),
    "compiled": (compiled, {}, 60),
    "nccl": (nccl, {}, 20),
    "context_eager_modules": (context, {"CUDA_MODULE_LOADING": "EAGER"}, 30),
}
