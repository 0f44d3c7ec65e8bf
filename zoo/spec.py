"""What goes into a model and how many classes come out; and names that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """One example of a data set, without the batch.

    Attributes:
        shape: ``(H, W, C)`` of an image, ``(T, D)`` of a sequence, ``(D,)`` of a vector, ``(T,)`` of tokens.
        classes: number of classes.
        dtype: dtype of the inputs.
        vocabulary: how many different tokens there are; None if the inputs are no tokens.
    """

    shape: tuple[int, ...]
    classes: int = 10
    dtype: str = "float32"
    vocabulary: int | None = None

    @property
    def kind(self) -> str:
        """``"tokens"``, ``"image"``, ``"sequence"``, ``"vector"`` or, with more axes, ``"array"``."""
        if self.vocabulary is not None:
            return "tokens"
        return {1: "vector", 2: "sequence", 3: "image"}.get(len(self.shape), "array")

    def __str__(self) -> str:
        return f"{self.kind} {self.dtype} {self.shape}"


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Refuses a name that is not known.

    Raises:
        ValueError: the message gives the closest names.
    """
    known = [*known]
    if name not in known:
        closest = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known
        raise ValueError(f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, closest))}?")
