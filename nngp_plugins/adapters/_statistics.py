"""Running statistics that make a model divide by zero, said at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from .._trees import has_numbers
from .._typing import PyTree

_VARIANCE, _MEAN = "/~/var_ema", "/~/mean_ema"
"""What Haiku calls the running statistics of a BatchNorm. Those of Flax, Equinox and Keras begin at one."""


def warn_of_statistics(state: PyTree) -> None:
    """Warns of each BatchNorm whose running variance is zero, as that of a single example is.

    Warns:
        UserWarning: names them, and says what to do.
    """
    found = [*_without_variance(state)]
    if found:
        first = repr(found[0]) + (f" and {len(found) - 1} more" if len(found) > 1 else "")
        warnings.warn(
            f"the running variance of BatchNorm {first} is zero, because the model was initialised from a single "
            "example, or from equal ones; in evaluation mode its outputs are huge or nan. Initialise it from several "
            "real examples: params, state = f.init(rng, x, is_training=True).",
            stacklevel=3,
        )


def _without_variance(state: PyTree) -> Iterator[str]:
    """The paths of BatchNorm modules whose running variance is zero but for rounding, for every feature."""
    if not isinstance(state, Mapping):
        return
    for path in [path for path in state if isinstance(path, str) and path.endswith(_VARIANCE)]:
        module = path.removesuffix(_VARIANCE)
        both = [state.get(module + name, {}).get("average") for name in (_VARIANCE, _MEAN)]
        if all(map(has_numbers, both)):
            variance, mean = jax.device_get(both)
            # The variance is a difference of squares, of which rounding leaves this much.
            if (variance <= 8 * float(jnp.finfo(variance.dtype).eps) * mean**2).all():
                yield module
