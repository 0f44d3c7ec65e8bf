"""The metrics under jit: ``from helpers.compiled import cka``.

Compiling one program takes far less time than compiling each operation of a metric by itself. Tests of eager calls, of
errors and of warnings import from ``nngp_plugins.metrics`` instead.
"""

import functools

import jax
import numpy as np

from nngp_plugins import metrics


def _fixed(leaf):
    """A hashable stand-in for an argument that the program is compiled for."""
    if isinstance(leaf, np.ndarray):
        return leaf.shape, leaf.dtype, leaf.tobytes()
    return type(leaf), leaf


def compiled(metric):
    """The metric under jit: JAX arrays and Grams are traced; labels and other arguments belong to the program."""
    programs = {}

    @functools.wraps(metric)
    def call(*args, **kwargs):
        leaves, structure = jax.tree.flatten((args, kwargs))
        traced = [isinstance(leaf, jax.Array) for leaf in leaves]
        key = (
            structure,
            tuple(None if is_traced else _fixed(leaf) for leaf, is_traced in zip(leaves, traced, strict=True)),
        )

        def run(*arrays):
            rest = iter(arrays)
            given = [next(rest) if is_traced else leaf for leaf, is_traced in zip(leaves, traced, strict=True)]
            args, kwargs = structure.unflatten(given)
            return metric(*args, **kwargs)

        program = programs.setdefault(key, jax.jit(run))
        return program(*(leaf for leaf, is_traced in zip(leaves, traced, strict=True) if is_traced))

    return call


@functools.cache
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return compiled(getattr(metrics, name))
