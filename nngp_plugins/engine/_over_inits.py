"""Monte Carlo over initialisations: the kernel of a network as a mean with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax import Array

from .._static import Static
from .._typing import PyTree
from ._axes import Axes
from ._batch import BatchedKernelFn, batch
from ._draws import Count, Draws
from ._estimate import Estimate
from ._inputs import refuse_empty
from ._keys import KEYS
from ._kwargs import Shared
from ._nngp import KernelFn, empirical_nngp_fn


@dataclass(frozen=True)
class NewNetwork:
    """New parameters of a network, drawn from a key.

    Attributes:
        f: the apply function.
        init: what makes its parameters; None for ``f.init``.
    """

    f: Callable[..., PyTree]
    init: Static | None = None

    def __post_init__(self) -> None:
        if self.init is None and not hasattr(self.f, "init"):
            raise TypeError(
                f"f={self.f!r} has no init; pass init=, a function init(key, x) -> params, or a ModelFn, such as "
                "nngp.from_linen(module) gives."
            )
        if self.init is not None and not callable(self.init.value):
            raise TypeError(f"init={self.init!r} is not a function init(key, x) -> params.")

    def __call__(self, key: Array, number: Any, x: PyTree, kwargs: dict[str, Any]) -> tuple[PyTree, dict[str, Any]]:
        """Parameters, and the keyword arguments of ``f``; noise is drawn anew for each network."""
        kwargs = {
            name: jax.tree.map(lambda k: jax.random.fold_in(k, number), value) if name in KEYS else value
            for name, value in kwargs.items()
        }
        init = self.f.init if self.init is None else self.init.value  # type: ignore[attr-defined]
        params = init(key, x)
        if hasattr(self.f, "init"):
            params, state = params
            if jax.tree.leaves(state):
                kwargs.setdefault("state", state)
        return params, kwargs


@dataclass(frozen=True)
class _KernelOfInit:
    """The kernel of a new network."""

    kernel_fn: KernelFn | BatchedKernelFn
    network: NewNetwork

    def __call__(self, key: Array, number: Any, x1: PyTree, x2: PyTree, kwargs: dict[str, Any]) -> PyTree:
        params, given = self.network(key, number, x1, kwargs)
        # A new state may be a pair, which is not one for each side.
        kwargs = {name: value if name in kwargs else Shared(value) for name, value in given.items()}
        kernel_fn = self.kernel_fn
        if isinstance(kernel_fn, BatchedKernelFn) and number:
            # What the first network shows of f and its batches is true of all.
            kernel_fn = replace(kernel_fn, check=False)
        return kernel_fn(x1, x2, params, **kwargs)


@dataclass(frozen=True, eq=False)
class MonteCarloKernelFn:
    """The kernel function that :func:`monte_carlo_kernel_fn` returns.

    Attributes:
        kernel_fn: the empirical kernel function that is averaged.
        network: how a network is drawn.
        draws: how many are.
    """

    kernel_fn: KernelFn | BatchedKernelFn
    network: NewNetwork
    draws: Draws

    def __call__(
        self, x1: PyTree, x2: PyTree | None = None, *, resume: Estimate | None = None, **apply_fn_kwargs: Any
    ) -> Estimate | Iterator[Estimate]:
        """The mean kernel of networks drawn at initialisation.

        Args:
            x1: inputs with N1 examples along axis 0.
            x2: inputs with N2 examples; None for ``x1``.
            resume: an :class:`Estimate` of the same key and inputs, to go on from.
            **apply_fn_kwargs: passed to ``f`` as by :class:`KernelFn`; ``rng`` is folded for each network, so that
                noise is drawn anew.

        Returns:
            An :class:`Estimate`, whose ``mean`` has the form of an empirical kernel. For several ``n_samples``, an
            iterator of them.

        Raises:
            ValueError: as the empirical kernel function does; ``resume`` belongs to another key or other inputs.
            TypeError: the call is inside ``jit``.

        Warns:
            RuntimeWarning: the most draws were made before the tolerance was reached.
        """
        refuse_empty("x1", x1)
        refuse_empty("x2", x2)
        kernel = _KernelOfInit(self.kernel_fn, self.network)
        return self.draws.means(
            kernel, (x1, x2, apply_fn_kwargs), resume, eager=isinstance(self.kernel_fn, BatchedKernelFn)
        )


def monte_carlo_kernel_fn(
    f: Callable[..., PyTree],
    key: Array,
    n_samples: Count,
    *,
    init: Callable[..., PyTree] | None = None,
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    cross_terms: bool = False,
    batch_size: int = 0,
    tolerance: float | None = None,
    inits_at_once: int | None = None,
    precision: Any = "highest",
) -> MonteCarloKernelFn:
    """The mean empirical kernel of randomly initialised networks, with its standard error.

    For wide layers the mean tends to the kernel of the infinite network. A finite width leaves a bias, which no number
    of draws removes, and which :mod:`closed_form` measures. Kernels are added up one by one, so memory does not grow
    with ``n_samples``.

    Args:
        f: apply function, as for :func:`empirical_nngp_fn`.
        key: a key of ``jax.random``. Network i is drawn from ``fold_in(key, i)``.
        n_samples: the number of networks; several numbers give an iterator over the mean after each, ascending.
        init: ``init(key, x) -> params``; None for ``f.init``. For a :class:`ModelFn` it returns ``(params, state)``,
            as ``lambda key, x: f.init(key, x, train=True)`` does.
        trace_axes: as for :func:`empirical_nngp_fn`.
        diagonal_axes: as for :func:`empirical_nngp_fn`.
        cross_terms: as for :func:`empirical_nngp_fn`.
        batch_size: examples in a forward pass, as for :func:`batch`; 0 for all at once, in one compiled program.
        tolerance: the relative error (``Estimate.relative_error``) at which to stop before ``n_samples``.
        inits_at_once: networks that run side by side; None for one on a CPU, which is faster so, and for as many as fit
            on an accelerator. It does not matter to the result.
        precision: as for :func:`empirical_nngp_fn`.

    Returns:
        ``kernel_fn(x1, x2=None, *, resume=None, **apply_fn_kwargs) -> Estimate``; see :class:`MonteCarloKernelFn`.

    Raises:
        TypeError: ``f`` has no ``init``, and none is given.
        ValueError: a number is not positive.

    Source: Novak et al., "Bayesian Deep Convolutional Networks with Many Channels are Gaussian Processes", ICLR 2019,
    §3.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn, nngp_plugins as nngp
        >>> f = nngp.from_linen(nn.Sequential([nn.Dense(256), nn.relu, nn.Dense(256)]))
        >>> x = jax.random.normal(jax.random.key(0), (3, 8))
        >>> estimate = nngp.monte_carlo_kernel_fn(f, jax.random.key(1), n_samples=100)(x)
        >>> infinite = nngp.closed_form.dense(depth=1, activation="relu")(x)
        >>> bool((abs(estimate.mean - infinite) < 5 * estimate.standard_error).all())
        True
    """
    kernel_fn = empirical_nngp_fn(f, trace_axes, diagonal_axes, cross_terms=cross_terms, precision=precision)
    network = NewNetwork(f, None if init is None else Static(init))
    draws = Draws(key, n_samples, tolerance, inits_at_once)
    return MonteCarloKernelFn(batch(kernel_fn, batch_size) if batch_size else kernel_fn, network, draws)
