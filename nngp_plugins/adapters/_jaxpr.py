"""Looking into the equations of a jaxpr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend import core

from ._tag import tag_p

JIT = frozenset({"jit", "pjit"})
REMAT = frozenset({"checkpoint", "remat", "remat2"})
INLINED = frozenset(
    {*JIT, *REMAT, "closed_call", "core_call"}
    | {"custom_vmap_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
)
# What leaves a value as it is if it leaves its shape and dtype as they are.
_IDENTITIES = frozenset(
    {"copy", "copy_p", "name", "reshape", "squeeze", "broadcast_in_dim", "convert_element_type", "stop_gradient"}
    | {"sharding_constraint", "pvary", "nngp_tag"}
)
_ACTIVATIONS = frozenset({"tanh", "logistic", "sin", "erf"})


def inner_jaxpr(eqn: Any) -> Any:
    """The open jaxpr inside an equation that has exactly one; None for others."""
    found = list(_jaxprs(eqn))
    return found[0] if len(found) == 1 else None


def _jaxprs(eqn: Any) -> Iterator[Any]:
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def inner_consts(eqn: Any) -> Sequence[Any]:
    """The constants of the jaxpr inside an equation."""
    closed = (value.consts for value in eqn.params.values() if isinstance(value, core.ClosedJaxpr))
    return next(closed, ())


def tags_inside(eqn: Any) -> Iterator[str]:
    """The paths of the tags inside an equation."""
    for jaxpr in _jaxprs(eqn):
        for inner in jaxpr.eqns:
            if inner.primitive is tag_p:
                yield inner.params["path"]
            yield from tags_inside(inner)


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many of the inputs of a ``scan`` are constants, and how many are carried.

    Its parameters hold these numbers in another form since JAX 0.12; shapes tell them in every version, because only
    what is scanned over has an axis more outside than inside.
    """
    body = inner_jaxpr(eqn)

    def scanned(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        return sum(o.aval.ndim > i.aval.ndim for o, i in zip(outer, inner, strict=True))

    carries = len(eqn.outvars) - scanned(eqn.outvars, body.outvars)
    return len(eqn.invars) - carries - scanned(eqn.invars, body.invars), carries


def manual_axes(eqn: Any) -> frozenset[str]:
    """The axes of the mesh that a ``shard_map`` runs over; JAX before 0.10 has another name for them."""
    return frozenset(eqn.params.get("newly_manual_axes", eqn.params.get("manual_axes", ())))


def is_identity(eqn: Any) -> bool:
    """Whether the one output of an equation is its one input."""
    if eqn.primitive.name not in _IDENTITIES or len(eqn.invars) != 1 or len(eqn.outvars) != 1:
        return False
    before, after = eqn.invars[0].aval, eqn.outvars[0].aval
    return bool(before.shape == after.shape and before.dtype == after.dtype)


def function_name(eqn: Any) -> str:
    """The name of an activation function that an equation calls, such as ``relu``; empty for other equations."""
    name: str = eqn.primitive.name
    if name in JIT:
        called = eqn.params["name"]
        return called if callable(getattr(jax.nn, called, None)) else ""
    return name if name in _ACTIVATIONS else ""
