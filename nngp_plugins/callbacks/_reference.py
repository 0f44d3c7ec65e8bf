"""The reference of each layer: the kernel that its later kernels are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..metrics import DenseGram, undivided
from ._numbers import on_cpu

NOT_FINITE = "not finite"


@dataclass(frozen=True)
class Reference:
    """The reference of each layer: its first kernel without a flaw, because comparisons with a flawed one stay nan.

    Attributes:
        grams: the reference of each layer; nan for a layer that has none yet.
        steps: their steps, ``(L,)``; nan for a layer that has none yet.
        first: the kernels of the first snapshot, ``(L, N, N)``, and their exponents ``(L,)``, by which another training
            is noticed.
        first_step: the step of the first snapshot.
    """

    grams: list[DenseGram]
    steps: np.ndarray
    first: tuple[np.ndarray, np.ndarray]
    first_step: int

    @classmethod
    def none_yet(cls, step: int, grams: Sequence[DenseGram]) -> Reference:
        """No layer has a reference, at a first snapshot with these Grams."""
        nothing = on_cpu(jax.tree.map(_without_a_value, grams[0]))
        first = np.stack([gram.matrix for gram in grams]), exponents_of(grams)
        return cls([nothing] * len(grams), np.full(len(grams), np.nan), first, step)

    @classmethod
    def of_saved(cls, saved: Mapping[str, np.ndarray], grams: Sequence[DenseGram], last_step: int) -> Reference:
        """The references that a run folder holds.

        Args:
            saved: the Grams, and what :meth:`to_save` says besides.
            grams: these Grams.
            last_step: the step of the last snapshot. A process may have been killed after it saved the references of a
                snapshot, before it wrote the line of that snapshot; these do not count.
        """
        # Version 0.1.0 took the first snapshot even if it was zero.
        steps = saved.get("steps", np.full(len(grams), saved["step"]))
        counts = (steps <= last_step) & [not flaw_of(gram) for gram in grams]
        none_yet = cls.none_yet(int(saved["step"]), grams)
        if "first" in saved:
            none_yet = replace(none_yet, first=(saved["first"], exponents_in(saved, "first_exponents")))
        return none_yet.taking(steps, grams, counts)

    def to_save(self) -> dict[str, Any]:
        """What to save besides the Grams: the step alone if the first snapshot is the reference of all layers."""
        step = {"step": self.first_step}
        if (self.steps == self.first_step).all():
            return step
        kernels, exponents = self.first
        return {**step, "steps": self.steps, "first": kernels, **to_save("first_exponents", exponents)}

    def differs_from(self, again: DenseGram) -> bool:
        """Whether kernels differ from those of the first snapshot by more than rounding."""
        with np.errstate(over="ignore", invalid="ignore"):
            first, now = undivided(*self.first), undivided(np.asarray(again.matrix), again.exponent)
            return bool(np.abs(now - first).max() > 1e-3 * np.abs(first).max())

    def lacks(self) -> np.ndarray:
        """Which layers have no reference yet, ``(L,)``."""
        return np.isnan(self.steps)

    def taking(self, steps: int | np.ndarray, grams: Sequence[DenseGram], layers: np.ndarray) -> Reference:
        """The same, with other Grams as the references of some layers, ``(L,)``."""
        taken = [new if takes else old for takes, new, old in zip(layers, grams, self.grams, strict=True)]
        return replace(self, grams=taken, steps=np.where(layers, steps, self.steps))


def exponents_of(grams: Sequence[DenseGram]) -> np.ndarray:
    """The powers of 4 by which the matrices of Grams were divided, ``(L,)``."""
    return np.asarray([0 if gram.exponent is None else gram.exponent for gram in grams], np.int32)


def to_save(name: str, exponents: np.ndarray) -> dict[str, np.ndarray]:
    """What a file says of the exponents of kernels: nothing if all are 0."""
    return {name: exponents} if exponents.any() else {}


def exponents_in(saved: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """The exponents of the kernels that a file holds, ``(L,)``."""
    return saved.get(name, np.zeros(len(saved["kernels"]), np.int32))


def _without_a_value(array: Any) -> np.ndarray:
    return np.full(array.shape, np.nan if jnp.issubdtype(array.dtype, jnp.floating) else 0, array.dtype)


def messages_of(
    flawed: Sequence[tuple[str, str, bool]], step: int, first_step: int, since: int | None
) -> Iterator[str]:
    """What to say of the first kernels of layers that have a flaw: one message for all that have the same one.

    Args:
        flawed: each such layer, its flaw, and whether it has no reference yet.
        step: the step of these kernels.
        first_step: the step of the first snapshot.
        since: the first step whose kernels may be references; None for all steps.
    """
    for flaw, lacks in dict.fromkeys((flaw, lacks) for _, flaw, lacks in flawed):
        layers = [layer for layer, *of_layer in flawed if of_layer == [flaw, lacks]]
        kernels, is_or_are, their = "kernel of layer", "is", "its"
        if len(layers) > 1:
            kernels, is_or_are, their = "kernels of layers", "are", "their"
        message = f"the {kernels} {_listed(layers)} {is_or_are} {flaw} at step {step}: {their} metrics are nan."
        if lacks:
            usable = "finite" if flaw == NOT_FINITE else f"not {flaw}"
            from_then = f"from step {since} on " if since is not None and step < since else ""
            message += f" {their.capitalize()} reference will be {their} first kernel {from_then}that is {usable}."
        yield message + (_ADVICE[flaw] if step == first_step else "")


_ADVICE = {
    "zero": " If this is not meant to start at zero, initialise its weights with other values: kernel_init= in Flax, "
    'w_init= in Haiku, logits_config={"w_init": ...} for the head of hk.nets.ResNet.',
    "constant": " All examples get the same output: the weights are zero, or what they are multiplied by is.",
    NOT_FINITE: " Usual causes at the start are weights that are too large, and a BatchNorm whose running variance is "
    "zero because its model was initialised from a single example, or from equal ones.",
}


def _listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    if len(names) > 4:
        return f"{', '.join(map(repr, names[:3]))} and {len(names) - 3} more"
    return " and ".join(filter(None, [", ".join(map(repr, names[:-1])), repr(names[-1])]))


def flaw_of(gram: DenseGram) -> str:
    """Why metrics of a layer are nan: its kernel is zero, constant or not finite; empty for a kernel without a flaw.

    Args:
        gram: its Gram, with the centred form.
    """
    # The size of a kernel is no flaw: its matrix is divided by a power of 4 before it leaves the range of its dtype.
    with np.errstate(over="ignore", invalid="ignore"):
        scale, centered = (np.diagonal(np.asarray(kernel)).mean() for kernel in (gram.matrix, gram.centered))
    numbers = np.finfo(scale.dtype)
    if not np.isfinite(scale):
        return NOT_FINITE
    if scale < numbers.tiny:
        return "zero"
    # Rounding leaves this much of equal features that were computed in different orders.
    if centered <= 4 * numbers.eps**2 * scale:
        return "constant"
    return ""
