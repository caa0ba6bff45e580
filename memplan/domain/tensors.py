"""One weight tensor of a model: its shape, its role, how tensor parallelism cuts it and how it is stored."""

from __future__ import annotations

from enum import Enum
from math import prod

from memplan.domain.dtypes import DType
from memplan.records import dataclass


class Role(str, Enum):
    """What a weight is for. Roles group the lines of a budget; they decide no formula."""

    EMBEDDING = "embedding"
    POSITION = "position embedding"
    ATTENTION = "attention"
    INDEXER = "sparse attention indexer"
    STATE = "recurrent mixer"
    MLP = "mlp"
    EXPERT = "routed experts"
    SHARED_EXPERT = "shared experts"
    ROUTER = "router"
    NORM = "norms"
    LM_HEAD = "lm_head"
    VISION = "vision tower"
    AUDIO = "audio tower"
    PROJECTOR = "projector"
    ENCODER = "encoder"
    MTP = "multi-token prediction"
    OTHER = "other"


class ShardKind(str, Enum):
    """How a tensor-parallel engine cuts a weight."""

    REPLICATED = "replicated"
    SPLIT = "split"
    KV_HEADS = "kv_heads"
    QKV_HEADS = "qkv_heads"
    VOCAB = "vocab"
    EXPERTS = "experts"


@dataclass(frozen=True, slots=True)
class Shard:
    """The cut of one weight over tensor-parallel ranks.

    `units` is how many indivisible pieces the cut axis has: query heads, MLP channels, vocabulary rows. KV_HEADS
    keeps at least one unit on every rank (heads are replicated once there are more ranks than heads). QKV_HEADS is a
    query, key and value projection in one matrix: `units` query heads cut like SPLIT, and twice `kv_units` key-value
    heads cut like KV_HEADS. EXPERTS is a stack of equal matrices: cut inside each expert along `units` channels, or
    by whole experts under expert parallelism.
    """

    kind: ShardKind
    units: int = 1
    kv_units: int = 0

    @property
    def pieces(self) -> int:
        """How many equal pieces the cut axis has."""
        return self.units + 2 * self.kv_units


REPLICATED = Shard(ShardKind.REPLICATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How a quantized matrix of shape (out, in) is laid out. `memplan.budget.storage` turns it into bytes.

    Elements take `bits` each, packed along the input axis (along the output axis if `packed_out`) into words of
    `word_bits`; a last word that is not full is padded. Every `group_in` inputs of every `group_out` outputs share
    one scale of `scale_bits` and one zero point of `zero_bits`; `group_in` 0 means the whole input axis, `group_out`
    0 the whole output axis, and `flat` lets groups of `group_in` elements run over the flattened matrix. Zero points
    are packed along the output axis into words of `zero_word_bits` where that is not 0. Every `nested_group` scales
    share another scale of `nested_bits`. `index_bits` are stored for every input channel and `tensor_bytes` once for
    the matrix. `has_scales` is False where the scales lie inside the packed words and are counted in `bits` (GGUF).

    `scheme` is a name that `memplan.catalog.quant_schemes` knows; `element` the type of one stored weight, if it has
    one.
    """

    scheme: str
    bits: float
    element: DType | None = None
    word_bits: int = 8
    packed_out: bool = False
    group_in: int = 0
    group_out: int = 1
    flat: bool = False
    scale_bits: int = 0
    zero_bits: int = 0
    zero_word_bits: int = 0
    nested_group: int = 0
    nested_bits: int = 0
    index_bits: int = 0
    tensor_bytes: int = 0
    has_scales: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A weight, or `count` equal ones (the experts of a layer).

    `name` is the checkpoint's own name: relative to its layer for a layer's tensors, with `*` for the expert number.
    `shape` is in PyTorch's order, (out, in) for a matrix. `dtype` None means the type the model is loaded in.
    `linear` marks a matrix that quantizers treat as a Linear layer. `storage` None means one plain element per
    weight. A buffer is stored and loaded like a weight, and not counted as parameters (a router's correction bias).
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    shard: Shard = REPLICATED
    count: int = 1
    dtype: DType | None = None
    linear: bool = False
    storage: Storage | None = None
    is_buffer: bool = False

    @property
    def num_parameters(self) -> int:
        """What the tensor adds to the model's parameter count."""
        return 0 if self.is_buffer else self.num_elements

    @property
    def num_elements(self) -> int:
        return prod(self.shape) * self.count
