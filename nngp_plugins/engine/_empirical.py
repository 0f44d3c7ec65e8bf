"""The empirical NNGP kernel of any ``f(params, x, **kwargs)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp

from ._axes import Axes, Leaf, Plan, as_sequence, plan
from ._contract import contract
from ._inputs import refuse_empty
from ._kwargs import is_none, split_kwargs

PyTree = Any


@dataclass(frozen=True)
class KernelFn:
    """The kernel function that :func:`empirical_nngp_fn` returns: frozen, hashable, callable.

    Attributes:
        f: the apply function ``f(params, x, **kwargs)``.
        trace_axes: output axes averaged over.
        diagonal_axes: output axes of which only the diagonal is kept.
        cross_terms: whether there is a kernel for every pair of outputs.
        precision: precision of the contraction.
    """

    f: Callable[..., PyTree]
    trace_axes: Axes = (-1,)
    diagonal_axes: Axes = ()
    cross_terms: bool = False
    precision: Any = "highest"

    def __post_init__(self) -> None:
        if not callable(self.f):
            raise TypeError(
                f"f={self.f!r} is not callable; pass a function f(params, x, **kwargs), such as "
                "nngp.from_linen(module), nngp.from_nnx(model) or nngp.from_haiku(transformed) gives."
            )
        for name in ("trace_axes", "diagonal_axes"):
            if (axes := as_sequence(getattr(self, name))) is not None:
                object.__setattr__(self, name, axes)

    def __call__(self, x1: PyTree, x2: PyTree | None, params: PyTree, **apply_fn_kwargs: Any) -> PyTree:
        """The kernel ``f(x1) f(x2)ᵀ``.

        Args:
            x1: inputs, a PyTree of arrays with the batch of N1 examples in front.
            x2: inputs with a batch of N2 examples; None (or a PyTree of Nones) means ``x2 = x1`` and one
                forward pass.
            params: what ``f`` takes as its parameters.
            **apply_fn_kwargs: passed to ``f``. A 2-tuple, of whatever name, gives its first to ``x1`` and its second
                to ``x2`` (wrap it in :class:`Shared` to pass it whole); ``rng`` is folded for ``x2`` unless the inputs
                are equal; all else goes to both.

        Returns:
            The PyTree of ``f``'s outputs with a kernel in place of each.

        Raises:
            ValueError: an empty batch; axes out of range, named twice or in both sets; outputs for ``x1`` and
                ``x2`` that differ on a traced or diagonal axis.
            TypeError: an output that is not numeric.
        """
        refuse_empty("x1", x1)
        refuse_empty("x2", x2)
        kwargs1, kwargs2 = split_kwargs(apply_fn_kwargs, x1, x2)
        y1 = self.f(params, x1, **kwargs1)
        y2 = y1 if is_none(x2) else self.f(params, x2, **kwargs2)
        return self.contract(y1, y2)

    def contract(self, y1: PyTree, y2: PyTree) -> PyTree:
        """The kernel of outputs that are already there: ``y1`` of ``x1`` and ``y2`` of ``x2``."""
        outputs1, outputs2 = Outputs.of(y1), Outputs.of(y2)
        kernels = {
            (a, b): contract(outputs1.leaves[a], outputs2.leaves[b], leaf_plan, self.precision)
            for (a, b), leaf_plan in self.plans(outputs1, outputs2).items()
        }
        return self.assemble(outputs1.structure, kernels)

    def plans(self, outputs1: Outputs, outputs2: Outputs) -> dict[tuple[int, int], Plan]:
        """How each kernel is contracted, by the places of its two leaves among the outputs."""
        if outputs1.structure != outputs2.structure:
            raise ValueError(
                f"f returned {outputs1.structure} for x1 but {outputs2.structure} for x2; outputs of both must have "
                "one structure."
            )
        places = range(len(outputs1.leaves))
        pairs = product(places, places) if self.cross_terms else zip(places, places, strict=True)
        return {(a, b): self._plan_leaves(outputs1, a, outputs2, b) for a, b in pairs}

    def assemble(self, structure: Any, kernels: Mapping[tuple[int, int], Any]) -> PyTree:
        """Kernels by the places of their two leaves as the PyTree that the user gets."""
        places = range(structure.num_leaves)
        if not self.cross_terms:
            return structure.unflatten(kernels[a, a] for a in places)
        return structure.unflatten(structure.unflatten(kernels[a, b] for b in places) for a in places)

    def _plan_leaves(self, outputs1: Outputs, a: int, outputs2: Outputs, b: int) -> Plan:
        y1, y2 = outputs1.leaves[a], outputs2.leaves[b]
        leaves = Leaf(outputs1.names[a], y1.shape), Leaf(outputs2.names[b], y2.shape)
        return plan(*leaves, (y1.dtype, y2.dtype), self.trace_axes, self.diagonal_axes)


@dataclass(frozen=True)
class Outputs:
    """What ``f`` returned, taken apart.

    Attributes:
        structure: the PyTree without its leaves.
        paths: of each leaf in it, such as ``block/conv``; empty for a single array.
        leaves: arrays, or their shapes and dtypes.
    """

    structure: Any
    paths: tuple[str, ...]
    leaves: tuple[Any, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The leaves as messages call them."""
        return tuple(f"output {path!r}" if path else "the output" for path in self.paths)

    @classmethod
    def of(cls, y: PyTree) -> Outputs:
        """Takes outputs apart.

        Raises:
            TypeError: a leaf is not numeric.
            ValueError: a leaf is empty.
        """
        named = cls.named(y)
        leaves = tuple(_as_array(name, leaf) for name, leaf in zip(named.names, named.leaves, strict=True))
        return replace(named, leaves=leaves)

    @classmethod
    def named(cls, y: PyTree) -> Outputs:
        """Takes outputs apart, whatever the leaves are."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(y)
        paths = tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
        return cls(structure, paths, tuple(leaf for _, leaf in leaves))


def empirical_nngp_fn(
    f: Callable[..., PyTree],
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    *,
    cross_terms: bool = False,
    precision: Any = "highest",
) -> KernelFn:
    """The empirical NNGP kernel of a network, a drop-in for ``neural_tangents.empirical_nngp_fn``.

    For every output ``y`` of ``f`` the kernel is the outer product ``y(x1) y(x2)ᵀ``, averaged over
    ``trace_axes`` and kept on the diagonal over ``diagonal_axes``. The axes keep the output's own order: traced
    axes are absent, diagonal axes stand once, every other axis twice and adjacent. With the defaults, outputs
    ``(N, H, W, C)`` give ``K[n1, n2, h1, h2, w1, w2] = (1/C) Σ_c y1[n1, h1, w1, c] y2[n2, h2, w2, c]``.

    float16 and bfloat16 outputs are accumulated and returned in float32, integers are promoted, and complex
    outputs conjugate the second factor. Works under ``jit``, ``grad``, ``vmap``, and on inputs sharded over a mesh.

    Args:
        f: apply function ``f(params, x, **kwargs)`` that returns a PyTree of arrays with batch axis 0, such as a
            :class:`ModelFn`.
        trace_axes: axes to average over: an int, a sequence, or a function of an output's
            ``jax.ShapeDtypeStruct``. :func:`all_but_batch` makes every kernel ``(N1, N2)``.
        diagonal_axes: axes of which to keep only the diagonal, in the same forms.
        cross_terms: with several outputs, also the kernels between them: ``{a, b}`` gives
            ``{a: {a: K, b: K}, b: {a: K, b: K}}``.
        precision: of the contraction, as ``jax.lax.dot_general`` takes it. The default keeps accelerators from
            rounding to TF32 or bfloat16, which makes kernels indefinite.

    Returns:
        ``kernel_fn(x1, x2, params, **apply_fn_kwargs)``, see :meth:`KernelFn.__call__`.

    Source: Novak et al., "Neural Tangents: Fast and Easy Infinite Neural Networks in Python", ICLR 2020, §2.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel_fn = nngp.empirical_nngp_fn(lambda params, x: x @ params)
        >>> x, params = jnp.eye(3), jnp.ones((3, 5))
        >>> kernel_fn(x, None, params)
        Array([[1., 1., 1.],
               [1., 1., 1.],
               [1., 1., 1.]], dtype=float32)
    """
    return KernelFn(f, trace_axes, diagonal_axes, cross_terms, precision)


def _as_array(name: str, y: Any) -> jax.Array:
    try:
        array = jnp.asarray(y)
        numeric = jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool
    except TypeError:
        numeric = False
    if not numeric:
        found = getattr(y, "dtype", None) or type(y).__name__
        raise TypeError(f"{name} of f is {found}, not numeric; return arrays of numbers (None is left out).")
    if array.size == 0:
        raise ValueError(f"{name} of f is empty, with shape {array.shape}; a kernel needs at least one number.")
    return array
