"""A model's layers as blocks of operators, from the tensors that introspection found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from memplan.budget.training.attention import AttentionKernel, Heads
from memplan.budget.training.autograd import Parameter
from memplan.budget.training.blocks import AttentionBlock, Half, LatentBlock, Layer
from memplan.budget.training.families import family_of
from memplan.budget.training.feed_forward import ExpertsBlock, MlpBlock
from memplan.budget.training.float8 import Float8
from memplan.budget.training.linear import Adapter, Linear
from memplan.budget.training.recurrent import ShortConvBlock
from memplan.budget.training.scan_blocks import make_scan
from memplan.domain.attention import Cache, ChunkedLocal, FullAttention, LatentAttention, LinearState, SlidingWindow
from memplan.domain.model import Layer as ModelLayer
from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.domain.training import TrainingSpec
from memplan.errors import UnsupportedModel
from memplan.records import replace

BY_PROFILE = (
    "`memplan estimate --train` asks a profile of the model's own code, one setting at a time;"
    " `memplan profile --phase training` shows it"
)
MakeParameter = Callable[[str, float, bool], Parameter]
# Before and after each half of a layer.
Norms = list[tuple[Parameter | None, Parameter | None]]
_LINEAR_ADAPTED = (Role.ATTENTION, Role.MLP, Role.SHARED_EXPERT, Role.EXPERT, Role.STATE)
_AFTER_HALVES = ("post_feedforward_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
_PER_HEAD = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_layernorm", "key_layernorm")
_FLASH_LIMIT = 256  # elements of a head


class Builder:
    """Makes the blocks of one model for one step. `make` gives a parameter: name, elements, whether it is trained."""

    def __init__(self, spec: ModelSpec, training: TrainingSpec, make: MakeParameter) -> None:
        self._spec = spec
        self._training = training
        self._make = make
        layout = training.layout
        self.state_share = layout.tensor if layout.sequence_parallel else 1
        self.num_float8 = 0
        self._family = family_of(spec, training)
        self._biases = {each.name.removesuffix(".bias"): each for each in spec.shared if each.name.endswith(".bias")}

    def layer(self, layer: ModelLayer, number: int) -> Layer:
        """The blocks of one layer."""
        self._biases = {
            _named(each, number).removesuffix(".bias"): each for each in layer.tensors if each.name.endswith(".bias")
        }
        norms = self._norms(layer, number)
        mixer = self._mixer(layer, number, norms)
        second = self._second(layer, number, norms, mixer)
        halves: tuple[Half, ...] = tuple(each for each in (mixer, second) if each is not None)
        return Layer(
            halves=halves,
            hidden_size=self._spec.hidden_size,
            ranks=self._training.layout.tensor,
            state_share=self.state_share,
            gathers_again=self._training.gathers_again,
            has_dropout=self._training.hidden_dropout or self._family.has_dropout,
            is_parallel=self._family.is_parallel,
            wide_residual=self._family.wide_residual,
        )

    def linear(
        self,
        name: str,
        outputs: int,
        inputs: int,
        *,
        share: float = 1.0,
        copies: int = 1,
        tied: Parameter | None = None,
    ) -> Linear:
        """A linear layer by its name; `copies` equal ones stand for one; `tied` is the weight that it shares."""
        training = self._training
        elements = outputs * inputs * copies * share
        is_full = training.method == "full"
        weight = tied or self._make(name, elements, is_full)
        unpacked = outputs * inputs * training.compute_bytes * share if self._unpacks(name) else 0.0
        cast = 0.0
        float8 = self._float8(name, outputs, inputs)
        if training.autocast and is_full and training.weight_bytes > training.compute_bytes and float8 is None:
            cast = elements * training.compute_bytes
        return Linear(
            name=name,
            inputs=inputs,
            outputs=outputs,
            weight=weight,
            bias=self._bias(name, outputs),
            unpacked_bytes=unpacked,
            is_narrowed=training.wide_state and self._unpacks(name),
            cast_bytes=cast,
            adapter=self._adapter(name, outputs, inputs, copies),
            is_grouped="experts.*" in name,
            is_last=training.kernels == "compiled" and "down" in name,
            is_softcapped=self._family.softcaps and name == "lm_head",
            float8=float8,
        )

    def _float8(self, name: str, outputs: int, inputs: int) -> Float8 | None:
        """Of layers, what is no expert and no router; sides have to be multiples of 16."""
        training = self._training
        is_left = name == "lm_head" or ".experts." in name or name.rsplit(".", 1)[-1] in ("gate", "router")
        if training.float8 is None or is_left or outputs % 16 or inputs % 16:
            return None
        self.num_float8 += 1
        return Float8(
            recipe=training.float8,
            is_compiled=training.kernels == "compiled",
            joins=training.kernels == "fused",
            weight_width=training.weight_bytes if training.autocast else training.compute_bytes,
        )

    def _unpacks(self, name: str) -> bool:
        return self._training.method == "qlora" and name != "lm_head"

    def _adapter(self, name: str, outputs: int, inputs: int, copies: int) -> Adapter | None:
        training = self._training
        if training.method == "full" or not self._is_adapted(name):
            return None
        rank = training.lora_rank
        return Adapter(
            rank=rank,
            down=self._make(f"{name}.A", rank * inputs * copies, True),
            up=self._make(f"{name}.B", rank * outputs * copies, True),
            casts=training.adapters_in_float and training.adapters_cast and not training.autocast,
            clones=training.method == "qlora",
            is_fused=training.fused_adapters,
            dropout=training.lora_dropout,
            magnitude=self._make(f"{name}.magnitude", outputs * copies, True) if training.method == "dora" else None,
        )

    def _is_adapted(self, name: str) -> bool:
        last = name.rsplit(".", 1)[-1]
        targets = self._training.lora_targets
        if last in targets:
            return True
        if ".experts." in name and self._experts_form() != "looped":
            return False  # they are no linear layers, but slices of one tensor
        return (not targets or "all-linear" in targets) and last not in ("lm_head", "gate")

    def norm(self, name: str, width: int) -> Parameter:
        """A norm's weight, with its bias if it has one."""
        bias = self._biases.get(name)
        return self._make(name, width + (bias.num_elements if bias else 0), self._training.method == "full")

    def _norms(self, layer: ModelLayer, number: int) -> Norms:
        """Before and after each half: the norms over the whole state, by their names."""
        hidden = self._spec.hidden_size
        found = {
            each.name.rsplit(".", 2)[-2]: each
            for each in layer.tensors
            if each.role is Role.NORM and each.name.endswith(".weight") and each.name.count(".") == 1
        }
        after = [name for name in found if name.startswith(_AFTER_HALVES)]
        if "pre_feedforward_layernorm" in found or (len(after) == 1 and "post_attention_layernorm" in found):
            after = ["post_attention_layernorm", *after]
        if not found:
            return [(self.norm(f"layers.{number}.norm{half}", 0), None) for half in range(2)]
        made = {name: self.norm(f"layers.{number}.{name}", hidden) for name in found}
        before = [made[name] for name in found if name not in after]
        ends = [made[name] for name in after]
        return [(_at(before, half), _at(ends, half)) for half in range(2)]

    def _mixer(self, layer: ModelLayer, number: int, norms: Norms) -> Half | None:
        cache = next(
            (
                each
                for each in layer.caches
                if isinstance(each, (FullAttention, SlidingWindow, ChunkedLocal, LatentAttention))
            ),
            None,
        )
        if cache is None:
            if not any(isinstance(each, LinearState) for each in layer.caches) and layer.mlp is not None:
                return None  # a feed-forward part alone
            return self._recurrent(layer, number, norms)
        if len(layer.caches) > 1:
            raise _not_modelled(layer, number, self._spec.name)
        if isinstance(cache, LatentAttention):
            return self._latent(layer, cache, number, norms)
        found = [each for each in layer.tensors if each.role is Role.ATTENTION and len(each.shape) == 2]
        out = found[-1]
        into = found[:-1]
        if len(into) not in (1, 3):  # queries, keys and values, alone or fused: not keys that are values, nor gates
            raise _not_modelled(layer, number, self._spec.name)
        training = self._training
        tensor = training.layout.tensor
        queries = layer.num_heads / tensor
        keys = max(cache.num_kv_heads / tensor, 1)
        heads = Heads(
            batch=training.micro_batch,
            tokens=training.sequence_tokens / training.layout.context,
            queries=queries,
            keys=keys,
            width=cache.key_width,
            value_width=cache.value_width,
            **self._kernel(cache, cache.key_width == cache.value_width),
        )
        per_head = tuple(
            self.norm(_named(each, number), each.shape[0])
            for each in layer.tensors
            if each.role is Role.NORM and each.name.endswith(".weight") and each.name.rsplit(".", 2)[-2] in _PER_HEAD
        )
        return AttentionBlock(
            before=norms[0][0],
            after=norms[0][1],
            rotary_part=self._rotary_part(cache.key_width),
            into=tuple(self._cut(each, number) for each in into),
            out=self._cut(out, number, inputs_cut=True),
            heads=heads,
            per_head_norms=per_head,
            is_gated=len(into) == 3 and into[0].shape[0] == 2 * layer.num_heads * cache.key_width,
        )

    def _kernel(self, cache: Cache, has_equal_widths: bool) -> dict[str, Any]:
        """The attention kernel of a layer: PyTorch's own choice looks at masks and widths."""
        training, family = self._training, self._family
        asked = training.attention
        if family.own_attention:
            return {"kernel": "eager", "is_wide": family.wide_scores, "has_sinks": family.has_sinks}
        window = getattr(cache, "window_tokens", getattr(cache, "chunk_tokens", training.sequence_tokens))
        is_masked = family.is_masked or window < training.sequence_tokens
        is_reordered = family.joins_rotary or isinstance(cache, LatentAttention)
        kernel: AttentionKernel = asked if asked != "sdpa" else "flash"
        if asked == "sdpa" and family.softcaps:
            kernel = "eager"
        elif asked == "sdpa" and (is_masked or not has_equal_widths or _key_width(cache) > _FLASH_LIMIT):
            kernel = "efficient"
        return {
            "kernel": kernel,
            "is_saved": training.saves_attention,
            "context": training.layout.context,
            "is_narrowed": training.wide_state and kernel == "flash",
            "is_latent": isinstance(cache, LatentAttention),
            "is_masked": is_masked and kernel == "efficient",
            "copies_single": family.is_masked,
            "is_reordered": is_reordered and kernel == "flash",
        }

    def _recurrent(self, layer: ModelLayer, number: int, norms: Norms) -> Half:
        if [each.kind for each in layer.caches if isinstance(each, LinearState)] != ["short_conv"]:
            is_padded = self._training.micro_batch > 1
            made = make_scan(self, self._spec, layer, number, norms[0], is_padded=is_padded)
            made = made if self._training.layout.tensor == 1 else None
            if made is None:
                raise _not_modelled(layer, number, self._spec.name)
            return made
        by_name = {each.name.rsplit(".", 2)[-2]: each for each in layer.tensors if each.name.endswith(".weight")}
        convolution = by_name["conv"]
        return ShortConvBlock(
            before=norms[0][0],
            after=norms[0][1],
            into=self._cut(by_name["in_proj"], number),
            convolution=self.norm(_named(convolution, number), convolution.num_elements),
            out=self._cut(by_name["out_proj"], number, inputs_cut=True),
        )

    def _rotary_part(self, head_width: int) -> float:
        tables = self._spec.rotary
        return min(tables[0].width / head_width, 1.0) if tables else 1.0

    def _bias(self, name: str, outputs: int) -> Parameter | None:
        if name not in self._biases:
            return None
        return self._make(f"{name}.bias", outputs, self._training.method == "full")

    def _cut(self, tensor: Tensor, number: int, *, inputs_cut: bool = False) -> Linear:
        ranks = self._training.layout.tensor
        outputs, inputs = tensor.shape[-2:]
        if inputs_cut:
            return self.linear(_named(tensor, number), outputs, inputs // ranks)
        return self.linear(_named(tensor, number), outputs // ranks, inputs)

    def _latent(
        self,
        layer: ModelLayer,
        cache: LatentAttention,
        number: int,
        norms: Norms,
    ) -> LatentBlock:
        by_name = {each.name.rsplit(".", 2)[-2]: each for each in layer.tensors}
        training = self._training
        ranks = training.layout.tensor
        query_down = by_name.get("q_a_proj")
        latent = by_name["kv_a_proj_with_mqa"]
        query_norm = by_name.get("q_a_layernorm")
        heads = Heads(
            batch=training.micro_batch,
            tokens=training.sequence_tokens / training.layout.context,
            queries=cache.num_heads / ranks,
            keys=cache.num_heads / ranks,
            width=cache.expanded_key_width,
            value_width=cache.expanded_value_width,
            **self._kernel(cache, cache.expanded_key_width == cache.expanded_value_width),
        )
        return LatentBlock(
            before=norms[0][0],
            after=norms[0][1],
            query_down=self.linear(_named(query_down, number), *query_down.shape) if query_down else None,
            query_norm=self.norm(_named(query_norm, number), query_norm.shape[0]) if query_norm else None,
            query_up=self._cut(by_name["q_b_proj"] if query_down else by_name["q_proj"], number),
            latent_down=self.linear(_named(latent, number), *latent.shape),
            latent_norm=self.norm(f"layers.{number}.latent_norm", cache.latent_width),
            latent_up=self._cut(by_name["kv_b_proj"], number),
            out=self._cut(by_name["o_proj"], number, inputs_cut=True),
            heads=heads,
            rope_width=cache.rope_width,
        )

    def _second(self, layer: ModelLayer, number: int, norms: Norms, mixer: Half | None) -> Half | None:
        if layer.mlp is None:
            return None
        before, after = norms[1] if norms[1][0] is not None or mixer is not None else norms[0]
        experts = [each for each in layer.tensors if each.role is Role.EXPERT and len(each.shape) >= 2]
        if not experts:
            ups, down = self._ups([each for each in layer.tensors if each.role is Role.MLP], number)
            return MlpBlock(before=before, after=after, ups=ups, down=down, is_gated=layer.mlp.gated)
        router = next(each for each in layer.tensors if each.role is Role.ROUTER and len(each.shape) == 2)
        count = 8 if self._training.loops_experts else 1
        parts = min(count, layer.mlp.num_experts // self._training.layout.expert)
        beside = [each for each in layer.tensors if each.role is Role.SHARED_EXPERT and each.shape[0] > 1]
        shared = None
        if beside:
            shared_ups, shared_down = self._ups(beside, number)
            shared = MlpBlock(before=before, ups=shared_ups, down=shared_down, is_gated=layer.mlp.gated)
        return ExpertsBlock(
            before=before,
            after=after,
            router=self.linear(_named(router, number), *router.shape),
            parts=tuple(self._ups(experts, number, parts, part) for part in range(parts)),
            is_gated=layer.mlp.gated,
            chosen=layer.mlp.experts_per_token,
            num_experts=layer.mlp.num_experts,
            share=1.0,
            ranks=self._training.layout.expert,
            shared=shared,
            wide_router=self._family.wide_router,
            form=self._experts_form(),
        )

    def _experts_form(self) -> Literal["looped", "grouped", "dense", "dispatched"]:
        if self._training.dispatches_experts:
            return "dispatched"
        if self._training.kernels != "transformers" or self._training.loops_experts:
            return "looped"
        return "dense" if self._family.dense_experts else "grouped"

    def _ups(
        self, tensors: list[Tensor], number: int, parts: int = 1, part: int = 0
    ) -> tuple[tuple[Linear, ...], Linear]:
        """The up projections and the down projection of a feed-forward part, cut along the inner width."""
        hidden = self._spec.hidden_size
        matrices = [each for each in tensors if len(each.shape) >= 2]
        if self._training.kernels == "transformers" and not self._training.loops_experts:
            matrices = _joined(matrices, hidden)
        layout = self._training.layout
        ups, down = [], None
        for each in matrices:
            outputs, inputs = each.shape[-2:]
            copies = max(each.count // layout.expert // parts, 1) if each.role is Role.EXPERT else 1
            name = _named(each, number).replace("*", f"*{part}")
            if inputs == hidden and not (outputs == hidden and "down" in name):
                ups.append(self.linear(name, outputs // layout.tensor, inputs, copies=copies))
            else:
                down = self.linear(name, outputs, inputs // layout.tensor, copies=copies)
        if down is None or not ups:
            raise UnsupportedModel(f"{self._spec.name}: layer {number} has a feed-forward part that is not understood")
        return tuple(ups), down


def _not_modelled(layer: ModelLayer, number: int, model: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"training is not modelled for `{layer.kind}` layers, such as layer {number} of {model}",
        hint=BY_PROFILE,
    )


def _joined(matrices: list[Tensor], hidden: int) -> list[Tensor]:
    """Experts' matrices as transformers holds them from 5.0 on: both up projections in one."""
    ups = [each for each in matrices if each.role is Role.EXPERT and each.shape[-1] == hidden]
    if len(ups) < 2 or len(matrices) != 3:
        return matrices
    shape = (*ups[0].shape[:-2], sum(each.shape[-2] for each in ups), hidden)
    return [replace(ups[0], shape=shape), *(each for each in matrices if each not in ups)]


def _key_width(cache: Cache) -> int:
    return cache.expanded_key_width if isinstance(cache, LatentAttention) else getattr(cache, "key_width", 0)


def _at(found: list[Parameter], position: int) -> Parameter | None:
    return found[position] if position < len(found) else None


def _named(tensor: Tensor, number: int) -> str:
    return f"layers.{number}.{tensor.name.removesuffix('.weight')}"
