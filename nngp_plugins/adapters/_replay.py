"""Runs a jaxpr again, with the arrays at chosen sites as further outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core
from jax.sharding import PartitionSpec

from .._typing import PyTree
from ._jaxpr import JIT, REMAT, inner_consts, inner_jaxpr, manual_axes, scan_counts
from ._sites import Place, Scope, Site, moved_to_front
from ._tag import tag_p

Found = dict[Place, Any]
"""What is taken at each site."""


class Reducer(Protocol):
    """What a consumer makes of a layer, inside the scan that the layer runs in."""

    def __call__(self, name: str, y: Array) -> PyTree:
        """What to make of the output ``(N, ...)`` of a layer."""

    def of_step(self, shape: jax.ShapeDtypeStruct) -> Callable[[str, Array], PyTree] | None:
        """What to make of the output of one step of a scan over time, so that the mean over the steps is the result.

        Args:
            shape: shape and dtype of all steps, ``(N, T, ...)``.

        Returns:
            A function of the name and of the output ``(N, ...)`` of a step; None if all steps are needed at once. If it
            has ``add(mean, step, count)``, that is how the mean so far takes in one of so many steps.
        """


class Whole:
    """The reducer that leaves outputs as they are."""

    def __call__(self, name: str, y: Array) -> PyTree:
        """Returns ``y``."""
        return y

    def of_step(self, shape: jax.ShapeDtypeStruct) -> None:
        """Returns None: steps are stacked."""
        return None


class Wanted:
    """A site whose array is taken.

    Args:
        name: the name of the layer.
        site: the site.
        batch: the axis of the batch in its array.
        reducer: what to make of it.
    """

    def __init__(self, name: str, site: Site, batch: int, reducer: Reducer):
        self.site, self._batch = site, batch
        of_step = reducer.of_step(site.whole(batch)) if site.times and not site.devices else None
        self._reduce: Callable[[Array], PyTree] = partial(of_step or reducer, name)
        self.add: Callable[[PyTree, PyTree, int], PyTree] = getattr(of_step, "add", _add)
        self.is_mean = of_step is not None
        step = jax.ShapeDtypeStruct(moved_to_front(site.aval.shape, batch), site.aval.dtype)
        self._of_step = jax.eval_shape(self._reduce, step) if self.is_mean else None

    def take(self, y: Array) -> PyTree:
        """The array at the site, batch first, reduced unless all steps or all devices are needed first."""
        y = jnp.moveaxis(y, self._batch, 0)
        return self._reduce(y) if self.is_mean or all(scope.kind == "depth" for scope in self.site.scopes) else y

    def leave(self, scope: Scope, value: Any) -> PyTree:
        """What leaves a scan over time, from the stacked steps, or what leaves a ``shard_map``."""
        layers = self._lengths_inside(scope, "depth")
        if scope.kind == "time":
            value = jnp.moveaxis(value, 0, len(layers) + 1)
        if any(other.kind != "depth" for other in self.site.scopes[: self.site.scopes.index(scope)]):
            return value
        reduce = self._reduce
        for _ in layers:
            reduce = jax.vmap(reduce)
        return reduce(value)

    def zeros(self, scope: Scope) -> PyTree:
        """What the mean over the steps of a scan over time begins with."""
        layers = self._lengths_inside(scope, "depth")
        return jax.tree.map(lambda s: jnp.zeros((*layers, *s.shape), s.dtype), self._of_step)

    def spec(self, scope: Scope) -> PartitionSpec:
        """How what leaves a ``shard_map`` lies on its mesh: the batch as before, and other differences as features."""
        rest: list[Any] = [None] * (self.site.aval.ndim - 1 + len(self._lengths_inside(scope, "time")))
        if self.site.varying:
            rest[-1] = self.site.varying
        return PartitionSpec(*[None] * len(self._lengths_inside(scope, "depth")), scope.mesh_axes, *rest)

    def _lengths_inside(self, scope: Scope, kind: str) -> list[int]:
        """Lengths of the scans of one kind inside a scope."""
        inside = self.site.scopes[self.site.scopes.index(scope) + 1 :]
        return [other.length for other in inside if other.kind == kind]


def _add(mean: PyTree, step: PyTree, count: int) -> PyTree:
    return jax.tree.map(lambda mean, new: mean + new / count, mean, step)


class Replay:
    """Runs a jaxpr again; see :meth:`run`."""

    def __init__(self, wanted: Mapping[Place, Wanted]):
        self._wanted = wanted
        self._on_the_way = {at[:i] for at in wanted for i in range(1, len(at))}

    def run(self, jaxpr: Any, consts: Sequence[Any], ins: Sequence[Any], at: Place = ()) -> tuple[list[Any], Found]:
        """Returns the outputs of a jaxpr, and what is taken at the sites inside it.

        What leaves a scan over layers has one more axis in front.

        Args:
            jaxpr: an open jaxpr.
            consts: its constants.
            ins: its inputs.
            at: the place of the equation that holds it.
        """
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, ins, strict=True))
        found: Found = {}

        def read(v: Any) -> Any:
            return v.val if isinstance(v, core.Literal) else env[v]

        needed_after = _last_uses(jaxpr)
        for i, eqn in enumerate(jaxpr.eqns):
            outs = self._equation(eqn, [read(v) for v in eqn.invars], (*at, i), found)
            env.update(zip(eqn.outvars, outs, strict=True))
            # Without jit, an array that nothing needs any more would stay in memory.
            for v in needed_after.get(i, ()):
                del env[v]
        return [read(v) for v in jaxpr.outvars], found

    def _equation(self, eqn: Any, ins: list[Any], at: Place, found: Found) -> Sequence[Any]:
        if eqn.primitive is tag_p:
            outs: Sequence[Any] = ins
        elif at not in self._on_the_way:
            outs = bind(eqn, ins)
        else:
            with eqn.ctx.manager:
                outs = self._call(eqn, ins, at, found)
        if at in self._wanted:
            found[at] = self._wanted[at].take(outs[0])
        return outs

    def _call(self, eqn: Any, ins: list[Any], at: Place, found: Found) -> Sequence[Any]:
        """Runs an equation that holds wanted sites."""
        name, inner, consts = eqn.primitive.name, inner_jaxpr(eqn), inner_consts(eqn)
        outs: list[Any]

        def run(*ins: Any) -> tuple[list[Any], Found]:
            return self.run(inner, consts, ins, at)

        if name == "scan":
            outs, taken = self._scan(eqn, ins, at)
        elif name == "shard_map":
            outs, taken = self._shard_map(eqn, ins, at)
        elif name in REMAT:
            policy, prevent_cse = eqn.params["policy"], eqn.params["prevent_cse"]
            outs, taken = jax.checkpoint(run, policy=policy, prevent_cse=prevent_cse)(*ins)
        elif name.startswith("custom_"):
            # The outputs keep their own rule of differentiation, and XLA computes what both have in common once.
            outs, taken = list(bind(eqn, ins)), run(*ins)[1]
        elif name in JIT and (shardings := _shardings(eqn)) is not None:
            before, after = shardings
            outs, taken = jax.jit(run, in_shardings=before, out_shardings=(after, None))(*ins)
        else:
            outs, taken = run(*ins)
        found.update(taken)
        return outs

    def _scan(self, eqn: Any, ins: list[Any], at: Place) -> tuple[list[Any], Found]:
        params, (consts, carries) = eqn.params, scan_counts(eqn)
        body, body_consts = inner_jaxpr(eqn), inner_consts(eqn)
        inside, scope = self._inside(at)
        over_time = scope.kind == "time"
        means: Found = {w.site.at: w.zeros(scope) for w in inside if over_time and w.is_mean}

        def step(carry: Any, xs: Any) -> Any:
            carry, means = carry
            outs, found = self.run(body, body_consts, [*ins[:consts], *carry, *xs], at)
            means = {
                place: self._wanted[place].add(mean, found.pop(place), scope.length) for place, mean in means.items()
            }
            return (outs[:carries], means), (outs[carries:], found)

        start = list(ins[consts : consts + carries]), means
        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        (carry, means), (ys, found) = jax.lax.scan(step, start, list(ins[consts + carries :]), **options)
        if over_time:
            found = {place: self._wanted[place].leave(scope, value) for place, value in found.items()}
        return [*carry, *ys], {**found, **means}

    def _shard_map(self, eqn: Any, ins: list[Any], at: Place) -> tuple[list[Any], Found]:
        params, body, (inside, scope) = eqn.params, inner_jaxpr(eqn), self._inside(at)
        shard_map: Callable[..., Any] = jax.shard_map
        sharded = shard_map(
            lambda *ins: self.run(body, (), ins, at),
            mesh=params["mesh"],
            in_specs=params["in_specs"],
            out_specs=(list(params["out_specs"]), {wanted.site.at: wanted.spec(scope) for wanted in inside}),
            axis_names={*manual_axes(eqn)},
            check_vma=params["check_vma"],
        )
        outs, found = sharded(*ins)
        return outs, {place: self._wanted[place].leave(scope, value) for place, value in found.items()}

    def _inside(self, at: Place) -> tuple[list[Wanted], Scope]:
        """The wanted sites inside an equation, and its scope."""
        inside = [wanted for place, wanted in self._wanted.items() if place[: len(at)] == at]
        return inside, next(scope for scope in inside[0].site.scopes if scope.at == at)


def _last_uses(jaxpr: Any) -> dict[int, list[Any]]:
    """The variables that no equation after this one needs, by the number of the equation."""
    last = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not isinstance(v, core.Literal)}
    kept = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    found: dict[int, list[Any]] = {}
    for v, i in last.items():
        if v not in kept:
            found.setdefault(i, []).append(v)
    return found


def bind(eqn: Any, ins: Sequence[Any]) -> Sequence[Any]:
    """Runs an equation as it is."""
    # JAX before 0.10 returns the functions and the parameters apart.
    got = eqn.primitive.get_bind_params(eqn.params)
    functions, params = got if isinstance(got, tuple) else ((), got)
    with eqn.ctx.manager:
        outs = eqn.primitive.bind(*functions, *ins, **params)
    return outs if eqn.primitive.multiple_results else [outs]


def _shardings(eqn: Any) -> tuple[tuple[Any, ...], list[Any]] | None:
    """The shardings of a ``jit`` in the form of its arguments; None if it has none."""
    given = [
        [sharding if isinstance(sharding, jax.sharding.Sharding) else None for sharding in eqn.params[name]]
        for name in ("in_shardings", "out_shardings")
    ]
    return (tuple(given[0]), given[1]) if any(any(one) for one in given) else None
