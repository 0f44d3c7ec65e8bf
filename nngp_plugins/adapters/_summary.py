"""The layers of a model, and what their kernels would cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jax

from .._show import as_html
from .._tables import as_text, human

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Summary:
    """The layers of a model on given inputs; ``print`` shows them as a table.

    Attributes:
        shapes: shape and dtype of each layer's output, in forward order.
        others: the other names of an array, by the name of its layer.
        modules: how many modules own parameters.
        unseen: those of them that no layer covers, each with the reason.
    """

    shapes: Mapping[str, jax.ShapeDtypeStruct]
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    modules: int = 0
    unseen: Mapping[str, str] = field(default_factory=dict)

    @property
    def flops(self) -> dict[str, int]:
        """Floating-point operations of each layer's ``(N, N)`` kernel: two for each feature and pair of examples."""
        return {name: 2 * y.shape[0] * math.prod(y.shape) for name, y in self.shapes.items()}

    @property
    def output_bytes(self) -> dict[str, int]:
        """Size in bytes of each layer's output."""
        return {name: math.prod(y.shape) * y.dtype.itemsize for name, y in self.shapes.items()}

    def __rich__(self) -> Table:
        from rich.table import Table

        notes = ["kernel: operations of y yᵀ over all axes but the batch"]
        if self.modules:
            seen = self.modules - len(self.unseen)
            notes.append(f"modules with parameters: {seen} seen, {len(self.unseen)} not seen")
        elif self.unseen:
            notes.append("not seen:")
        notes += [f"  {path}: {reason}" for path, reason in self.unseen.items()]
        table = Table(caption="\n".join(notes), caption_justify="left")
        for i, name in enumerate(("layer", "shape", "dtype", "output", "kernel")):
            table.add_column(name, justify="right" if i > 2 else "left", overflow="fold")
        flops, sizes = self.flops, self.output_bytes
        for name, y in self.shapes.items():
            names = "\n  = ".join([name, *self.others.get(name, ())])
            table.add_row(names, str(y.shape), str(y.dtype), human(sizes[name], "B"), human(flops[name], "FLOP"))
        table.add_section()
        total = human(sum(sizes.values()), "B"), human(sum(flops.values()), "FLOP")
        table.add_row(f"{len(self.shapes)} layer{'s' * (len(self.shapes) != 1)}", "", "", *total)
        return table

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def __repr__(self) -> str:
        size = human(sum(self.output_bytes.values()), "B")
        unseen = f", {len(self.unseen)} modules not seen" if self.unseen else ""
        return f"Summary({len(self.shapes)} layer{'s' * (len(self.shapes) != 1)}, {size}{unseen})"

    def _repr_html_(self) -> str:
        return as_html(self.__rich__())
