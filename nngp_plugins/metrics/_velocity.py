"""How fast a kernel moves, per training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jax import Array

from ._catalogue import INNER, ROTATION, SCALE, TRANSLATION, Metric, entry
from ._change import kernel_distance
from ._gram import Gram
from ._to_grams import on_device, one_program

if TYPE_CHECKING:
    from jaxtyping import Float


@entry(
    title="Centred kernel velocity, per step",
    formula="kernel_distance of centred kernels / steps between them",
    range="≥ 0, per step",
    cost=f"3 × {INNER}",
    tells="when the kernel changes, and when it has settled",
    misleads="noise of the gradients makes it larger; compare runs with the same number of steps between snapshots",
    invariant=(ROTATION, SCALE, TRANSLATION),
    relative_to_reference=True,
)
def centered_kernel_velocity(a: Gram | Array, b: Gram | Array, steps: float | Array) -> Float[Array, ""]:
    """Kernel velocity: the centred :func:`kernel_distance` between two snapshots, divided by the steps between them.

    Args:
        a: a Gram, or a kernel ``(N, N)``.
        b: the same, on the same examples, ``steps`` later or earlier.
        steps: number of training steps, or of epochs, between them; positive.

    Returns:
        A scalar ≥ 0, per step.

    Raises:
        ValueError: different N.

    Source: Fort et al., "Deep learning versus kernel learning", NeurIPS 2020.

    Example:
        >>> import jax.numpy as jnp, nngp_plugins as nngp
        >>> kernel = jnp.diag(jnp.arange(4.0))
        >>> float(nngp.metrics.centered_kernel_velocity(kernel, 2 * kernel, steps=10))
        0.0
    """
    return per_step(kernel_distance(a, b, center=True), on_device(steps))


@one_program
def per_step(distance: Array, steps: Array) -> Array:
    """A distance, divided by the steps between two snapshots."""
    return distance / steps.astype(distance.dtype)


@dataclass(frozen=True)
class Velocity:
    """How fast a kernel moves: a tracker takes this distance to the previous snapshot, and divides it by the steps.

    Attributes:
        distance: a function of the Grams of two snapshots. ``partial(kernel_distance, center=True)`` gives
            :func:`centered_kernel_velocity`.

    Source: Fort et al., "Deep learning versus kernel learning", NeurIPS 2020.
    """

    distance: Metric = kernel_distance

    def __call__(self, a: Gram, previous: Gram) -> Array:
        return self.distance(a, previous)


entry(
    logged_as="kernel_velocity",
    title="Kernel velocity, per step",
    formula="kernel_distance to the previous snapshot / steps between them",
    range="≥ 0, per step",
    cost=f"3 × {INNER}",
    tells="when the kernel changes, and when it has settled; a tracker logs it as `Velocity()`",
    misleads="as centered_kernel_velocity; without centring, it misses changes that are small beside a large mean",
    invariant=(ROTATION, SCALE),
    log_axis=True,
    relative_to_reference=True,
    tracked=True,
)(Velocity())
