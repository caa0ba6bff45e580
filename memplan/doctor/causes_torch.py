"""Why PyTorch ran out of memory: too little of it, enough of it in pieces, or in other hands; in a training step, which
part of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.doctor.facts import Facts, oom_free, oom_total
from memplan.doctor.telling import Refusal, refused, size, told
from memplan.domain.diagnosis import Diagnosis

_OOM = ("oom", "oom_mps", "oom_wanted", "oom_short", "oom_driver")
_OTHERS_SHARE = 0.05
_OTHERS_BYTES = 512 << 20


def allocator(facts: Facts) -> Iterator[Diagnosis]:
    """A CUDA, HIP, XPU or MPS allocation that failed, by its own figures and by what was running."""
    seen = facts.seen
    if "oom_exceeds" in seen:
        yield _limited(facts)
        return
    if not any(name in seen for name in _OOM):
        yield from libraries(facts)
        return
    wanted, free = facts.wanted_bytes, oom_free(facts)
    pieces = facts.unallocated_bytes
    if others := _others(facts):
        yield _in_other_hands(facts, others)
    elif wanted and pieces is not None and free is not None and free >= wanted and pieces < wanted:
        yield _refused(facts)
    elif wanted and pieces is not None and wanted <= pieces + (free or 0) and _worth(facts, pieces):
        yield _in_pieces(facts)
    else:
        yield _too_little(facts)


def _worth(facts: Facts, pieces: int) -> bool:
    """Whether the pieces are more than what every run leaves: a share of what is allocated, beside the request
    itself.
    """
    return pieces >= max(0.9 * (facts.wanted_bytes or 0), 0.02 * (facts.allocated_bytes or 0))


def _others(facts: Facts) -> int:
    """What other processes hold, where that is what is missing; 0 where it is not."""
    total, free = oom_total(facts), oom_free(facts)
    named = facts.others_bytes
    if named and total and named > max(_OTHERS_BYTES, _OTHERS_SHARE * total):
        return named
    held = facts.process_bytes or ((facts.allocated_bytes or 0) + (facts.unallocated_bytes or 0))
    if not (total and free is not None and facts.allocated_bytes is not None) or facts.scanned.processes:
        return 0
    missing = total - free - held
    # Context, libraries and the display take up to about a gigabyte; what is more is somebody's.
    return missing if missing > max(2 << 30, 0.15 * total) else 0


def _in_other_hands(facts: Facts, others: int) -> Diagnosis:
    own = facts.process_bytes or facts.allocated_bytes
    return told(
        facts,
        "other_process",
        f"other processes hold {size(others)} of the GPU's {size(oom_total(facts))}; this one has {size(own)} and "
        f"asked for {size(facts.wanted_bytes)} more",
        because="what they hold is not this program's to free",
        at=_OOM,
    )


def _in_pieces(facts: Facts) -> Diagnosis:
    return told(
        facts,
        "fragmentation",
        f"{size(facts.wanted_bytes)} were asked for while {size(facts.unallocated_bytes)} lay reserved and unused in "
        f"pieces, beside {size(facts.allocated_bytes)} that are allocated",
        because="a segment that any live block keeps cannot be given back, nor hold a larger block than its gaps",
        at=_OOM,
    )


def _refused(facts: Facts) -> Diagnosis:
    return told(
        facts,
        "free_but_refused",
        f"the driver refused {size(facts.wanted_bytes)} while it reported {size(oom_free(facts))} free",
        because="a limit other than the GPU's size was met: the host's commit limit (Windows: the page file), a "
        "limit on the process, or memory that another process took and gave back meanwhile",
        at=_OOM,
    )


def _limited(facts: Facts) -> Diagnosis:
    return told(
        facts,
        "process_limit",
        f"the process may have {size(oom_total(facts))} of the GPU; {size(facts.allocated_bytes)} are allocated and "
        f"{size(facts.wanted_bytes)} were asked for",
        because="set_per_process_memory_fraction, or a launcher's option, put the limit",
        at=("oom_exceeds",),
    )


def _too_little(facts: Facts) -> Diagnosis:
    cause, doing, because = _doing(facts)
    total, free = oom_total(facts), oom_free(facts)
    figures = []
    if facts.wanted_bytes is not None:
        figures.append(f"asked for {size(facts.wanted_bytes)}")
    if free is not None and total is not None:
        figures.append(f"{size(free)} of {size(total)} were free")
    if facts.allocated_bytes is not None:
        figures.append(f"{size(facts.allocated_bytes)} were allocated")
        if total and facts.allocated_bytes > total:
            because = (
                "more was allocated than the GPU has: the driver had moved memory to the host, until that failed too"
            )
    sentence = f"the GPU is too small for what was asked{doing}" + (f": {', '.join(figures)}" if figures else "")
    return told(facts, cause, sentence, because=because, at=_OOM)


def _doing(facts: Facts) -> tuple[str, str, str]:
    seen, stage = facts.seen, facts.scanned.stage
    training = any(name in seen for name in ("at_training", "trainer", "at_backward", "at_optimizer"))
    if stage == "graphs" or "says_graphs" in seen:
        return (
            "cuda_graph_oom",
            " when CUDA graphs were captured",
            "graphs keep pools of their own, beside what is there",
        )
    if "at_optimizer" in seen:
        return (
            "optimizer_oom",
            " when the optimizer made its states",
            "AdamW keeps two more numbers for every parameter that is trained, from the first step on",
        )
    if "at_evaluation" in seen and training:
        return "evaluation_oom", " in evaluation", "logits of all evaluated batches are kept on the GPU unless moved"
    if "at_loss" in seen and not ("at_load" in seen and "at_backward" not in seen):
        return "loss_oom", " in the loss", "logits are sequences x length x vocabulary, in 32 bit beside 16"
    if "at_backward" in seen:
        return "activations_oom", " in the backward pass", "activations grow with the batch and the length"
    if training:
        return "training_oom", " in a training step", "weights, gradients, optimizer states and activations together"
    if stage == "load" or "at_load" in seen or "at_move" in seen or "says_loading" in seen:
        return "weights_oom", " when weights were put on it", "the weights alone do not fit beside what is there"
    if "at_generate" in seen:
        return "generation_oom", " in generation", "the cache and the prompt's activations grow with length and batch"
    return "capacity", "", "what is allocated and what was asked for are more than the GPU has"


def libraries(facts: Facts) -> Iterator[Diagnosis]:
    """Memory that a library outside of PyTorch's pool did not get, and what only looks like it."""
    if place := facts.seen.last("cublas_alloc"):
        yield told(
            facts,
            "library_oom",
            f"{place.values.get('library', 'a library')} got no memory for its workspace: the GPU is full outside of "
            "PyTorch's pool",
            because="PyTorch keeps what it reserved; handles and workspaces of libraries come from what is left",
            at=(place.name,),
            is_certain="ALLOC" in place.text,
        )
    yield from refused(facts, _OF_LIBRARIES)


_OF_LIBRARIES = (
    Refusal(
        at="oom_nccl",
        cause="library_oom",
        sentence="NCCL got no memory for its buffers: the GPU is full outside of PyTorch's pool",
    ),
    Refusal(
        at="jax_oom",
        cause="capacity",
        sentence="XLA asked for {wanted:size} and did not get it",
    ),
    Refusal(
        at="workspace",
        cause="workspace_too_small",
        sentence="FlashInfer's workspace has no room for {wanted:size} of {what}: this is not about how full the GPU "
        "is",
        because="the workspace has a fixed size, whatever is free beside it",
    ),
    Refusal(
        at="shared_memory_kernel",
        cause="kernel_shared_memory",
        sentence="a kernel wants {required:n} bytes of a processor's shared memory and the GPU has {limit:n}: this is "
        "not about how full the GPU is",
        because="block sizes were chosen for another architecture",
    ),
)
