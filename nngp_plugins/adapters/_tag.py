"""Marks arrays as layers: a tag is the identity, and a harvest finds it in the jaxpr of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from .._typing import PyTree

tag_p = core.Primitive("nngp_tag")
tag_p.def_impl(lambda y, **_: y)
tag_p.def_abstract_eval(lambda aval, **_: aval)
mlir.register_lowering(tag_p, lambda ctx, y, **_: [y])
ad.primitive_jvps[tag_p] = lambda ys, tangents, **params: (tag_p.bind(*ys, **params), tangents[0])


def _batched(ys: Any, axes: Any, **params: Any) -> tuple[Any, int]:
    """The rule of ``vmap``: the mapped axis comes to the front."""
    return tag_p.bind(jnp.moveaxis(ys[0], axes[0], 0), **params), 0


batching.primitive_batchers[tag_p] = _batched

STACKED = "*"
"""The part of a path that holds the index of a layer in a scan over layers, where a framework says which part it is."""

_looking: ContextVar[bool] = ContextVar("looking", default=False)
_running: ContextVar[tuple[str, dict[str, int]]] = ContextVar("running", default=("", {}))
"""The path of the module that runs, and how many calls of each of its methods go on."""


def tag(name: str, y: PyTree) -> PyTree:
    """Marks what a function computes as a layer, for :meth:`ModelFn.layers`.

    It works in any function, and inside ``scan``, ``remat``, ``vmap`` and ``jit``: in plain JAX, and in frameworks that
    have no adapter of their own. It is the identity unless a :class:`ModelFn` looks for layers.

    Args:
        name: the name of the layer. Within a module, the path of the module comes before it.
        y: an array, or a PyTree of arrays.

    Returns:
        ``y``, which takes the place of the argument.

    Raises:
        TypeError: ``name`` is not a string, or is empty.

    Example:
        >>> import jax, jax.numpy as jnp, nngp_plugins as nngp
        >>> def apply(params, x):
        ...     def block(x, w):
        ...         return nngp.tag("block", jnp.tanh(x @ w)), None
        ...     return jax.lax.scan(block, x, params)[0].sum(1)
        >>> f = nngp.from_callable(apply)
        >>> list(f.layers()(jnp.ones((2, 3, 3)), jnp.ones((4, 3))))
        ['block/0', 'block/1', 'output']
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"tag(name={name!r}, ...) takes the name of a layer as a string, such as tag('hidden', y).")
    return mark(joined(_running.get()[0], name), y) if _looking.get() else y


def mark(path: str, y: PyTree, *, method: str = "__call__", level: int = 0, opaque: tuple[type, ...] = ()) -> PyTree:
    """Tags every array of what a module returned.

    Args:
        path: the path of the module.
        y: what it returned.
        method: the name of the method that returned it.
        level: in how many calls of the same method of the module this call is; see :func:`inside`.
        opaque: types of nodes in ``y`` that are left as they are.
    """
    bind = partial(tag_p.bind, path=path, method="" if method == "__call__" else method, level=level)
    if isinstance(y, jax.Array):
        return bind(y, part="")

    def is_leaf(node: Any) -> bool:
        return isinstance(node, opaque)

    leaves = jax.tree_util.tree_leaves_with_path(y, is_leaf)
    arrays = [i for i, (_, leaf) in enumerate(leaves) if hasattr(leaf, "ndim") and hasattr(leaf, "dtype")]
    marked = [leaf for _, leaf in leaves]
    for i, part in zip(arrays, part_names([leaves[i][0] for i in arrays]), strict=True):
        marked[i] = bind(marked[i], part=part)
    in_order = iter(marked)

    def rebuilt(node: Any) -> Any:
        inside = [next(in_order) for _ in jax.tree.leaves(node, is_leaf=is_leaf)]
        return inside[0] if jax.tree_util.all_leaves([node], is_leaf) else node

    # Objects of other types may hold more than their leaves, so they stay the same objects.
    return jax.tree.map(rebuilt, y, is_leaf=lambda node: not isinstance(node, tuple | list | dict))


def joined(*parts: str) -> str:
    """A path of parts, without those that are empty."""
    return "/".join(filter(None, parts))


def part_names(key_paths: Sequence[Any]) -> list[str]:
    """The names of arrays within what was returned, such as ``1:twice``."""
    # Many modules return (y, None), (y,), or one array in a class of their own: it is their output.
    numbered = jax.tree_util.SequenceKey, jax.tree_util.FlattenedIndexKey
    if len(key_paths) == 1 and all(isinstance(key, numbered) for key in key_paths[0]):
        return [""]
    return [jax.tree_util.keystr(key_path, simple=True, separator=":") for key_path in key_paths]


@contextmanager
def looking() -> Iterator[None]:
    """Within this context, tags are left in what is traced."""
    token = _looking.set(True)
    try:
        yield
    finally:
        _looking.reset(token)


def is_looking() -> bool:
    """Whether tags are left in what is traced."""
    return _looking.get()


@contextmanager
def inside(path: str, method: str) -> Iterator[int]:
    """Within this context, a method of the module at ``path`` runs.

    Its value is the number of calls of this method that go on already: such as that of a subclass, which calls
    ``super().__call__``, or that of a module that shares its scope with this one.
    """
    module, calls = _running.get()
    level = calls.get(method, 0) if module == path else 0
    token = _running.set((path, {**(calls if module == path else {}), method: level + 1}))
    try:
        yield level
    finally:
        _running.reset(token)
