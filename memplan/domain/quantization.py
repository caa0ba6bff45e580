"""A quantization scheme as people name it: what it makes of a matrix, and which matrices it leaves alone."""

from __future__ import annotations

from memplan.domain.tensors import Role, Storage
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantScheme:
    """What `--quant NAME` does to a model whose weights are plain.

    `linear` is how a Linear layer's matrix is stored, `experts` how one of a routed expert is; None leaves it as it is.
    `roles` are the roles that are quantized at all: whatever has another role (embeddings, norms, router, head, vision
    tower) keeps its type. `tables` extends that to embedding tables and `towers` to the Linear layers of towers.
    A matrix whose axes are no multiples of `in_multiple` and `out_multiple` cannot be stored this way and stays plain.
    `variant` is the mix of a GGUF file, whose types differ from tensor to tensor and are not decided here.
    """

    name: str
    method: str
    linear: Storage | None = None
    experts: Storage | None = None
    roles: frozenset[Role] = frozenset()
    tables: bool = False
    towers: bool = False
    in_multiple: int = 1
    out_multiple: int = 1
    variant: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether this is `none`: every weight in the model's own type."""
        return self.method == "none"

    def divides(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix of `shape` can be stored in this scheme."""
        return len(shape) >= 2 and shape[-1] % self.in_multiple == 0 and shape[-2] % self.out_multiple == 0
