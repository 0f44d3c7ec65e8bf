"""Metrics with their standard errors, over many resamples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._gram import Gram
from ._streamed import StreamedGram, as_streamed, is_streamed
from ._streamed_draws import Draws
from ._to_grams import as_gram, on_device


class Bootstrapped(NamedTuple):
    """A metric with its uncertainty over examples.

    Attributes:
        value: the metric on all examples.
        standard_error: the standard deviation of the metric over resamples.
    """

    value: Array
    standard_error: Array


def bootstrap(metric: Callable[..., Array], grams: Any, n: int, key: Array) -> Bootstrapped:
    """A metric with its standard error over the choice of examples, by drawing N of them with replacement n times.

    An example that is drawn twice is its own neighbour, which biases debiased estimators on resamples. The value is
    therefore computed on all examples, and only the standard error comes from the resamples. The standard error is nan
    if a resample has no value, for example because it lacks a rare class.

    Features that are read block by block are drawn in chunks of consecutive examples, 200 or somewhat more, so that the
    order of the examples must not matter: the standard error of features that are sorted by class is too large. One
    pass makes the sums of up to 1 GB of resamples. A metric that reads the features itself, such as those with targets,
    takes a pass or two for each resample.

    Args:
        metric: a function that takes what ``grams`` holds, and returns a scalar or an array.
        grams: the arguments of ``metric``: a single Gram, or a tuple of Grams and of arrays with a row for each
            example, such as one-hot targets. Wrap kernels ``(N, N)`` as :class:`DenseGram`.
        n: number of resamples; 200 give the standard error to 5 %.
        key: a key of ``jax.random``.

    Raises:
        ValueError: n < 2, different N, or a kernel that is not wrapped as a Gram.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, alg. 6.1.

    Example:
        >>> import jax, nngp_plugins as nngp
        >>> gram = nngp.metrics.FeatureGram(jax.random.normal(jax.random.key(0), (50, 3)))
        >>> value, error = nngp.metrics.bootstrap(nngp.metrics.scale, gram, 100, jax.random.key(1))
        >>> bool(0 < error < value)
        True
    """
    arguments = tuple(grams) if isinstance(grams, tuple | list) else (grams,)
    for shape in (argument.shape for argument in arguments if not isinstance(argument, Gram)):
        if len(shape) == 2 and shape[0] == shape[1]:
            raise ValueError(
                f"bootstrap got an array {shape}; wrap a kernel as DenseGram(K), to draw rows and columns."
            )
    sizes = {argument.n if isinstance(argument, Gram) else argument.shape[0] for argument in arguments}
    if len(sizes) != 1 or n < 2:
        raise ValueError(f"bootstrap takes arguments on the same examples and n >= 2, got N={sorted(sizes)} and n={n}.")
    (size,) = sizes
    if is_streamed(*arguments):
        return _of_streams(metric, arguments, n, key)
    arguments = tuple(as_gram(given) if isinstance(given, Gram) else on_device(given) for given in arguments)

    def resampled(key: Array) -> Array:
        drawn = jax.random.randint(key, (size,), 0, size)
        return metric(*(g.take(drawn) if isinstance(g, Gram) else g[drawn] for g in arguments))

    @jax.jit
    def errors(key: Array) -> Array:
        return jnp.std(jax.lax.map(resampled, jax.random.split(key, n)), axis=0, ddof=1)

    return Bootstrapped(metric(*arguments), errors(key))


def _of_streams(metric: Callable[..., Array], arguments: tuple[Any, ...], n: int, key: Array) -> Bootstrapped:
    """:func:`bootstrap` by chunks of features that are read block by block."""
    given = [as_streamed(each) if isinstance(each, Gram) else np.asarray(each) for each in arguments]
    draws = Draws([each for each in given if isinstance(each, StreamedGram)])
    drawn = np.asarray(jax.random.randint(key, (n, draws.count), 0, draws.count))
    values = []
    for streams, examples in draws.each(drawn):
        following = iter(streams)
        values.append(
            metric(*(next(following) if isinstance(each, StreamedGram) else each[examples] for each in given))
        )
    return Bootstrapped(metric(*given), jnp.std(jnp.stack(values), axis=0, ddof=1))
