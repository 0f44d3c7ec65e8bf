"""The arguments of a model: how it is called, and what is known of its arrays."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import PyTree
from ._sites import PARAMS, Site, X

Spread = Literal["args", "kwargs"] | None


@dataclass(frozen=True)
class Arguments:
    """The arguments of a model, taken apart into arrays and the rest.

    Attributes:
        leaves: all leaves.
        structure: the PyTree ``(params, state, rng, x, kwargs)``.
        arrays: the numbers of the leaves that are arrays.
        depends: for each array, the bits of what it is.
        rows: for each array, the axis of the batch; None if it has none.
        n: the number of examples; None if the inputs do not agree on it.
    """

    leaves: tuple[Any, ...]
    structure: Any
    arrays: tuple[int, ...]
    depends: tuple[int, ...]
    rows: tuple[int | None, ...]
    n: int | None

    @classmethod
    def of(
        cls, params: PyTree, state: PyTree, rng: Any, x: PyTree, kwargs: dict[str, Any], batch_axis: int = 0
    ) -> Arguments:
        """Takes the arguments of a call apart.

        Args:
            params: the parameters.
            state: the state.
            rng: the key.
            x: the inputs.
            kwargs: the keyword arguments.
            batch_axis: the axis of the batch in the inputs; arrays with fewer axes have it in front.
        """

        def axis_of(leaf: Any) -> int:
            return batch_axis if leaf.ndim > batch_axis else 0

        lengths = {leaf.shape[axis_of(leaf)] if leaf.ndim else None for leaf in jax.tree.leaves(x) if is_array(leaf)}
        n = lengths.pop() if len(lengths) == 1 else None
        leaves, structure = jax.tree.flatten((params, state, rng, x, kwargs))
        roles = [i for i, part in enumerate((params, state, rng, x, kwargs)) for _ in jax.tree.leaves(part)]
        arrays = tuple(i for i, leaf in enumerate(leaves) if is_array(leaf))
        depends = tuple((PARAMS, PARAMS, 0, X, X)[roles[i]] for i in arrays)
        rows: list[int | None] = []
        for i in arrays:
            has_rows = n is not None and roles[i] >= 3 and leaves[i].ndim and leaves[i].shape[axis_of(leaves[i])] == n
            rows.append(axis_of(leaves[i]) if has_rows else None)
        return cls(tuple(leaves), structure, arrays, depends, tuple(rows), n)

    @property
    def values(self) -> list[Any]:
        """The arrays."""
        return [self.leaves[i] for i in self.arrays]

    def in_doubt(self, site: Site) -> bool:
        """Whether the rules for single equations do not tell if a site has a batch."""
        return bool(site.known.depends & X) and site.known.batch is None and self.n in site.aval.shape

    def of_twice_the_batch(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of the arrays for twice as many examples."""
        structs = []
        for value, rows in zip(self.values, self.rows, strict=True):
            shape = list(value.shape)
            if rows is not None:
                shape[rows] *= 2
            structs.append(jax.ShapeDtypeStruct(tuple(shape), value.dtype))
        return structs

    def with_arrays(self, arrays: Sequence[Any]) -> Any:
        """The arguments with other arrays."""
        leaves = list(self.leaves)
        for i, array in zip(self.arrays, arrays, strict=True):
            leaves[i] = array
        return self.structure.unflatten(leaves)


def is_array(leaf: Any) -> bool:
    """Whether this is an array, or the shape of one."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def check_key(rng: Any) -> None:
    """Refuses what is no key.

    Raises:
        TypeError: says how to make one.
    """
    if rng is not None and not hasattr(rng, "dtype"):
        raise TypeError(f"rng={reprlib.repr(rng)} is not a key; pass rng=jax.random.key({reprlib.repr(rng)}).")


def move_batch(x: PyTree, source: int, destination: int) -> PyTree:
    """Inputs with the axis of the batch in another place; arrays with too few axes stay as they are."""

    def moved(leaf: Any) -> Any:
        move = np.moveaxis if isinstance(leaf, np.ndarray) else jnp.moveaxis
        return move(leaf, source, destination) if leaf.ndim > max(source, destination) else leaf

    return jax.tree.map(lambda leaf: moved(leaf) if is_array(leaf) else leaf, x)


def spread_input(x: PyTree, spread: Spread) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of ``model(x)``, ``model(*x)`` or ``model(**x)``."""
    if spread == "args":
        return tuple(x), {}
    if spread == "kwargs":
        return (), dict(x)
    return (x,), {}


def frozen_kwargs(adapter: str, spread: Spread, kwargs: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Returns the keyword arguments of an adapter in hashable form, after checking them and ``spread``."""
    if spread not in (None, "args", "kwargs"):
        raise ValueError(
            f"spread={spread!r} must be None for model(x), 'args' for model(*x) or 'kwargs' for model(**x)."
        )
    for name, value in kwargs.items():
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"{adapter}(..., {name}=...) got an unhashable {type(value).__name__}; flags and numbers go here, "
                f"arrays go to the call: f(params, x, {name}=...)."
            ) from None
    return tuple(sorted(kwargs.items()))


def accepts_argument(function: Callable[..., Any], name: str) -> bool:
    """Returns whether ``function`` can be called with ``name=...``."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == name or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
