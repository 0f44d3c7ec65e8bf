"""The empirical NNGP kernel of any ``f(params, x, **kwargs)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, Protocol, TypeGuard

import jax
from jax import Array

from .._show import facts_html, name_of
from .._typing import PyTree
from ._axes import Axes, Contraction, Leaf, all_but_batch, as_sequence, contraction_of
from ._contract import contract
from ._devices import transfers_allowed
from ._inputs import inputs, refuse_empty
from ._kwargs import is_none, split_kwargs
from ._outputs import NamedOutputs

LeafPair = tuple[int, int]
"""The places of two leaves among the outputs, which one kernel is made of."""


class LayerFn(Protocol):
    """An ``f`` whose outputs are layers, and that can reduce each layer where it is computed."""

    patterns: Any

    def reduce_layers(self, reducer: Any, params: PyTree, x: PyTree, **kwargs: Any) -> tuple[Any, Any]:
        """What ``reducer(name, y)`` makes of each layer, and a summary of the layers."""

    def summary(self, params: PyTree, x: PyTree, **kwargs: Any) -> Any:
        """The summary alone, without running the model."""

    def variables(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and state of a model."""


def has_layers(f: Any) -> TypeGuard[LayerFn]:
    """Whether the outputs of ``f`` are layers that it can reduce."""
    return hasattr(f, "reduce_layers") and f.patterns is not None


@dataclass(frozen=True)
class KernelFn:
    """The kernel function that :func:`empirical_nngp_fn` returns: frozen, hashable, callable.

    Attributes:
        f: the apply function ``f(params, x, **kwargs)``.
        trace_axes: the output axes that are averaged over.
        diagonal_axes: the output axes of which only the diagonal is kept.
        cross_terms: whether there is a kernel for every pair of outputs.
        precision: the precision of the contraction.
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

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value}" for name, value in self._facts().items())
        return f"KernelFn({shown})"

    def _repr_html_(self) -> str:
        return facts_html("KernelFn", self._facts())

    def _facts(self) -> dict[str, str]:
        """The function, and what was given besides, in short texts."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return {"f": name_of(given.pop("f"))} | {
            one.name: name_of(given[one.name]) for one in fields(self)[1:] if given[one.name] != one.default
        }

    def __call__(self, x1: PyTree, x2: PyTree | None, params: PyTree, **apply_fn_kwargs: Any) -> PyTree:
        """The kernel ``f(x1) f(x2)ᵀ``.

        Args:
            x1: inputs, a PyTree of arrays with N1 examples along axis 0.
            x2: inputs with N2 examples; None (or a PyTree of Nones) means ``x2 = x1`` and one forward pass.
            params: what ``f`` takes as its parameters.
            **apply_fn_kwargs: passed to ``f``. A 2-tuple of any name gives its first element to ``x1`` and its second
                one to ``x2`` (wrap it in :class:`Shared` to pass it whole); ``rng`` is folded for ``x2`` unless the
                inputs are equal; everything else goes to both.

        Returns:
            The PyTree of ``f``'s outputs with a kernel in place of each. It is infinite where products overflow, as
            what any function of JAX returns; :func:`batch` refuses such a kernel by name.

        Raises:
            ValueError: an empty batch; axes out of range, named twice or in both sets; outputs for ``x1`` and
                ``x2`` that differ on a traced or diagonal axis.
            TypeError: an output that is not numeric.
        """
        x1, x2 = inputs("x1", x1), inputs("x2", x2)
        refuse_empty("x1", x1)
        refuse_empty("x2", x2)
        kwargs1, kwargs2 = split_kwargs(apply_fn_kwargs, x1, x2)
        if is_none(x2) and not self.cross_terms and has_layers(self.f):
            # Kernels of the layers of a scan are made inside it, so that their outputs are never held together.
            with transfers_allowed():
                kernels, _ = self.f.reduce_layers(_OfOneOutput(self), params, x1, **kwargs1)
            return kernels.by_name()
        y1 = self.f(params, x1, **kwargs1)
        y2 = y1 if is_none(x2) else self.f(params, x2, **kwargs2)
        return self.contract(y1, y2)

    def contract(self, y1: PyTree, y2: PyTree) -> PyTree:
        """The kernel of outputs that exist already: ``y1`` of ``x1`` and ``y2`` of ``x2``."""
        outputs1, outputs2 = NamedOutputs.of(y1), NamedOutputs.of(y2)
        kernels = {
            (a, b): contract(outputs1.leaves[a], outputs2.leaves[b], contraction, self.precision)
            for (a, b), contraction in self.contractions(outputs1, outputs2).items()
        }
        return self.assemble(outputs1.structure, kernels)

    def contractions(self, outputs1: NamedOutputs, outputs2: NamedOutputs) -> dict[LeafPair, Contraction]:
        """How each kernel is contracted, by the places of its two leaves among the outputs."""
        if outputs1.structure != outputs2.structure:
            raise ValueError(
                f"f returned {outputs1.structure} for x1 but {outputs2.structure} for x2; outputs of both must have "
                "one structure."
            )
        places = range(len(outputs1.leaves))
        pairs = product(places, places) if self.cross_terms else zip(places, places, strict=True)
        return {(a, b): self._contraction(outputs1, a, outputs2, b) for a, b in pairs}

    def assemble(self, structure: Any, kernels: Mapping[LeafPair, Any]) -> PyTree:
        """Puts the kernels together as the PyTree that the user gets."""
        places = range(structure.num_leaves)
        if not self.cross_terms:
            return structure.unflatten(kernels[a, a] for a in places)
        return structure.unflatten(structure.unflatten(kernels[a, b] for b in places) for a in places)

    def _contraction(self, outputs1: NamedOutputs, a: int, outputs2: NamedOutputs, b: int) -> Contraction:
        y1, y2 = outputs1.leaves[a], outputs2.leaves[b]
        leaves = Leaf(outputs1.names[a], y1.shape), Leaf(outputs2.names[b], y2.shape)
        return contraction_of(*leaves, (y1.dtype, y2.dtype), self.trace_axes, self.diagonal_axes)


@dataclass(frozen=True)
class _OfOneOutput:
    """The kernel of one output with itself, as something to make of a layer."""

    kernel_fn: KernelFn

    def __call__(self, name: str, y: Array) -> Array:
        """The kernel of all that a layer returned."""
        kernel: Array = self.kernel_fn.contract({name: y}, {name: y})[name]
        return kernel

    def of_step(self, shape: jax.ShapeDtypeStruct) -> Callable[[str, Array], Array] | None:
        """The kernel of one step: if all axes but the batch are averaged, that of all steps is the mean of these."""
        kernel_fn, leaf = self.kernel_fn, Leaf("the output", shape.shape)
        contraction = contraction_of(leaf, leaf, (shape.dtype,) * 2, kernel_fn.trace_axes, kernel_fn.diagonal_axes)
        if sorted(contraction.traced[0]) != list(range(1, shape.ndim)):
            return None
        return _OfOneOutput(replace(kernel_fn, trace_axes=all_but_batch))


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
    ``trace_axes``; of ``diagonal_axes`` it keeps only the diagonal. The axes keep the output's own order: traced
    axes are absent, diagonal axes stand once, every other axis stands twice, adjacent. With the defaults, outputs
    ``(N, H, W, C)`` give ``K[n1, n2, h1, h2, w1, w2] = (1/C) Σ_c y1[n1, h1, w1, c] y2[n2, h2, w2, c]``.

    float16 and bfloat16 outputs are accumulated and returned in float32, integers are promoted, and complex
    outputs conjugate the second factor. Works under ``jit``, ``grad``, ``vmap``, and on inputs sharded over a mesh.

    Args:
        f: apply function ``f(params, x, **kwargs)`` that returns a PyTree of arrays with batch axis 0, such as a
            :class:`ModelFn`.
        trace_axes: the axes to average over: an int, a sequence, or a function of an output's
            ``jax.ShapeDtypeStruct``. :func:`all_but_batch` makes every kernel ``(N1, N2)``.
        diagonal_axes: the axes of which to keep only the diagonal, in the same forms.
        cross_terms: whether to compute the kernels between different outputs too: ``{a, b}`` gives
            ``{a: {a: K, b: K}, b: {a: K, b: K}}``.
        precision: the precision of the contraction. ``"highest"`` keeps accelerators from rounding to TF32 or bfloat16,
            which makes kernels indefinite. ``"float32"`` is as exact, and takes the fastest way that the device has:
            on NVIDIA GPUs since Ampere six products in bfloat16 (``BF16_BF16_F32_X6``), twice as fast as ``"highest"``
            on an H100, which turn infinite outputs into nan. ``"default"`` or anything else that
            ``jax.lax.dot_general`` takes trades digits for speed.

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
