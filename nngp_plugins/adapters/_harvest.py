"""A model traced with tags: its layers, wherever they run, with their names, their shapes and their values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import PyTree
from ._arguments import Arguments, is_array
from ._layer_names import NOT_OF_INPUTS, Layer, LeftOut, named_layers
from ._replay import Reducer, Replay, Wanted
from ._sites import Analysis, Site, X
from ._tag import looking, part_names

# JAX keeps what it traced of the functions inside a model by the axes that exist around them. An axis of our own makes
# it trace them again with tags, and leaves what it keeps for training as it is.
_AXIS = [("nngp_layers", 1)]


@dataclass(frozen=True)
class Traced:
    """A model as a jaxpr, and what is known of it.

    Attributes:
        jaxpr: the closed jaxpr from the arrays of the arguments to those of the outputs.
        sites: the tagged arrays.
        unseen: why tags cannot be taken, by the path of the module.
        outputs: the model's own outputs as sites, by the path inside the outputs.
    """

    jaxpr: Any
    sites: tuple[Site, ...]
    unseen: dict[str, str]
    outputs: tuple[Site, ...]

    @classmethod
    def of(
        cls, run: Callable[..., PyTree], arguments: Arguments, arrays: Sequence[Any], *, functions: bool = False
    ) -> Traced:
        """Traces ``run(params, state, rng, x, kwargs)``, which tags its layers."""
        parts: list[str] = []

        def flat(*arrays: Any) -> list[Any]:
            outputs = jax.tree_util.tree_leaves_with_path(run(*arguments.with_arrays(arrays)))
            found = [(path, leaf) for path, leaf in outputs if is_array(leaf)]
            parts[:] = part_names([path for path, _ in found])
            return [leaf for _, leaf in found]

        with looking():
            jaxpr = jax.make_jaxpr(flat, axis_env=_AXIS)(*arrays)
        analysis = Analysis(functions)
        given = zip(arguments.depends, arguments.rows, strict=True)
        known = analysis.walk(jaxpr.jaxpr, [analysis.fresh(depends, rows) for depends, rows in given])
        outputs = tuple(
            Site((), "output", "", part, aval, (), one._replace(depends=one.depends | X))
            for part, aval, one in zip(parts, jaxpr.out_avals, known, strict=True)
        )
        return cls(jaxpr, tuple(analysis.sites), analysis.unseen, outputs)


class Harvest:
    """The layers of a model on given arguments, found by tracing it. Nothing is computed before :meth:`reduce`.

    Args:
        run: ``run(params, state, rng, x, kwargs)``, which tags what its layers return.
        arguments: the arguments.
        functions: whether activation functions that follow a layer are layers, too.

    Attributes:
        layers: all layers in forward order, with the model's own outputs last.
        left_out: the arrays that are no layers, by name.
        unseen: why the calls of a module cannot be seen, by its path.
        output_axes: the axis of the batch in each array of the model's own outputs.
    """

    def __init__(self, run: Callable[..., PyTree], arguments: Arguments, *, functions: bool = False):
        self._arguments = arguments
        self._traced = traced = Traced.of(run, arguments, arguments.values, functions=functions)
        sites = (*traced.sites, *traced.outputs)
        axes = [site.known.batch for site in sites]
        if arguments.n is None or any(map(arguments.in_doubt, sites)):
            others = _axes_of_twice(run, arguments, sites, functions) or _axes_by_length(arguments, sites)
            axes = [other if axis is None else axis for axis, other in zip(axes, others, strict=True)]
        self.output_axes = axes[len(traced.sites) :]
        named = zip(traced.sites, axes, strict=False)
        own = zip(traced.outputs, self.output_axes, strict=True)
        self.layers, left_out = named_layers(list(named), list(own))
        self.unseen = traced.unseen
        self.left_out = {**{path: LeftOut(path, why) for path, why in traced.unseen.items()}, **left_out}

    def unseen_of(self, owners: Sequence[str]) -> dict[str, str]:
        """Why no layer covers a module, by the path of each such module of those that own parameters."""
        covered = {layer.site.module for layer in self.layers} | {""}
        reasons = {**{other.module: other.reason for other in self.left_out.values()}, **self.unseen}
        found = {}
        for path in OrderedDict.fromkeys(owners):
            reason = reasons.get(path, "no call of it returns an array")
            # A module that only holds parameters is covered by the module that uses them.
            only_holds = path not in reasons or reasons[path] == NOT_OF_INPUTS
            if path not in covered and not (only_holds and path.rpartition("/")[0] in covered):
                found[path] = reason
        # A function has no modules, and all that it tags is meant to be seen.
        tagged = {} if owners else {path: reason for path, reason in reasons.items() if path not in covered}
        return {**found, **tagged}

    def reduce(self, layers: Sequence[Layer], reducer: Reducer) -> Reduced:
        """Runs the model, and reduces each layer where it is computed.

        Args:
            layers: those that are wanted, of :attr:`layers`.
            reducer: what to make of each of them.
        """
        by_site = [(site, places, layers[places[0]]) for site, places in _by_site(layers).items()]
        wanted = {site.at: Wanted(first.name, site, first.batch, reducer) for site, _, first in by_site if site.at}
        jaxpr = self._traced.jaxpr
        outs, found = Replay(wanted).run(jaxpr.jaxpr, jaxpr.consts, self._arguments.values)
        parts = []
        for site, places, first in by_site:
            if not site.at:
                y = outs[self._traced.outputs.index(site)]
                parts.append(Part(tuple(places), reducer(first.name, jnp.moveaxis(y, first.batch, 0)), False))
                continue
            value, lengths = found[site.at], [scope.length for scope in site.depths]
            if lengths:
                chosen = [int(np.ravel_multi_index(layers[i].index, lengths)) for i in places]
                value = jax.tree.map(partial(_flat, lengths=lengths, chosen=chosen), value)
            parts.append(Part(tuple(places), value, bool(lengths)))
        return Reduced(tuple(layer.name for layer in layers), tuple(parts))


@dataclass(frozen=True)
class Part:
    """What a reducer made of one layer, or of the layers of one scan.

    Attributes:
        places: the places of the layers among all of them.
        value: the result; for a scan, all results along a new axis in front.
        stacked: whether there is such an axis.
    """

    places: tuple[int, ...]
    value: PyTree
    stacked: bool


@dataclass(frozen=True)
class Reduced:
    """What a reducer made of each layer.

    Attributes:
        names: the names of the layers, in forward order.
        parts: the results.
    """

    names: tuple[str, ...]
    parts: tuple[Part, ...]

    def by_name(self) -> OrderedDict[str, PyTree]:
        """The result of each layer. An ``OrderedDict``, because ``jit`` sorts the keys of a plain one."""
        found: dict[int, PyTree] = {}
        for part in self.parts:
            for i, place in enumerate(part.places):
                found[place] = jax.tree.map(itemgetter(i), part.value) if part.stacked else part.value
        return OrderedDict((name, found[i]) for i, name in enumerate(self.names))


def _by_site(layers: Sequence[Layer]) -> dict[Site, list[int]]:
    """The places of the layers of each site."""
    found: dict[Site, list[int]] = {}
    for i, layer in enumerate(layers):
        found.setdefault(layer.site, []).append(i)
    return found


def _flat(y: Any, lengths: Sequence[int], chosen: Sequence[int]) -> Any:
    """The chosen layers of nested scans, along one axis."""
    flat = y.reshape(-1, *y.shape[len(lengths) :])
    return flat if list(chosen) == list(range(len(flat))) else flat[np.asarray(chosen)]


def _axes_of_twice(
    run: Callable[..., PyTree], arguments: Arguments, sites: Sequence[Site], functions: bool
) -> list[int | None] | None:
    """The axis of each site that is twice as long with twice as many examples; None if the model does not run so."""
    if arguments.n is None:
        return None
    try:
        twice = Traced.of(run, arguments, arguments.of_twice_the_batch(), functions=functions)
    except Exception:  # noqa: BLE001 (a model may be made for one size of the batch, and fails in its own way)
        return None
    others = (*twice.sites, *twice.outputs)
    if [(site.at, site.aval.ndim) for site in others] != [(site.at, site.aval.ndim) for site in sites]:
        return None
    n, axes = arguments.n, []
    for site, other in zip(sites, others, strict=True):
        pairs = list(zip(site.aval.shape, other.aval.shape, strict=True))
        axes.append(pairs.index((n, 2 * n)) if (n, 2 * n) in pairs else None)
    # A model of one graph, say, runs, but holds the number of examples in itself.
    return axes if any(axis is not None for axis, site in zip(axes, sites, strict=True) if not site.at) else None


def _axes_by_length(arguments: Arguments, sites: Sequence[Site]) -> list[int | None]:
    """Axis 0 of each site that is as long as the batch."""
    n = arguments.n
    if n is None or not any(site.aval.shape[:1] == (n,) for site in sites if not site.at):
        n = next((site.aval.shape[0] for site in sites if not site.at and site.aval.ndim), None)
    return [0 if site.aval.shape[:1] == (n,) else None for site in sites]
