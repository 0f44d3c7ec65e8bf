"""Looking into what JAX traces."""

import jax
from jax.extend import core


def equations(jaxpr):
    """All equations of a jaxpr, and of those inside its equations."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for leaf in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(leaf):
                yield from equations(leaf)


def is_jaxpr(leaf):
    return isinstance(leaf, core.Jaxpr | core.ClosedJaxpr)


def primitives(jaxpr):
    """The names of all primitives."""
    return {eqn.primitive.name for eqn in equations(jaxpr)}
