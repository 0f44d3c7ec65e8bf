"""How large a kernel is, and over how many directions it spreads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
from jax import Array

from ._gram import Gram, as_gram

if TYPE_CHECKING:
    from jaxtyping import Float  # takes as long to import as all of this package


def scale(a: Gram | Array) -> Float[Array, ""]:
    """Mean squared size of a feature vector, ``tr K / N``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> float(nngp.metrics.scale(2 * jnp.eye(4)))
        2.0
    """
    return as_gram(a).diagonal().mean()


def effective_rank(a: Gram | Array, of: Literal["eigenvalues", "singular_values"] = "eigenvalues") -> Float[Array, ""]:
    """Number of directions that a kernel spreads over: ``exp(−Σ p log p)`` with ``p = λ / Σ λ``.

    It is 1 for a kernel of rank one and N for a multiple of the identity.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        of: ``"eigenvalues"`` λ of the kernel, or ``"singular_values"`` ``sqrt(λ)`` of the features, which gives
            RankMe.

    Returns:
        A scalar in [1, min(N, D)]; nan for a zero kernel.

    Raises:
        ValueError: an unknown ``of``.

    Source: Roy & Vetterli, "The effective rank", EUSIPCO 2007, eq. 4; Garrido et al., "RankMe", ICML 2023, eq. 1.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> round(float(nngp.metrics.effective_rank(jnp.eye(4))), 3)
        4.0
    """
    if of not in ("eigenvalues", "singular_values"):
        raise ValueError(f"of={of!r} must be 'eigenvalues' (of the kernel) or 'singular_values' (of the features).")
    gram = as_gram(a)
    values = jnp.maximum(gram.eigvalsh(), 0) if of == "eigenvalues" else gram.singular_values()
    from jax.scipy.special import entr  # here, for it takes long to import

    return jnp.exp(jnp.sum(entr(values / values.sum())))
