"""Profiles made by hand for the tests of the reports: small, complete, and independent of any recorder."""

from __future__ import annotations

from dataclasses import replace

from made_budgets import HOSTILE

from memplan.domain.timeline import (
    Category,
    Compared,
    Finding,
    Level,
    LiveTensor,
    MemoryTimeline,
    ModuleShare,
    OutOfMemory,
    Phase,
    PhaseMemory,
    Roof,
    Sample,
    Work,
)
from memplan.units import GIB, MIB

NUM_LAYERS = 32
ROOF = Roof(flops_per_s=312e12, moved_bytes_per_s=2039e9)


def at_peak(peak: dict[Category, int]) -> tuple[ModuleShare, ...]:
    """What was alive, by category and module: most of it in equal layers."""
    found = []
    for category, size in peak.items():
        layers = size * 3 // 4
        found.append(ModuleShare(category=category, module="lm_head", operator="aten.mm", size_bytes=size - layers))
        for number, name in enumerate(("self_attn.q_proj", "mlp.down_proj", "mlp.up_proj")):
            part = layers // 3 if number else layers - 2 * (layers // 3)
            module = f"model.layers.*.{name}"
            found.append(
                ModuleShare(category=category, module=module, operator="aten.mm", size_bytes=part, count=NUM_LAYERS)
            )
    return tuple(share for share in found if share.size_bytes)


def level(allocated_bytes: int, reserved_bytes: int = 0, split_bytes: int = 0) -> Level:
    return Level(
        allocated_bytes=allocated_bytes,
        reserved_bytes=max(reserved_bytes, allocated_bytes),
        inactive_split_bytes=split_bytes,
        requested_bytes=allocated_bytes,
    )


def by_module(weights_bytes: int, others_bytes: int) -> dict[str, int]:
    """A decoder's modules: an embedding, equal layers of attention and MLP, a head."""
    outside = weights_bytes // 8
    a_layer = (weights_bytes - outside) // NUM_LAYERS
    found = {"model.embed_tokens": outside // 2, "lm_head": outside - outside // 2 + others_bytes}
    for number in range(NUM_LAYERS):
        found[f"model.layers.{number}.self_attn"] = a_layer // 3
        found[f"model.layers.{number}.mlp"] = a_layer - a_layer // 3
    found[""] = weights_bytes + others_bytes - sum(found.values())
    return {name: size for name, size in found.items() if size}


def phase(
    name: Phase,
    *,
    before: int,
    after: int,
    peak: dict[Category, int],
    reserved: int | None = None,
    split: int = 0,
    work: Work | None = None,
    largest: tuple[LiveTensor, ...] = (),
    iteration: int = 0,
    left: int = 0,
) -> PhaseMemory:
    total = sum(peak.values())
    held = reserved if reserved is not None else total + split
    return PhaseMemory(
        phase=name,
        before=level(before),
        peak=level(total, held, split),
        after=level(after, held),
        peak_reserved_bytes=held,
        by_category=peak,
        by_module=by_module(peak.get("weights", 0), total - peak.get("weights", 0)),
        largest=largest,
        work=work,
        iteration=iteration,
        num_allocations=1234,
        left_bytes=left,
    )


LOGITS = LiveTensor(
    size_bytes=MIB * 500,
    category="activations",
    module="lm_head",
    operator="aten.linear",
    where="modeling_llama.py:480 forward",
    shape=(1, 2048, 128256),
    dtype="bfloat16",
)
CACHE = LiveTensor(
    size_bytes=256 * MIB,
    category="kv_cache",
    module="model.layers.*.self_attn",
    operator="aten.cat",
    where="cache_utils.py:110 update",
    shape=(1, 8, 2048, 128),
    dtype="bfloat16",
    count=64,
)


def serving() -> MemoryTimeline:
    """A model of 15 GiB that loads, reads a prompt and writes, on a GPU with room to spare; with everything said."""
    weights = 15 * GIB
    load = phase("load", before=0, after=weights, peak={"weights": weights})
    prefill = phase(
        "prefill",
        before=weights,
        after=weights + GIB // 4,
        peak={"weights": weights, "kv_cache": GIB // 4, "activations": GIB, "workspace": 8 * MIB},
        split=100 * MIB,
        work=Work(flops=33 * 10**12, moved_bytes=40 * GIB, seconds=0.2),
        largest=(LOGITS, CACHE),
    )
    decodes = [
        phase(
            "decode",
            before=weights + GIB // 4,
            after=weights + GIB // 4,
            peak={"weights": weights, "kv_cache": GIB // 4 + number * MIB, "activations": 20 * MIB},
            reserved=prefill.peak_reserved_bytes,
            work=Work(flops=16 * 10**9, moved_bytes=16 * GIB),
            iteration=number,
        )
        for number in range(4)
    ]
    return MemoryTimeline(
        model_name="example/Llama-8B",
        architecture="LlamaForCausalLM",
        device="simulated",
        device_name="rtx-0000",
        settings={
            "phases": ["load", "prefill", "decode"],
            "dtype": "bfloat16",
            "batch": 1,
            "prompt_tokens": 2048,
            "output_tokens": 4,
            "attention": "flash",
            "cache": "dynamic",
            "lora_rank": None,
        },
        phases=(load, prefill, *decodes),
        samples=samples((load, prefill, *decodes)),
        at_peak=at_peak(prefill.by_category),
        capacity_bytes=23 * GIB,
        outside_bytes=470 * MIB,
        roof=ROOF,
        findings=(
            Finding(
                code="logits",
                title="the logits of all tokens are made at once",
                evidence="aten.linear in lm_head holds 500.0 MiB of the 16.26 GiB at the peak of prefill",
                mend="keep the last position alone: logits_to_keep=1",
                saves_bytes=499 * MIB,
                severity="warning",
            ),
            Finding(
                code="bound",
                title="decode is bound by bandwidth",
                evidence="0.9 FLOPs a byte, the ridge is at 153",
                mend="larger batches or narrower weights",
            ),
        ),
        compared=(
            Compared(
                phase="prefill",
                term="weights",
                measured_bytes=weights,
                estimated_bytes=weights,
                low_bytes=weights - 40 * MIB,
                high_bytes=weights + 40 * MIB,
            ),
            Compared(
                phase="prefill",
                term="activations",
                measured_bytes=GIB,
                estimated_bytes=GIB // 2,
                low_bytes=GIB // 2 - MIB,
                high_bytes=GIB // 2 + MIB,
            ),
        ),
        warnings=("example: a note",),
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
    )


def samples(phases: tuple[PhaseMemory, ...]) -> tuple[Sample, ...]:
    """A curve through before, peak and after of every phase, with steps between."""
    found: list[Sample] = []
    for one in phases:
        for part, (low, high) in enumerate(((one.before, one.peak), (one.peak, one.after))):
            for step in range(10):
                allocated = low.allocated_bytes + (high.allocated_bytes - low.allocated_bytes) * step // 9
                share = {
                    name: size * allocated // max(1, one.peak.allocated_bytes) for name, size in one.by_category.items()
                }
                rest = allocated - sum(share.values())
                name = next(iter(share))
                share[name] += rest
                found.append(
                    Sample(
                        step=len(found) + part,
                        phase=one.phase,
                        allocated_bytes=allocated,
                        reserved_bytes=max(allocated, low.reserved_bytes),
                        by_category=share,
                    )
                )
    return tuple(found)


def out_of_memory() -> MemoryTimeline:
    """The same model on a GPU that ends during the prefill."""
    return replace(
        serving(),
        capacity_bytes=15 * GIB + GIB // 2,
        out_of_memory=OutOfMemory(
            phase="prefill",
            wanted_bytes=LOGITS.size_bytes,
            free_bytes=100 * MIB,
            capacity_bytes=15 * GIB + GIB // 2,
            tensor=LOGITS,
        ),
        compared=(),
    )


def training(*, iterations: int = 1, grows_bytes: int = 0) -> MemoryTimeline:
    """Steps of training, which may leave something behind each time."""
    weights, state = 2 * GIB, 4 * GIB
    phases = [phase("load", before=0, after=weights, peak={"weights": weights})]
    for number in range(iterations):
        base = weights + (state if number else 0) + grows_bytes * number
        kept: dict[Category, int] = {"weights": weights, "optimizer_state": state if number else 0}
        phases += [
            phase(
                "forward",
                before=base,
                after=base + 3 * GIB,
                peak={**kept, "activations": 3 * GIB + grows_bytes * number},
                iteration=number,
                left=3 * GIB,
            ),
            phase(
                "backward",
                before=base + 3 * GIB,
                after=base + weights,
                peak={**kept, "activations": 2 * GIB, "gradients": weights},
                iteration=number,
            ),
            phase(
                "optimizer",
                before=base + weights,
                after=weights + state + grows_bytes * (number + 1),
                peak={"weights": weights, "gradients": weights, "optimizer_state": state, "unknown": 16 * MIB},
                iteration=number,
                left=grows_bytes,
            ),
        ]
    return MemoryTimeline(
        model_name="example/Small",
        architecture="LlamaForCausalLM",
        device="cpu",
        device_name="",
        settings={"dtype": "float32", "batch": 4, "prompt_tokens": 512, "optimizer": "adamw"},
        phases=tuple(phases),
        samples=samples(tuple(phases)),
    )


def bare() -> MemoryTimeline:
    """One phase and nothing else: what the least recorder says."""
    return MemoryTimeline(
        model_name="script.py",
        architecture="",
        device="cuda",
        device_name="cuda:0",
        settings={},
        phases=(phase("forward", before=0, after=0, peak={"unknown": MIB}),),
    )


def hostile() -> MemoryTimeline:
    """Names that would be tags, tables and escape codes."""
    made = serving()
    tensor = replace(LOGITS, module=HOSTILE, operator=HOSTILE, where=HOSTILE, dtype=HOSTILE)
    phases = tuple(
        replace(one, largest=(tensor,), by_module={HOSTILE: one.peak.allocated_bytes}) for one in made.phases
    )
    found = Finding(code="x", title=HOSTILE, evidence=HOSTILE, mend=HOSTILE, severity="error")
    return replace(
        made,
        model_name=HOSTILE,
        architecture=HOSTILE,
        device_name=HOSTILE,
        settings={HOSTILE: HOSTILE},
        phases=phases,
        findings=(found,),
        warnings=(HOSTILE,),
        versions={HOSTILE: HOSTILE},
    )
