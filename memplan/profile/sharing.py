"""A model shared by several processes: replicated (DDP), cut into shards (FSDP2) or split by tensors (TP).

Each is what PyTorch does, and tensors are split as transformers does. Collectives run on gloo on the CPU and on NCCL on
GPUs; a simulated rank has none (see `fake_ranks`), and its DDP is written down in `replicas`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed

from memplan.errors import MissingExtra, UnsupportedModel
from memplan.introspect.bytesource import show
from memplan.profile.fake_ranks import among_fake_ranks, replaced_in_fsdp
from memplan.profile.recorder import Recorder, local
from memplan.profile.replicas import Replica
from memplan.profile.request import ProfileRequest
from memplan.profile.subject import Subject
from memplan.records import replace

# What FSDP2 does for a group of weights, by the method that does it.
_WORK_OF_FSDP = {"unshard": "all-gather", "wait_for_unshard": "gathered weights", "post_backward": "reduce-scatter"}


@contextlib.contextmanager
def among_ranks(request: ProfileRequest) -> Iterator[None]:
    """Be one of the processes that torchrun started, on a device of its own."""
    if request.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        torch.set_num_threads(1)
    distributed.init_process_group("nccl" if request.device == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def gathered(text: str) -> list[str]:
    """What every rank has to say, by rank, on every one of them."""
    found: list[str] = [""] * int(distributed.get_world_size())
    distributed.all_gather_object(found, text)
    return found


@contextlib.contextmanager
def as_one_rank(request: ProfileRequest, recorder: Recorder) -> Iterator[None]:
    """Be a rank if a request has several: the first of some that are not there where it is simulated."""
    if request.sharing == "none":
        yield
        return
    if request.device != "simulated":
        with _named_collectives(recorder):
            yield
        return
    with among_fake_ranks(request.num_ranks, recorder), _named_collectives(recorder):
        yield


def notes_of(request: ProfileRequest) -> tuple[str, ...]:
    """What a person should know of a rank that is simulated."""
    if request.sharing == "none" or request.device != "simulated":
        return ()
    return (f"rank 0 of {request.num_ranks} is simulated, which has the largest share",)


def shared(subject: Subject, request: ProfileRequest, recorder: Recorder) -> Subject:
    """The subject as one rank runs it. Raises: MissingExtra for a package that cannot; UnsupportedModel."""
    if request.sharing == "ddp" and subject.device == "meta":
        Replica(subject.model, recorder, bucket_view=request.bucket_view)
    elif request.sharing == "ddp":
        return replace(subject, model=_replicated(subject, request))
    elif request.sharing == "fsdp":
        _cut(subject, request)
    elif request.sharing == "tp":
        _split(subject, request)
    _make_weights(subject)
    return subject


def _make_weights(subject: Subject) -> None:
    """Make what is on the meta device where the model runs; tied weights stay tied."""
    if subject.device == "meta":
        return
    made: dict[torch.Tensor, torch.nn.Parameter] = {}
    for module in subject.model.modules():
        for name, each in module._parameters.items():
            if each is not None and local(each).is_meta:
                if each not in made:
                    empty = torch.empty_like(each, device=subject.device)
                    made[each] = torch.nn.Parameter(empty, requires_grad=each.requires_grad)
                module._parameters[name] = made[each]


def _replicated(subject: Subject, request: ProfileRequest) -> Any:
    """DistributedDataParallel, that says of itself what the model takes."""
    plain = torch.nn.parallel.DistributedDataParallel

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return plain.forward(self, *args, **kwargs)

    wrapped = functools.wraps(type(subject.model).forward)(forward)
    kind = type("Replicated", (plain,), {"forward": wrapped})
    return kind(subject.model, gradient_as_bucket_view=request.bucket_view)


def _cut(subject: Subject, request: ProfileRequest) -> None:
    """fully_shard every layer, then what is around them."""
    try:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    except ImportError:
        raise MissingExtra("--fsdp needs torch 2.6 or newer", hint="pip install -U torch") from None
    options: dict[str, Any] = {"mesh": distributed.init_device_mesh(_kind(subject), (distributed.get_world_size(),))}
    if request.mixed_precision is not None:
        narrow, reduced = (getattr(torch, each.value) for each in (request.mixed_precision, request.reduced_in))
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=reduced)
    # None is True for layers, and leaves what is around them gathered until its backward pass.
    options["reshard_after_forward"] = None if request.reshard else False
    try:
        for layer in layers_of(subject.model):
            fully_shard(layer, **options)
        fully_shard(subject.model, **options)
    except (ValueError, NotImplementedError) as error:
        raise _cannot("FSDP2 does not cut", subject, error) from None


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The members of the lists of equal layers that a model is made of, the outermost ones."""
    lists = [each for name, each in model.named_modules() if isinstance(each, torch.nn.ModuleList) and len(each) > 1]
    inside = {id(child) for each in lists for layer in each for child in layer.modules()}
    return [layer for each in lists if id(each) not in inside for layer in each]


def _split(subject: Subject, request: ProfileRequest) -> None:
    """Split tensors by the plan that transformers has for the architecture."""
    try:
        from transformers.distributed.configuration_utils import DistributedConfig
        from transformers.distributed.tensor_parallel import apply_tensor_parallelism, get_kv_heads_per_rank
    except ImportError:
        raise MissingExtra("--tp needs a newer transformers", hint="pip install -U transformers") from None
    model, ranks = subject.model, request.num_ranks
    if not getattr(model, "tp_plan", None):
        what = f"transformers has no plan that splits the tensors of {subject.architecture}"
        raise UnsupportedModel(what, hint="give --fsdp in place of --tp")
    mesh = distributed.init_device_mesh(_kind(subject), (ranks,), mesh_dim_names=("tp",))
    config = DistributedConfig(tp_size=ranks)
    text = subject.text_config
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", 1)
    try:
        plan, _, _ = model._resolve_parallel_plans(config)
        if get_kv_heads_per_rank(plan, heads, ranks) is None:
            raise ValueError(f"its {heads} key heads do not divide")
        _untie(model)
        apply_tensor_parallelism(model, mesh, plan)
    except (AttributeError, ValueError) as error:
        raise _cannot(f"transformers does not split over {ranks} ranks", subject, error) from None
    # What generation reads of a model that was loaded so.
    model.config.distributed_config, model._tp_size, model._device_mesh = config, ranks, mesh
    model.tie_weights()


def _cannot(what: str, subject: Subject, error: Exception) -> UnsupportedModel:
    reason = show((str(error).strip().splitlines() or [""])[0])
    return UnsupportedModel(
        f"{what}: {subject.architecture}: {reason}", hint="share it in another way, or by fewer ranks"
    )


def _untie(model: Any) -> None:
    """Give tied weights a tensor of their own, as they have one until a checkpoint is loaded."""
    for name in getattr(model, "all_tied_weights_keys", None) or {}:
        owner, _, last = name.rpartition(".")
        tied = model.get_parameter(name)
        made = torch.nn.Parameter(torch.empty_like(tied), requires_grad=tied.requires_grad)
        model.get_submodule(owner)._parameters[last] = made


def _kind(subject: Subject) -> str:
    return str(torch.device(subject.device).type)


def _named_collectives(recorder: Recorder) -> contextlib.AbstractContextManager[None]:
    """Let the recorder know what FSDP2 makes for itself."""
    return replaced_in_fsdp({name: _named(recorder, f"FSDP {work}") for name, work in _WORK_OF_FSDP.items()})


def _named(recorder: Recorder, work: str) -> Callable[[Any], Any]:
    def make(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            with recorder.library(work, group._module_fqn or ""):
                return method(group, *args, **kwargs)

        return call

    return make
