"""How large a kernel is, and over how many directions it spreads."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
from jax import Array

from ._catalogue import EIGENVALUES, INNER, ROTATION, SCALE, entry
from ._gram import Gram
from ._powers import times_power_of_4
from ._to_grams import as_gram, one_program

if TYPE_CHECKING:
    from jaxtyping import Float


@entry(
    title="Scale  tr K / N",
    formula="tr K / N",
    range="≥ 0",
    cost="N D",
    tells="the mean squared size of an example's features: whether signals explode or vanish with depth",
    misleads="it says nothing about geometry",
    log_axis=True,
    in_units_of_kernel=True,
    tracked=True,
)
def scale(a: Gram | Array) -> Float[Array, ""]:
    """Mean squared size of a feature vector, ``tr K / N``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.

    Source: Schoenholz et al., "Deep Information Propagation", ICLR 2017 (the length of a signal, q).

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> float(nngp.metrics.scale(2 * jnp.eye(4)))
        2.0
    """
    return _scale(as_gram(a))


@one_program
def _scale(a: Gram) -> Float[Array, ""]:
    unit, exponent = a.normalised()
    return times_power_of_4(unit.trace() / a.n, exponent)


@entry(
    title="Effective rank",
    formula="exp(−Σ p log p)",
    range="[1, min(N, D)]",
    cost=EIGENVALUES,
    tells="over how many directions the kernel spreads",
    misleads="it uses eigenvalues λ, not singular values: `of='singular_values'` gives RankMe, which is larger. An "
    "offset that all features share pulls it to 1",
    invariant=(ROTATION, SCALE),
    needs_spectrum=True,
    tracked=True,
)
def effective_rank(a: Gram | Array, of: Literal["eigenvalues", "singular_values"] = "eigenvalues") -> Float[Array, ""]:
    """Number of directions over which a kernel spreads: ``exp(−Σ p log p)`` with ``p = λ / Σ λ``.

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
    return jnp.exp(_entropy(as_gram(a, eigenvalues=True), of))


@entry(
    title="Von Neumann entropy",
    formula="−Σ p log p",
    range="[0, log min(N, D)], in nats",
    cost=EIGENVALUES,
    tells="the logarithm of effective_rank",
    misleads="as effective_rank",
    invariant=(ROTATION, SCALE),
    needs_spectrum=True,
)
def von_neumann_entropy(a: Gram | Array) -> Float[Array, ""]:
    """Entropy of a kernel's spectrum, in nats: ``−Σ p log p`` with ``p = λ / Σ λ``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.

    Returns:
        A scalar in [0, log min(N, D)]; nan for a zero kernel.

    Source: Bach, "Information Theory with Kernel Methods", IEEE Trans. Inf. Theory 2022.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> round(float(nngp.metrics.von_neumann_entropy(jnp.eye(4))), 3)  # log 4
        1.386
    """
    return _entropy(as_gram(a, eigenvalues=True), "eigenvalues")


@partial(one_program, static_argnames="of")
def _entropy(a: Gram, of: str) -> Array:
    """``−Σ p log p`` with ``p = values / Σ values``."""
    from jax.scipy.special import entr

    unit, _ = a.normalised()
    values = unit.singular_values() if of == "singular_values" else jnp.maximum(unit.eigvalsh(), 0)
    return jnp.sum(entr(values / values.sum()))


@entry(
    title="Participation ratio",
    formula="(tr K)² / ‖K‖²",
    range="[1, min(N, D)]",
    cost=INNER,
    tells="over how many directions the size of the kernel spreads, without computing eigenvalues",
    misleads="large eigenvalues count more than in effective_rank, so a mean hides everything else: centre first",
    invariant=(ROTATION, SCALE),
    tracked=True,
)
def participation_ratio(a: Gram | Array) -> Float[Array, ""]:
    """Number of directions that carry the size of a kernel: ``(tr K)² / ‖K‖² = (Σ λ)² / Σ λ²``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.

    Returns:
        A scalar in [1, min(N, D)]; nan for a zero kernel.

    Source: Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement", 2017.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> float(nngp.metrics.participation_ratio(jnp.eye(4)))
        4.0
    """
    return _participation_ratio(as_gram(a))


@one_program
def _participation_ratio(a: Gram) -> Float[Array, ""]:
    unit, _ = a.normalised()
    size = unit.frobenius()
    return (unit.trace() / jnp.where((size > 0) & (size < jnp.inf), size, jnp.nan)) ** 2


@entry(
    title="Stable rank",
    formula="tr K / λ₁",
    range="[1, min(N, D)]",
    cost=EIGENVALUES,
    tells="how much there is beside the leading direction",
    misleads="the leading direction is often the mean: centre first",
    invariant=(ROTATION, SCALE),
    needs_spectrum=True,
    tracked=True,
)
def stable_rank(a: Gram | Array) -> Float[Array, ""]:
    """The trace in multiples of the largest eigenvalue: ``tr K / λ₁``, for features ``‖phi‖²_F / ‖phi‖₂²``.

    Args:
        a: a Gram, or a kernel ``(N, N)``.

    Returns:
        A scalar in [1, min(N, D)]; nan for a zero kernel.

    Source: Rudelson & Vershynin, "Sampling from large matrices", J. ACM 2007.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> float(nngp.metrics.stable_rank(jnp.diag(jnp.array([2.0, 1.0, 1.0]))))
        2.0
    """
    return _stable_rank(as_gram(a, eigenvalues=True))


@one_program
def _stable_rank(a: Gram) -> Float[Array, ""]:
    unit, _ = a.normalised()
    largest = unit.eigvalsh()[-1]
    return unit.trace() / jnp.where(largest == 0, jnp.nan, largest)
