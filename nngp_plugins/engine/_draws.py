"""Means over draws from a key: compiled loops that add draws up one by one."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .._fingerprint import fingerprint
from .._static import Static
from .._typing import PyTree
from ._apply import Avals, is_traced
from ._arrays import OnDevice
from ._estimate import Estimate, add_draws, no_draws

ROUND = 32
"""The draws after which a loop over draws looks at its error, and can be interrupted."""

LEAST = 16
"""The draws before the standard error itself is known well enough to stop by it: to a fifth."""

SIDE_BY_SIDE = 16
"""The initialisations that an accelerator runs at once, if they fit."""

Count = int | Iterable[int]


@dataclass(frozen=True)
class _Draw:
    """A draw without its arrays: hashable, so that one program serves all calls.

    Attributes:
        function: ``function(key, number, *arguments) -> PyTree``.
        structure: the structure of the arguments.
        statics: the leaves of the arguments that are no arrays, by their places.
    """

    function: Static
    structure: Any
    statics: Static

    @classmethod
    def of(cls, function: Callable[..., PyTree], arguments: PyTree) -> tuple[_Draw, list[Any]]:
        """The draw, and the arrays of its arguments."""
        leaves, structure = jax.tree.flatten(arguments)
        statics = {i: leaf for i, leaf in enumerate(leaves) if not hasattr(leaf, "dtype")}
        arrays = [jnp.asarray(leaf) for i, leaf in enumerate(leaves) if i not in statics]
        return cls(Static(function), structure, Static(tuple(statics.items()))), arrays

    def __call__(self, key: Array, number: Any, arrays: list[Any]) -> PyTree:
        statics, rest = dict(self.statics.value), iter(arrays)
        leaves = [statics[i] if i in statics else next(rest) for i in range(self.structure.num_leaves)]
        return self.function.value(jax.random.fold_in(key, number), number, *self.structure.unflatten(leaves))

    def more(
        self, at_once: int, sums: tuple[PyTree, PyTree], key: Array, start: Array, stop: Array, arrays: list[Any]
    ) -> tuple[PyTree, PyTree]:
        """The sums of the draws before ``start``, with those up to ``stop`` added."""

        def some(i: Array, sums: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            first = start + i * at_once
            if at_once == 1:
                # A convolution under vmap, even over one network, is slower.
                draws = jax.tree.map(lambda y: y[None], self(key, first, arrays))
            else:
                draws = jax.vmap(lambda number: self(key, number, arrays))(first + jnp.arange(at_once))
            return add_draws(sums, first, draws, jnp.minimum(stop - first, at_once))

        return lax.fori_loop(0, -((start - stop) // at_once), some, sums)


@lru_cache(maxsize=64)
def _program(draw: _Draw, at_once: int, avals: Avals) -> Any:
    """:meth:`_Draw.more` as a compiled function, and what it starts from."""
    structs = [jax.ShapeDtypeStruct(shape, dtype, weak_type=weak) for shape, dtype, weak, _ in avals.leaves]
    key, arrays = avals.structure.unflatten(structs)
    shapes = jax.eval_shape(draw, key, jax.ShapeDtypeStruct((), jnp.int32), arrays)
    return jax.jit(partial(draw.more, at_once)), partial(no_draws, shapes)


def _fitting(draw: _Draw, key: Array, arrays: list[Any]) -> int:
    """How many draws run at once: on an accelerator as many as its memory has room for, and one on a CPU.

    A CPU multiplies many small matrices side by side at a fourth of its speed, and convolutions at half of it.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return 1
    program, start = _program(draw, SIDE_BY_SIDE, Avals.of((key, arrays)))
    memory = program.lower(start(), key, jnp.int32(0), jnp.int32(1), arrays).compile().memory_analysis()
    room = OnDevice(device).budget() / max(1, memory.temp_size_in_bytes) if memory is not None else 1
    return max(1, min(SIDE_BY_SIDE, int(room * SIDE_BY_SIDE)))


class Draws:
    """Means over the networks that a key draws; network ``i`` is that of ``fold_in(key, i)``, however many run at once.

    Attributes:
        key: the key.
        counts: the numbers of draws, ascending; the last one may be cut short by the tolerance.
        tolerance: the relative error to stop at; None for no stop.
        at_once: networks that run side by side; None for what the device is good at.
    """

    key: Array
    several: bool
    counts: list[int]
    tolerance: float | None
    at_once: int | None

    def __init__(self, key: Array, n_samples: Count, tolerance: float | None, at_once: int | None):
        self.several = isinstance(n_samples, Iterable)
        try:
            given = n_samples if isinstance(n_samples, Iterable) else [n_samples]
            self.counts = sorted({operator.index(n) for n in given})
        except TypeError:
            raise TypeError(f"n_samples={n_samples!r} must be a whole number of draws, or several.") from None
        if not self.counts or self.counts[0] < 1:
            raise ValueError(f"n_samples={n_samples!r} must be 1 or more.")
        if tolerance is not None and (self.several or not tolerance > 0):
            raise ValueError(f"tolerance={tolerance} must be positive, and n_samples={n_samples!r} the most draws.")
        if at_once is not None and at_once < 1:
            raise ValueError(f"inits_at_once={at_once} must be 1 or more.")
        self.key, self.tolerance, self.at_once = key, tolerance, at_once

    def means(
        self, function: Callable[..., PyTree], arguments: PyTree, resume: Estimate | None, *, eager: bool = False
    ) -> Estimate | Iterator[Estimate]:
        """The mean of ``function(key, number, *arguments)``, or those for several numbers of draws.

        Args:
            function: makes a draw; hashable.
            arguments: a tuple of PyTrees.
            resume: the mean to go on from.
            eager: whether the function cannot be compiled as a whole.
        """
        if is_traced((self.key, arguments)):
            raise TypeError("a loop over networks cannot start inside jit, grad or vmap; call it outside.")
        source = fingerprint((self.key, arguments), with_paths=True)
        if resume is not None and resume.source != source:
            raise ValueError("resume= was drawn from another key or other inputs; pass those that it was made with.")
        if resume is not None and resume.n > self.counts[0]:
            raise ValueError(f"resume= holds {resume.n} draws, more than n_samples={self.counts[0]}.")
        steps = self._eager(function, arguments) if eager else self._compiled(function, arguments)
        means = self._run(*steps, resume, source)
        return means if self.several else next(means)

    def _compiled(self, function: Callable[..., PyTree], arguments: PyTree) -> tuple[Any, Any]:
        draw, arrays = _Draw.of(function, arguments)
        at_once = self.at_once or _fitting(draw, self.key, arrays)
        program, empty = _program(draw, at_once, Avals.of((self.key, arrays)))

        def more(sums: Any, start: int, stop: int) -> Any:
            return program(sums, self.key, jnp.int32(start), jnp.int32(stop), arrays)

        return more, empty

    def _eager(self, function: Callable[..., PyTree], arguments: PyTree) -> tuple[Any, Any]:
        def more(sums: Any, start: int, stop: int) -> Any:
            for number in range(start, stop):
                draw = function(jax.random.fold_in(self.key, number), number, *arguments)
                sums = _add_one(no_draws(draw) if number == 0 else sums, number, draw)
            return sums

        return more, lambda: (None, None)

    def _run(self, more: Any, empty: Any, resume: Estimate | None, source: str) -> Iterator[Estimate]:
        mean, squares = empty()
        now = Estimate(mean, squares, 0, source) if resume is None else resume
        for count in self.counts:
            while now.n < count and not self._enough(now):
                stop = min(count, now.n + (ROUND if now.n or self.tolerance is None else LEAST))
                mean, squares = more((now.mean, now.squares), now.n, stop)
                now = Estimate(mean, squares, stop, source)
            if self.tolerance is not None and not now.relative_error <= self.tolerance:
                warnings.warn(
                    f"n_samples={now.n} draws gave a relative error of {now.relative_error:.3g}, more than "
                    f"tolerance={self.tolerance}.",
                    RuntimeWarning,
                    stacklevel=4,
                )
            yield now

    def _enough(self, now: Estimate) -> bool:
        return self.tolerance is not None and now.n >= LEAST and now.relative_error <= self.tolerance


@jax.jit
def _add_one(sums: tuple[PyTree, PyTree], n: Any, draw: PyTree) -> tuple[PyTree, PyTree]:
    return add_draws(sums, n, jax.tree.map(lambda y: y[None], draw), 1)
