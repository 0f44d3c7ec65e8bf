"""A mean over random draws with its standard error, accumulated in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._typing import PyTree, wide


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Estimate:
    """A mean over random draws with its standard error.

    It is also the state of its computation, from which another call can go on.

    Attributes:
        mean: the mean over the draws, in the form of one draw.
        squares: the sum of the squared distances from the mean.
        n: the number of draws.
        source: a fingerprint of the key and the inputs that it was drawn from.
    """

    mean: PyTree
    squares: PyTree
    n: int
    source: str = field(default="", metadata={"static": True})

    @property
    def standard_error(self) -> PyTree:
        """The standard error of each entry of the mean, ``√(squares / (n (n − 1)))``; nan for a single draw."""
        count = np.float64(self.n)
        # One draw says nothing of its spread.
        scale = 1 / (count * (count - 1)) if self.n > 1 else np.nan
        return jax.tree.map(lambda s: jnp.sqrt(s * jnp.asarray(scale, s.dtype)), self.squares)

    @property
    def relative_error(self) -> float:
        """The largest standard error of an entry, relative to the root mean square of all entries of its output."""
        if self.n < 2:
            return float("nan")
        return float(np.max([*_relative_errors(self.mean, self.standard_error), 0.0]))


@jax.jit
def _relative_errors(mean: PyTree, error: PyTree) -> list[Array]:
    def of_leaf(m: Array, e: Array) -> Array:
        # An output that is always zero has no error.
        return jnp.where(jnp.max(e) == 0, 0, jnp.max(e) / jnp.sqrt(jnp.mean(jnp.abs(m) ** 2)))

    return [of_leaf(m, e) for m, e in zip(jax.tree.leaves(mean), jax.tree.leaves(error), strict=True)]


def no_draws(like: PyTree) -> tuple[PyTree, PyTree]:
    """The mean and the squares of no draws, for draws of these shapes and dtypes."""

    def zeros(leaf: Any, of: Any) -> Array:
        return jnp.zeros(leaf.shape, of(jnp.zeros((), wide(leaf.dtype))).dtype)

    return jax.tree.map(lambda y: zeros(y, lambda z: z), like), jax.tree.map(lambda y: zeros(y, jnp.abs), like)


def add_draws(sums: tuple[PyTree, PyTree], n: Array | int, draws: PyTree, counts: Array | int) -> tuple[PyTree, PyTree]:
    """The mean and the squares of ``n`` draws and of some more, without cancellation.

    Args:
        sums: mean and squares so far.
        n: the number of draws so far.
        draws: new draws along axis 0 of each leaf.
        counts: how many of them count, from the first on.

    Source: Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance", 1983, eq. 2.1.
    """

    def add(mean: Array, squares: Array, new: Array) -> tuple[Array, Array]:
        before, more = (jnp.asarray(count, squares.dtype) for count in (n, counts))
        counted = (jnp.arange(len(new)) < counts).reshape(-1, *(1,) * mean.ndim)
        new_mean = jnp.sum(jnp.where(counted, new, 0), axis=0) / more
        new_squares = jnp.sum(jnp.where(counted, jnp.abs(new - new_mean) ** 2, 0), axis=0)
        step = new_mean - mean
        share = more / (before + more)
        return mean + step * share, squares + new_squares + jnp.abs(step) ** 2 * (before * share)

    means, squares = sums
    structure: Any = jax.tree.structure(means)
    pairs = [
        add(*leaves)
        for leaves in zip(jax.tree.leaves(means), jax.tree.leaves(squares), jax.tree.leaves(draws), strict=True)
    ]
    return structure.unflatten(p for p, _ in pairs), structure.unflatten(s for _, s in pairs)
