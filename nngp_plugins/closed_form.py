"""Kernels of infinitely wide dense networks in closed form, the reference for empirical and Monte-Carlo kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ._typing import wide

if TYPE_CHECKING:
    from jaxtyping import Float

Moment = Callable[[Array, Array, Array], Array]
"""From ``k = E[u v]``, ``p = E[u²]`` and ``q = E[v²]`` of Gaussian ``u, v`` with mean zero to ``E[φ(u) φ(v)]``."""


def _relu(k: Array, p: Array, q: Array) -> Array:
    """``√(p q) (sin θ + (π − θ) cos θ) / 2π`` with ``cos θ = k / √(p q)``: Cho & Saul, NeurIPS 2009, eq. 6."""
    size = _root(p) * _root(q)
    cosine = k / jnp.where(size > 0, size, 1)
    # At an angle of 0 or π the slope of the sine and of θ is infinite, though that of their sum is not.
    between = jnp.abs(cosine) < 1
    c = jnp.where(between, cosine, 0)
    sine = jnp.sqrt((1 - c) * (1 + c))
    inside = (sine + (jnp.pi - jnp.arctan2(sine, c)) * c) / (2 * jnp.pi)
    return size * jnp.where(between, inside, jax.nn.relu(cosine) / 2)


def _root(p: Array) -> Array:
    """``√p`` with slope zero at zero, where the input is zero and no direction goes up."""
    return jnp.where(p > 0, jnp.sqrt(jnp.where(p > 0, p, 1)), 0)


def _erf(k: Array, p: Array, q: Array) -> Array:
    """``(2/π) asin(2 k / √((1 + 2p)(1 + 2q)))``: Williams, "Computing with Infinite Networks", NeurIPS 1996, eq. 11."""
    return 2 / jnp.pi * jnp.arcsin(2 * k / (jnp.sqrt(1 + 2 * p) * jnp.sqrt(1 + 2 * q)))


def _gelu(k: Array, p: Array, q: Array) -> Array:
    """``k (1/4 + asin(k/√M) / 2π) + (p q + k² (1 − p q) / M) / (2π √(M − k²))`` with ``M = (1 + p)(1 + q)``.

    It follows from Stein's lemma; another form of it: Tsuchida et al., "Avoiding Kernel Fixed Points", AAAI 2021.
    """
    m = (1 + p) * (1 + q)
    root = jnp.sqrt(m - k * k)
    curved = (p * q + k * k * (1 - p * q) / m) / (2 * jnp.pi * root)
    return k * (0.25 + jnp.arctan2(k, root) / (2 * jnp.pi)) + curved


def _identity(k: Array, p: Array, q: Array) -> Array:
    return k


MOMENTS: dict[str, Moment] = {"relu": _relu, "erf": _erf, "gelu": _gelu, "identity": _identity}


@dataclass(frozen=True)
class DenseKernelFn:
    """The kernel function that :func:`dense` returns: frozen, hashable, callable.

    Attributes:
        depth: the number of hidden layers.
        activation: the name of what follows each of them.
        w_var: variance of the weights, times their number of inputs.
        b_var: variance of the biases.
    """

    depth: int
    activation: str
    w_var: float = 1.0
    b_var: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.depth, int) or self.depth < 0:
            raise ValueError(f"depth={self.depth!r} must be a number of hidden layers, 0 or more.")
        if self.activation not in MOMENTS:
            raise ValueError(f"activation={self.activation!r} must be one of {', '.join(map(repr, MOMENTS))}.")
        for name in ("w_var", "b_var"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} is a variance, so it must be 0 or more.")

    def __call__(self, x1: Array, x2: Array | None = None) -> Float[Array, "N1 N2"]:
        """The kernel of the network's output.

        Args:
            x1: inputs ``(N1, ...)``, all axes but the first flattened.
            x2: inputs ``(N2, ...)``; None for ``x1``.

        Returns:
            ``(N1, N2)``.

        Raises:
            ValueError: inputs with different numbers of features, or without a batch axis.
        """
        return _recursion(self.depth, self.activation, False, self.w_var, self.b_var, *_flat(x1, x2))

    def layers(self, x1: Array, x2: Array | None = None) -> Float[Array, "L N1 N2"]:
        """The kernels of all dense layers before their activation, ``(depth + 1, N1, N2)``; the last is the output's.

        Divide ``kernel − b_var`` of the next layer by ``w_var`` for the kernel after an activation.
        """
        return _recursion(self.depth, self.activation, True, self.w_var, self.b_var, *_flat(x1, x2))


def dense(depth: int, activation: str, w_var: float = 1.0, b_var: float = 0.0) -> DenseKernelFn:
    """The kernel of a dense network of infinite width at initialisation, in closed form.

    ``K⁰ = b_var + w_var x·x'/D`` and ``Kˡ = b_var + w_var E[φ(u) φ(v)]`` with ``(u, v)`` Gaussian of covariance
    ``Kˡ⁻¹``; the result is ``K^depth``, of ``depth`` hidden layers and a readout. It is the limit of
    :func:`monte_carlo_kernel_fn` for wide layers, whose weights have variance ``w_var`` over their number of inputs.
    The defaults are those of Flax and Haiku. These draw weights from a truncated normal, so that even the first kernel
    is a limit, of many inputs.

    Args:
        depth: number of hidden layers; 0 for a linear model.
        activation: ``"relu"``, ``"erf"``, ``"gelu"`` (the exact one: ``jax.nn.gelu(x, approximate=False)``) or
            ``"identity"``.
        w_var: variance of the weights, times their number of inputs: 1 for LeCun's, 2 for He's.
        b_var: variance of the biases.

    Returns:
        ``kernel_fn(x1, x2=None) -> (N1, N2)``, which works under ``jit``, ``grad`` and ``vmap``; see
        :class:`DenseKernelFn`.

    Raises:
        ValueError: a negative depth or variance, or another activation.

    Source: Lee et al., "Deep Neural Networks as Gaussian Processes", ICLR 2018, eq. 4 and 5.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel_fn = nngp.closed_form.dense(depth=3, activation="relu", w_var=2.0)
        >>> print(kernel_fn(jnp.eye(2)).round(3))
        [[1.    0.605]
         [0.605 1.   ]]
    """
    return DenseKernelFn(depth, activation, w_var, b_var)


def _flat(x1: Array, x2: Array | None) -> tuple[Array, Array | None]:
    """Inputs as ``(N, D)``."""
    flat = []
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None:
            x = jnp.asarray(x)
            if x.ndim == 0:
                raise ValueError(f"{name} of shape () has no batch axis; pass inputs (N, ...).")
            flat.append(x.reshape(len(x), -1).astype(wide(x.dtype)))
    if len({x.shape[1] for x in flat}) > 1:
        raise ValueError(f"x1 has {flat[0].shape[1]} features and x2 has {flat[1].shape[1]}; they must be the same.")
    return flat[0], flat[1] if len(flat) > 1 else None


@partial(jax.jit, static_argnums=(0, 1, 2))
def _recursion(
    depth: int, activation: str, every_layer: bool, w_var: Any, b_var: Any, x1: Array, x2: Array | None
) -> Array:
    moment = MOMENTS[activation]

    def layer(kernels: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], Any]:
        # A variance is the covariance of a unit with itself.
        k, p, q = kernels
        k, p, q = (b_var + w_var * m for m in (moment(k, p[:, None], q), moment(p, p, p), moment(q, q, q)))
        return (k, p, q), k if every_layer else None

    def squares(x: Array) -> Array:
        return b_var + w_var * jnp.mean(x * x, axis=1)

    other = x1 if x2 is None else x2
    k: Array = b_var + w_var * jnp.matmul(x1, other.T, precision="highest") / x1.shape[1]
    p, q = squares(x1), squares(other)
    (last, _, _), later = lax.scan(layer, (k, p, q), length=depth)
    return jnp.concatenate([k[None], later]) if every_layer else last
