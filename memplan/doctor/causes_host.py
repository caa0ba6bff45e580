"""Host memory: what the kernel, a container's limit or shared memory ended."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.doctor.facts import Facts
from memplan.doctor.telling import Refusal, refused, size, told
from memplan.domain.diagnosis import Diagnosis

_SHARED = Refusal(
    at="shm",
    cause="shared_memory",
    sentence="shared memory (/dev/shm) is too small for what ranks or workers exchange",
    because="a container has 64 MiB of it unless it is given more",
)


def causes(facts: Facts) -> Iterator[Diagnosis]:
    """Kernel first: it names the process and the size; a container's limit is told from the whole machine's."""
    seen = facts.seen
    killed = seen.last("kernel_killed", "kernel_killed_old")
    in_group = "kernel_limit" in seen or _constraint(facts) or (killed is not None and "cgroup" in killed.text)
    if killed is not None or "kernel_constraint" in seen:
        yield _killed(facts, in_group=bool(in_group))
    elif place := seen.last("oom_killed"):
        if place.values.get("value") != "false":
            yield told(
                facts,
                "container_limit",
                "the container was ended for exceeding its memory limit (OOMKilled): this is host memory, not "
                "the GPU's",
                because="weights pass through host memory while loading, and /dev/shm counts towards the limit",
                at=(place.name,),
            )
    elif place := seen.last("host_alloc"):
        yield told(
            facts,
            "host_oom",
            f"the host had no {size(place.number('wanted'))} more to give: this is RAM, not the GPU's memory"
            if place.number("wanted")
            else "the host had no more memory to give: this is RAM, not the GPU's memory",
            at=(place.name,),
        )
    elif "ray_oom" in seen:
        yield told(facts, "host_oom", "Ray ended a task because the node ran low on host memory", at=("ray_oom",))
    elif seen.first("exit_137", "killed_word", "sigkill") is not None:
        place = seen.first("exit_137", "killed_word", "sigkill")
        assert place is not None
        yield told(
            facts,
            "host_oom",
            "the process was killed from outside, as the kernel does when host memory runs out; `dmesg` says "
            "whether it did",
            because="a GPU that is full raises an error in the program, it never kills it",
            at=(place.name,),
            is_certain=False,
        )
    yield from refused(facts, (_SHARED,))


def _constraint(facts: Facts) -> bool:
    place = facts.seen.last("kernel_constraint")
    return place is not None and place.values.get("constraint") == "CONSTRAINT_MEMCG"


def _killed(facts: Facts, *, in_group: bool) -> Diagnosis:
    seen = facts.seen
    place = seen.last("kernel_killed", "kernel_killed_old", "kernel_constraint")
    assert place is not None
    process = place.values.get("process", "a process")
    held = sum(place.number(key) or 0 for key in ("anonymous", "file", "shared")) or None
    limit = seen.high("kernel_limit", "limit")
    figures = f", which held {size(held)}" if held else ""
    if in_group:
        bound = f" of {size(limit)}" if limit else ""
        return told(
            facts,
            "container_limit",
            f"the kernel ended `{process}`{figures}, because its group (container, pod, job) reached its memory "
            f"limit{bound}",
            because="this is host memory: weights that are read in, caches of media, offloaded layers, /dev/shm",
            at=(place.name,),
        )
    return told(
        facts,
        "host_oom",
        f"the kernel ended `{process}`{figures}, because the machine's memory ran out",
        because="this is host memory, not the GPU's: weights are read into it before they are moved",
        at=(place.name,),
    )
