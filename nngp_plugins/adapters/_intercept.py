"""Intercepting the calls of modules in frameworks whose models are objects: NNX, Equinox and Keras."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

RecordCall = Callable[[str, Any], None]
"""Takes the path of a module and what the module returned."""

_intercepted: ContextVar[tuple[Mapping[int, str], RecordCall]] = ContextVar("intercepted")


@contextmanager
def intercept(paths: Mapping[int, str], record: RecordCall) -> Iterator[None]:
    """Within this context, modules of an :func:`intercepting_class` pass what their calls return to ``record``.

    Args:
        paths: paths of the modules by ``id``. The model itself has the empty path and is not recorded.
        record: takes the path of a module and what the module returned.
    """
    token = _intercepted.set((paths, record))
    try:
        yield
    finally:
        _intercepted.reset(token)


def intercepting_class(module_type: Any) -> Any:
    """Returns a subclass that records what its calls return and, in NNX, what it sows.

    An adapter gives this class to its private copy of a model, or to a live model for the time of one call. Unlike
    ``nnx.capture`` this changes no class of the user, sees inherited ``__call__`` methods, keeps forward order, and
    leaves no variables behind in the model, which ``nnx.scan`` would refuse.
    """
    return _make_class(module_type)


@cache
def _make_class(module_type: Any) -> Any:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = module_type.__call__(self, *args, **kwargs)
        paths, record = _intercepted.get()
        if path := paths.get(id(self)):
            record(path, outputs)
        return outputs

    def sow(self: Any, variable_type: Any, name: str, value: Any, *args: Any, **kwargs: Any) -> bool:
        paths, record = _intercepted.get()
        # A transformation within the model makes copies of modules, whose ids are not in paths.
        if id(self) in paths:
            record("/".join(filter(None, [paths[id(self)], name])), value)
        return True

    body = {"__module__": module_type.__module__, "__doc__": module_type.__doc__}
    if hasattr(module_type, "__call__"):  # noqa: B004 (the question is whether instances can be called)
        body["__call__"] = __call__
    if hasattr(module_type, "sow"):
        body["sow"] = sow
    # A subclass of an NNX class that opted out of being a PyTree has to opt out again.
    options = {} if getattr(module_type, "_pytree__is_pytree", True) else {"pytree": False}
    return type(module_type)(module_type.__name__, (module_type,), body, **options)
