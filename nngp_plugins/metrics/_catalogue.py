"""The catalogue of metrics: what each one is, how to read it, and how trackers, charts and docs treat it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from jax import Array

from .._meshes import no_mesh
from ._gram import Gram

Metric = Callable[[Gram, Gram], Array]
"""What a tracker calls: it takes a layer's Gram and its reference Gram, and returns a scalar.

The reference is the layer's first kernel that is not zero, unless the tracker is told another step. A
:class:`Velocity` gets the previous snapshot instead."""

F = TypeVar("F", bound=Callable[..., Any])
ROTATION, SCALE, TRANSLATION = "rotation of features", "scale", "translation of features"
# Costs for features (N, D) with D < N. For a dense kernel, N stands in place of D.
INNER, EIGENVALUES, VECTORS, CHOLESKY = "N D²", "N D² + eigvalsh(D)", "svd(N, D)", "N D² + cholesky(D)"


@dataclass(frozen=True)
class Entry:
    """A metric and how to read it.

    Attributes:
        metric: the function.
        formula: K and L are kernels, λ eigenvalues largest first, p = λ / Σ λ, Y targets, N examples, C classes.
        range: the values that it can take.
        cost: for N examples with D < N features; for a dense kernel, N stands in place of D.
        tells: what the number says.
        misleads: when the number says something else.
        invariant: what may be done to the features without changing the number.
        title: a short name for charts and tables.
        log_axis: whether charts draw it on a logarithmic axis.
        relative_to_reference: whether it compares a snapshot with an earlier one.
        needs_targets: whether it takes targets, as ``y=``.
        needs_classes: whether these targets must be classes.
        needs_spectrum: whether it asks a Gram for ``eigvalsh`` or ``singular_values``. A tracker then computes the
            eigenvalues once for all metrics.
        in_units_of_kernel: whether its value is c times as large for c times the kernel, as a trace is. A tracker then
            has the value of a kernel that leaves the range of float32, too. Only for metrics of one Gram.
        tracked: whether a tracker logs it by default. A function in place of True is what the tracker calls instead of
            the metric. It is called with ``(gram, reference)`` if it is relative to the reference, else with
            ``(gram)``, and with ``y=targets`` if it needs targets.
        logged_as: the name of a metric that has no ``__name__``.
    """

    metric: Callable[..., Any]
    formula: str
    range: str
    cost: str
    tells: str
    misleads: str
    invariant: tuple[str, ...] = (ROTATION,)
    title: str = ""
    log_axis: bool = False
    relative_to_reference: bool = False
    needs_targets: bool = False
    needs_classes: bool = False
    needs_spectrum: bool = False
    in_units_of_kernel: bool = False
    tracked: bool | Callable[..., Any] = False
    logged_as: str = ""

    @property
    def name(self) -> str:
        """The metric's name in :mod:`nngp_plugins.metrics` and in the logs of a tracker."""
        return self.logged_as or self.metric.__name__

    @property
    def source(self) -> str:
        """Where it was published, as the docstring of the metric says after ``Source:``."""
        text = (inspect.getdoc(self.metric) or "").partition("Source: ")[2].partition("\n\n")[0]
        return " ".join(text.split()).rstrip(".")


_ENTRIES: dict[str, Entry] = {}


def entry(*, title: str, **facts: Any) -> Callable[[F], F]:
    """Registers the decorated function in the catalogue, which trackers, charts and docs read.

    Args:
        title: a short name for charts and tables.
        **facts: the other attributes of :class:`Entry`. ``formula``, ``range``, ``cost``, ``tells`` and ``misleads``
            are required.

    Returns:
        A decorator that returns the function, which then leaves the mesh of ``jax.set_mesh`` for each call: Grams may
        be on another one. Other callables are returned as they are.

    Raises:
        TypeError: a required attribute is missing, or one is unknown.
        ValueError: another function has the same name in the catalogue.

    Example:
        >>> import nngp_plugins as nngp
        >>> @nngp.metrics.entry(
        ...     title="Largest entry", formula="max K_ij", range="≥ 0", cost="N² D", tracked=True,
        ...     tells="how large the features of an example are", misleads="a single outlier decides it",
        ... )
        ... def largest_entry(a):
        ...     return a.dense().max()
        >>> list(nngp.metrics.default_metrics())[-1]
        'largest_entry'
        >>> nngp.metrics.unregister("largest_entry")
    """

    def register(metric: F) -> F:
        on_its_mesh = no_mesh()(metric) if inspect.isfunction(metric) else metric
        new = Entry(on_its_mesh, title=title, **facts)
        old = _ENTRIES.get(new.name)
        if old is not None and _home(old.metric) != _home(metric):
            raise ValueError(
                f"the catalogue already has a metric {new.name!r}, from {_home(old.metric)[0]}; choose another name, "
                f"or call nngp.metrics.unregister({new.name!r}) first."
            )
        _ENTRIES[new.name] = new
        return on_its_mesh

    return register


def _home(metric: Callable[..., Any]) -> tuple[str, str]:
    """Where a metric was defined. A notebook cell that runs twice defines the same metric again."""
    return metric.__module__, getattr(metric, "__qualname__", type(metric).__qualname__)


def unregister(name: str) -> None:
    """Takes a metric out of the catalogue.

    Raises:
        KeyError: the catalogue has no metric of this name.
    """
    del _ENTRIES[name]


def catalogue() -> tuple[Entry, ...]:
    """All metrics, with formula, range, cost, source, and how to read them.

    Example:
        >>> import nngp_plugins as nngp
        >>> entry = next(entry for entry in nngp.metrics.catalogue() if entry.name == "stable_rank")
        >>> entry.formula, entry.range
        ('tr K / λ₁', '[1, min(N, D)]')
    """
    return tuple(_ENTRIES.values())


def entry_of(name: str) -> Entry | None:
    """The entry of a metric by its name; None if the catalogue has none.

    Example:
        >>> import nngp_plugins as nngp
        >>> nngp.metrics.entry_of("cka").title, nngp.metrics.entry_of("my_own")
        ('CKA to init', None)
    """
    return _ENTRIES.get(name)
