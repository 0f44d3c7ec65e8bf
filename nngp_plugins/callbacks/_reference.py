"""The reference of each layer: the kernel that its later kernels are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..metrics import DenseGram

NOT_FINITE = "not finite"


@dataclass(frozen=True)
class Reference:
    """The reference of each layer: its first kernel without a flaw, because comparisons with a flawed one stay nan.

    Attributes:
        grams: the references, ``(L, N, N)``; nan for a layer that has none yet.
        steps: their steps, ``(L,)``; nan for a layer that has none yet.
        first: the kernels of the first snapshot, ``(L, N, N)``, by which another training is noticed.
        first_step: the step of the first snapshot.
    """

    grams: DenseGram
    steps: np.ndarray
    first: Array
    first_step: int

    @classmethod
    def none_yet(cls, step: int, grams: DenseGram) -> Reference:
        """No layer has a reference, at a first snapshot with these Grams."""
        # By NumPy, because JAX would compile a program for each shape, which takes longer than this.
        nothing = jax.tree.map(lambda array: jnp.asarray(np.full(array.shape, np.nan, array.dtype)), grams)
        return cls(nothing, np.full(len(grams.matrix), np.nan), grams.matrix, step)

    @classmethod
    def of_saved(cls, saved: Mapping[str, np.ndarray], grams: DenseGram, last_step: int) -> Reference:
        """The references that a run folder holds.

        Args:
            saved: the Grams, and what :meth:`to_save` says besides.
            grams: these Grams.
            last_step: the step of the last snapshot. A process may have been killed after it saved the references of a
                snapshot, before it wrote the line of that snapshot; these do not count.
        """
        # Version 0.1.0 took the first snapshot even if it was zero.
        steps = saved.get("steps", np.full(len(grams.matrix), saved["step"]))
        counts = (steps <= last_step) & [not flaw for flaw in flaws_of(grams)]
        first = jnp.asarray(saved.get("first", saved["kernels"]))
        return replace(cls.none_yet(int(saved["step"]), grams), first=first).taking(steps, grams, counts)

    def to_save(self) -> dict[str, Any]:
        """What to save besides the Grams: the step alone if the first snapshot is the reference of all layers."""
        step = {"step": self.first_step}
        return step if (self.steps == self.first_step).all() else {**step, "steps": self.steps, "first": self.first}

    def lacks(self) -> np.ndarray:
        """Which layers have no reference yet, ``(L,)``."""
        return np.isnan(self.steps)

    def taking(self, steps: int | np.ndarray, grams: DenseGram, layers: np.ndarray) -> Reference:
        """The same, with other Grams as the references of some layers, ``(L,)``."""
        if not layers.any():
            return self
        if not layers.all():
            grams = jax.tree.map(lambda new, old: _chosen(layers, new, old), grams, self.grams)
        return replace(self, grams=grams, steps=np.where(layers, steps, self.steps))


def flaws_of(grams: DenseGram) -> list[str]:
    """Why metrics of each layer are nan: its kernel is zero, constant or not finite; empty for a kernel without a flaw.

    Args:
        grams: the Grams of all layers, ``(L, N, N)``, with centred forms.
    """
    # Sums that overflow are no reason to warn: the kernel counts as not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        scales, centered_scales = (
            np.diagonal(np.asarray(kernels), axis1=1, axis2=2).mean(axis=1)
            for kernels in (grams.matrix, grams.centered)
        )
    return [_flaw(scale, centered) for scale, centered in zip(scales, centered_scales, strict=True)]


def message_of(layer: str, flaw: str, step: int) -> str:
    """What to say of the first kernel of a layer with a flaw."""
    return f"the kernel of layer {layer!r} is {flaw} at step {step}: its metrics are nan."


def promise_of(flaw: str, step: int, since: int | None) -> str:
    """What to say besides if the layer has no reference yet."""
    is_usable = "finite" if flaw == NOT_FINITE else f"not {flaw}"
    from_then = f"from step {since} on " if since is not None and step < since else ""
    return f" Its reference will be its first kernel {from_then}that is {is_usable}."


def _flaw(scale: np.floating[Any], centered: np.floating[Any]) -> str:
    numbers = np.finfo(scale.dtype)
    # Norms sum the squares of entries. Those of a smaller kernel, and soon all of its norm, would be lost.
    smallest = np.sqrt(numbers.tiny / numbers.eps)
    if not np.isfinite(scale):
        return NOT_FINITE
    if scale <= smallest:
        return "zero"
    # Rounding leaves this much of equal features that were computed in different orders.
    if centered <= max(smallest, 4 * numbers.eps**2 * scale):
        return "constant"
    return ""


def _chosen(layers: np.ndarray, new: Array, old: Array) -> Array:
    """Some layers of a new array, and the others of an old one."""
    mask = layers.reshape(-1, *[1] * (new.ndim - 1))
    return jnp.asarray(np.where(mask, np.asarray(new), np.asarray(old)))
