"""How many bits a layer gets where layers of one model get different ones. Torch is not known here."""

from __future__ import annotations

from collections.abc import Iterable

from memplan.budget.storage import storage_bytes
from memplan.catalog import weight_formats
from memplan.records import dataclass


@dataclass(frozen=True, slots=True)
class Width:
    """How a unit is stored: `bits` in groups of `group_size` in features (0: whole rows), 16 bits as it is."""

    bits: int
    group_size: int = 0

    @property
    def name(self) -> str:
        """In words."""
        if self.is_plain:
            return "16 bits"
        return f"{self.bits} bits" + (f" (groups of {self.group_size})" if self.group_size else "")

    @property
    def is_plain(self) -> bool:
        """Whether the unit is left alone."""
        return self.bits == 16

    def divides(self, num_in: int) -> bool:
        """Whether rows of so many in features are whole groups."""
        return self.is_plain or not self.group_size or num_in % self.group_size == 0

    def stored_bytes(self, shapes: Iterable[tuple[int, int]]) -> int:
        """The bytes of matrices (O x I) in this width."""
        if self.is_plain:
            return sum(2 * num_out * num_in for num_out, num_in in shapes)
        storage = weight_formats.packed(self.bits, self.group_size)
        return sum(storage_bytes(shape, storage) for shape in shapes)
