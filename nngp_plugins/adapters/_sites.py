"""Where a jaxpr holds tagged arrays, and what is known of them before anything runs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, NamedTuple

import jax
from jax.extend import core

from ._batch_axis import Axis, batch_axis, has_rule
from ._jaxpr import INLINED, function_name, inner_jaxpr, is_identity, manual_axes, scan_counts, tags_inside
from ._tag import STACKED, joined, tag_p

PARAMS, X = 1, 2
"""Bits for what a value depends on."""

Place = tuple[int, ...]
"""The numbers of the equations that lead to a place: in the jaxpr, in the jaxpr inside that equation, and so on."""

_UNSEEN = {
    "while": "while_loop",
    "shard_map": "shard_map with check_vma=False, or pmap",
    "pallas_call": "a Pallas kernel",
}


class Known(NamedTuple):
    """What is known of a value.

    Attributes:
        depends: bits of :data:`PARAMS` and :data:`X`.
        token: equal for two values only if they are the same array.
        batch: the axis of the batch; None if it is not known, or there is none.
    """

    depends: int
    token: Hashable
    batch: Axis = None


@dataclass(frozen=True)
class Scope:
    """A ``scan`` or a ``shard_map`` around a site.

    Attributes:
        kind: of a ``scan``, ``"depth"`` if it runs over layers with parameters of their own, ``"examples"`` over the
            batch, and ``"time"`` otherwise; ``"devices"`` of a ``shard_map``.
        length: how many times its body runs, or on how many devices the batch is.
        reverse: whether it begins with the last index.
        at: the place of the equation.
        mesh_axes: the axes of the mesh that the batch is sharded over.
        mesh: the mesh.
    """

    kind: Literal["depth", "time", "examples", "devices"]
    length: int
    reverse: bool
    at: Place
    mesh_axes: tuple[str, ...] = ()
    mesh: Any = None


@dataclass(frozen=True)
class Site:
    """A tagged array.

    Attributes:
        at: its place.
        path: the path of the module.
        method: the method that returned it; empty for the module's call.
        part: the place in what was returned; empty for a single array.
        aval: shape and dtype, within the innermost transformation.
        scopes: the scans around it, from outside.
        known: what it depends on, and which array it is.
        level: in how many calls of the same method of the module its call is.
    """

    at: Place
    path: str
    method: str
    part: str
    aval: Any
    scopes: tuple[Scope, ...]
    known: Known
    level: int = 0

    @property
    def module(self) -> str:
        """The path of the module, without marks."""
        return "/".join(part for part in self.path.split("/") if part != STACKED)

    @property
    def devices(self) -> tuple[Scope, ...]:
        """The ``shard_map`` around it, if there is one."""
        return tuple(scope for scope in self.scopes if scope.kind == "devices")

    @property
    def varying(self) -> tuple[str, ...]:
        """The axes of the mesh over which the array differs, apart from those of the batch."""
        of_batch = {axis for scope in self.devices for axis in scope.mesh_axes}
        return tuple(sorted(varying_axes(self.aval) - of_batch))

    def whole(self, batch: int) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the layer: the batch, the steps of scans over time, and the rest, of all devices."""
        shape = list(self.aval.shape)
        for scope in self.devices:
            shape[batch] *= scope.length
            shape[-1] *= math.prod(scope.mesh.shape[axis] for axis in self.varying)
        n, *rest = moved_to_front(shape, batch)
        return jax.ShapeDtypeStruct((n, *self.times, *rest), self.aval.dtype)

    @property
    def depths(self) -> tuple[Scope, ...]:
        """The scans over layers around it, from outside."""
        return tuple(scope for scope in self.scopes if scope.kind == "depth")

    @property
    def times(self) -> tuple[int, ...]:
        """Lengths of the scans over time around it."""
        return tuple(scope.length for scope in self.scopes if scope.kind == "time")


@dataclass
class Analysis:
    """Walks a jaxpr and collects its sites.

    Attributes:
        functions: whether the activation functions that follow a layer are sites, too.
        sites: the sites in forward order.
        unseen: why tags cannot be taken, by the path of the module.
    """

    functions: bool = False
    sites: list[Site] = field(default_factory=list)
    unseen: dict[str, str] = field(default_factory=dict)
    _tokens: Iterator[int] = field(default_factory=count)
    _by_token: dict[Hashable, Site] = field(default_factory=dict)

    def fresh(self, depends: int, batch: Axis = None) -> Known:
        """What is known of a new value."""
        return Known(depends, next(self._tokens), batch)

    def walk(self, jaxpr: Any, ins: Sequence[Known], at: Place = (), scopes: tuple[Scope, ...] = ()) -> list[Known]:
        """Collects the sites of a jaxpr, and returns what is known of its outputs.

        Args:
            jaxpr: an open jaxpr.
            ins: what is known of its inputs.
            at: the place of the equation that holds it.
            scopes: the scans around it.
        """
        env: dict[Any, Known] = {v: self.fresh(0) for v in jaxpr.constvars}
        env.update(zip(jaxpr.invars, ins, strict=True))

        def read(v: Any) -> Known:
            return self.fresh(0) if isinstance(v, core.Literal) else env[v]

        for i, eqn in enumerate(jaxpr.eqns):
            known = [read(v) for v in eqn.invars]
            env.update(zip(eqn.outvars, self._equation(eqn, known, (*at, i), scopes), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, ins: list[Known], at: Place, scopes: tuple[Scope, ...]) -> list[Known]:
        depends = 0
        for known in ins:
            depends |= known.depends
        name = eqn.primitive.name
        inner = None if has_rule(name) else inner_jaxpr(eqn)
        if eqn.primitive is tag_p:
            self._add(Site(at, **eqn.params, aval=eqn.outvars[0].aval, scopes=scopes, known=ins[0]))
            return ins
        if name == "scan" and inner is not None:
            return self._scan(eqn, ins, at, scopes)
        if name == "shard_map" and inner is not None and (devices := _devices_of_batch(eqn, ins, at)) is not None:
            # A value of all devices is none of these, so it gets a token of its own.
            inside = [self.fresh(known.depends, known.batch) for known in ins]
            outs = self.walk(inner, inside, at, (*scopes, devices))
            return [self.fresh(known.depends, known.batch) for known in outs]
        if inner is not None and name in INLINED:
            # Functions inside an activation function are none of their own.
            function, functions = function_name(eqn), self.functions
            self.functions = functions and not function
            outs = self.walk(inner, ins, at, scopes)
            self.functions = functions
        elif is_identity(eqn):
            return ins
        elif name == "transpose":
            token = transposed(ins[0].token, eqn.params["permutation"])
            return [Known(depends, token, batch_axis(eqn, [ins[0].batch]))]
        else:
            for path in tags_inside(eqn):
                self.unseen.setdefault(path, f"it is called inside {_UNSEEN.get(name, name)}")
            axis = batch_axis(eqn, [known.batch for known in ins]) if inner is None else None
            outs = [self.fresh(depends, axis) for _ in eqn.outvars]
        if self.functions and len(outs) == 1 and (function := function_name(eqn)):
            followed = next((self._by_token[known.token] for known in ins if known.token in self._by_token), None)
            if followed is not None:
                path = joined(followed.path, function)
                self._add(Site(at, path, "", followed.part, eqn.outvars[0].aval, scopes, outs[0]))
        return outs

    def _add(self, site: Site) -> None:
        self.sites.append(site)
        self._by_token.setdefault(site.known.token, site)

    def _scan(self, eqn: Any, ins: list[Known], at: Place, scopes: tuple[Scope, ...]) -> list[Known]:
        body = inner_jaxpr(eqn)
        consts, carries = scan_counts(eqn)
        scanned = ins[consts + carries :]
        inside = [self.fresh(known.depends, known.batch) for known in ins[: consts + carries]]
        inside += [self.fresh(known.depends, _inner(known.batch)) for known in scanned]
        while True:
            # What is known of the carry after one step is what is known of it before the next.
            after = Analysis().walk(body, inside)[:carries]
            joined = [_joined(a, b) for a, b in zip(inside[consts : consts + carries], after, strict=True)]
            if joined == inside[consts : consts + carries]:
                break
            inside[consts : consts + carries] = joined
        of_layers = any(known.depends == PARAMS for known in scanned)
        of_examples = any(known.batch == 0 for known in scanned)
        length, reverse = eqn.params["length"], eqn.params["reverse"]
        scope = Scope("depth" if of_layers else "examples" if of_examples else "time", length, reverse, at)
        outs = self.walk(body, inside, at, (*scopes, scope))
        last = 0 if reverse else length - 1
        results = []
        for i, known in enumerate(outs):
            stacked = i >= carries
            axis = known.batch if known.batch is None else known.batch + stacked
            token: Hashable = next(self._tokens)
            # The result of a stack is what its last layer returned; the stacked results of time are the layer itself.
            if of_layers and not stacked:
                token = iteration(known.token, (scope,), (last,))
            elif not of_layers and stacked:
                token = ("over time", at, known.token)
            results.append(Known(known.depends, token, axis))
        return results


def _devices_of_batch(eqn: Any, ins: Sequence[Known], at: Place) -> Scope | None:
    """The scope of a ``shard_map``; None if it does not say over which axes of the mesh its values differ."""
    mesh, batches = eqn.params["mesh"], set()
    for known, spec in zip(ins, eqn.params["in_specs"], strict=True):
        if known.batch is not None:
            entry = spec[known.batch] if known.batch < len(spec) else None
            batches.add(entry if isinstance(entry, tuple) else () if entry is None else (entry,))
    axes = batches.pop() if len(batches) == 1 else ()
    if batches or not (eqn.params["check_vma"] or manual_axes(eqn) == {*axes}):
        return None
    return Scope("devices", math.prod(mesh.shape[axis] for axis in axes), False, at, axes, mesh)


def _inner(axis: Axis) -> Axis:
    """The axis inside a scan of what is scanned over."""
    return axis - 1 if axis else None


def _joined(before: Known, after: Known) -> Known:
    """What is known of a carry before any step, from what is known before the first one and after one."""
    # Zeros that a scan begins with have no batch, and then they hold one.
    axis = after.batch if not before.depends & X else before.batch
    return Known(before.depends | after.depends, before.token, axis if axis == after.batch else None)


def moved_to_front(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    """A shape with an axis in front."""
    return shape[axis], *shape[:axis], *shape[axis + 1 :]


def varying_axes(aval: Any) -> frozenset[str]:
    """The axes of the mesh over which a value inside ``shard_map`` differs."""
    # JAX before 0.10 has no type for this but the axes alone.
    return frozenset(getattr(getattr(aval, "manual_axis_type", aval), "varying", getattr(aval, "vma", None)) or ())


def iteration(token: Hashable, scopes: Sequence[Scope], indices: Sequence[int]) -> Hashable:
    """The token outside its scans of a value inside them: of one iteration of each depth scan, and of all times."""
    indices = list(indices)
    for scope in reversed(scopes):
        token = ("layer", scope.at, indices.pop(), token) if scope.kind == "depth" else ("over time", scope.at, token)
    return token


def transposed(token: Hashable, axes: Sequence[int]) -> Hashable:
    """The token of an array with its axes in another order."""
    if isinstance(token, tuple) and token[0] == "transposed":
        _, token, before = token
        axes = [before[axis] for axis in axes]
    return token if list(axes) == sorted(axes) else ("transposed", token, tuple(axes))
