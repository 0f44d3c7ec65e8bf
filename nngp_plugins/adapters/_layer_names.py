"""From tagged arrays to named layers in forward order, and to those that patterns select."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import jax

from ._sites import Place, Site, X, iteration, transposed
from ._tag import STACKED


@dataclass(frozen=True)
class Layer:
    """A layer.

    Attributes:
        name: its name.
        site: where its array is.
        batch: the axis of the batch in that array.
        index: the index of the layer in each scan over layers around it.
        others: the other names of the same array.
    """

    name: str
    site: Site
    batch: int
    index: tuple[int, ...]
    others: tuple[str, ...] = ()

    @property
    def shape(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype, batch first."""
        return self.site.whole(self.batch)

    @property
    def token(self) -> Hashable:
        """Equal for two layers only if they are the same array once the batch comes first."""
        token, steps = iteration(self.site.known.token, self.site.scopes, self.index), len(self.site.times)
        rest = [steps + axis for axis in range(self.site.aval.ndim) if axis != self.batch]
        return transposed(token, [steps + self.batch, *range(steps), *rest])


NOT_OF_INPUTS = "it does not depend on the inputs"


class LeftOut(NamedTuple):
    """An array that is no layer.

    Attributes:
        module: the path of its module.
        reason: why it is none.
    """

    module: str
    reason: str


Sited = tuple[Site, int | None]
"""A site with the axis of the batch, if it has one."""


def named_layers(sites: Sequence[Sited], outputs: Sequence[Sited]) -> tuple[list[Layer], dict[str, LeftOut]]:
    """Names every array: ``name#1`` for a second call, ``name:0`` inside a tuple, ``name/0`` in a scan over layers.

    Args:
        sites: the tagged arrays.
        outputs: the model's own outputs.

    Returns:
        The layers in forward order, and the arrays that are no layers, by name.
    """
    sites = _outermost(sites)
    named: list[tuple[str, Site, int | None, tuple[int, ...]]] = []
    positions = _positions_of_indices([site for site, batch in sites if batch is not None and site.known.depends & X])
    times: Counter[tuple[str, str]] = Counter()
    for site, batch, index in sorted(_iterations(sites), key=_in_forward_order):
        call = _with_indices(site, index, positions)
        if site.method:
            call = f"{call}.{site.method}" if call else site.method
        k = times[call, site.part]
        times[call, site.part] += 1
        name = ":".join(filter(None, [f"{call}#{k}" if k else call, site.part]))
        named.append((name, site, batch, index))
    of_layers = [name for name, site, batch, _ in named if not _why_left_out(site, batch)]
    own = ":output" if any(name.split("/")[0].split(":")[0] == "output" for name in of_layers) else "output"
    named += [(":".join(filter(None, [own, site.part])), site, batch, ()) for site, batch in outputs]
    layers: list[Layer] = []
    left_out: dict[str, LeftOut] = {}
    for name, site, batch, index in named:
        if reason := _why_left_out(site, batch):
            left_out[name] = LeftOut(site.module if site.at else "", reason)
        else:
            layers.append(Layer(name, site, batch or 0, index))
    return layers, left_out


def _outermost(sites: Sequence[Sited]) -> list[Sited]:
    """The sites without those inside a call that returned a result of the same method of the same module.

    A scan around the inner call alone makes that one layers of their own, as those of a scanned module.
    """
    levels: dict[Hashable, int] = {}
    for site, _ in sites:
        key = site.path, site.method, site.scopes
        levels[key] = min(site.level, levels.get(key, site.level))
    return [(site, batch) for site, batch in sites if site.level == levels[site.path, site.method, site.scopes]]


def _why_left_out(site: Site, batch: int | None) -> str:
    """Why an array is no layer; empty if it is one."""
    if not site.known.depends & X:
        return NOT_OF_INPUTS
    if any(scope.kind == "examples" for scope in site.scopes):
        return "it takes one example at a time, in a scan over the batch; use jax.vmap in its place"
    if batch is None:
        shape = tuple(site.aval.shape)
        return f"it has no row for each example: its shape is {shape}" if shape else "it is a scalar"
    if site.varying and site.aval.ndim == 1:
        return f"inside shard_map, it differs over the axes {site.varying} of the mesh, and has no features"
    return ""


def _iterations(sites: Sequence[Sited]) -> Iterator[tuple[Site, int | None, tuple[int, ...]]]:
    """Every site, once for each layer of the scans over layers around it."""
    for site, batch in sites:
        for index in itertools.product(*(range(scope.length) for scope in site.depths)):
            yield site, batch, index


def _in_forward_order(one: tuple[Site, int | None, tuple[int, ...]]) -> Place:
    """A key that sorts the layers of a scan by the time at which they run."""
    site, _, index = one
    key = list(site.at)
    for scope, i in reversed(list(zip(site.depths, index, strict=True))):
        key.insert(len(scope.at), scope.length - 1 - i if scope.reverse else i)
    return tuple(key)


def _positions_of_indices(sites: Sequence[Site]) -> dict[Place, int]:
    """For each scan over layers, how many parts of the path come before the index: those that all its layers share."""
    paths: dict[Place, list[list[str]]] = {}
    for site in sites:
        for scope in site.scopes:
            paths.setdefault(scope.at, []).append(site.path.split("/"))
    return {at: _common(inside) or 1 for at, inside in paths.items()}


def _common(paths: Sequence[Sequence[str]]) -> int:
    """How many parts in front all paths share."""
    return len(list(itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))))


def _with_indices(site: Site, index: tuple[int, ...], positions: Mapping[Place, int]) -> str:
    parts = [part for part in site.path.split("/") if part]
    for scope, i in reversed(list(zip(site.depths, index, strict=True))):
        if STACKED in parts:
            parts[len(parts) - 1 - parts[::-1].index(STACKED)] = str(i)
        else:
            parts.insert(positions.get(scope.at, 1), str(i))
    return "/".join(part for part in parts if part != STACKED)


def select(layers: Sequence[Layer], left_out: Mapping[str, LeftOut], patterns: Sequence[str]) -> list[Layer]:
    """The layers whose names match, in forward order; equal arrays once, under the first name that matches.

    Args:
        layers: all layers.
        left_out: the arrays that are no layers, by name.
        patterns: ``fnmatch`` patterns; a pattern with ``!`` in front excludes names.

    Raises:
        ValueError: a pattern matches nothing, or nothing is left.
    """
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    names = [layer.name for layer in layers]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(_no_match_message(pattern, names, left_out))
    groups: OrderedDict[Hashable, list[Layer]] = OrderedDict()
    for layer in layers:
        if matches(layer.name, patterns):
            token = layer.token
            parent, _, last = groups.get(token, [layer])[0].site.path.rpartition("/")
            # The result of a numbered stack keeps a name of its own, which does not change with the number of blocks.
            of_stack = last.isdigit() and parent == layer.site.path
            groups.setdefault(("stack", token) if of_stack else token, []).append(layer)
    if not groups:
        raise ValueError(f"layers({', '.join(map(repr, patterns))}) leaves no layer of {', '.join(map(repr, names))}.")
    return [_as_one(group) for group in groups.values()]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether patterns select a name: one of them matches it, or there are none, and none with ``!`` matches it."""
    excluded = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    found = any(fnmatchcase(name, pattern) for pattern in wanted or ["*"])
    return found and not any(fnmatchcase(name, pattern) for pattern in excluded)


def _as_one(group: list[Layer]) -> Layer:
    """One layer for all names of an array; a module names it better than its method, or a place in a tuple."""
    first = min(group, key=lambda layer: (bool(layer.site.method), bool(layer.site.part)))
    return replace(first, others=tuple(layer.name for layer in group if layer is not first))


def _no_match_message(pattern: str, names: Sequence[str], left_out: Mapping[str, LeftOut]) -> str:
    """Says why a pattern selects nothing: what it matches is no layer, or it matches nothing at all."""
    for name, other in left_out.items():
        if fnmatchcase(name, pattern):
            return f"layers({pattern!r}) matches {name!r}, which is no layer: {other.reason}."
    closest = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3] or ["none"]
    return f"layers({pattern!r}) matches no layer; the closest are {', '.join(map(repr, closest))}."
