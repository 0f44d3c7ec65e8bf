"""Watching the modules of frameworks whose models are objects: NNX, Equinox, Keras."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

Record = Callable[[str, Any], None]
_watched: ContextVar[tuple[Mapping[int, str], Record]] = ContextVar("watched")


@contextmanager
def watching(paths: Mapping[int, str], record: Record) -> Iterator[None]:
    """Within it, modules given a class of :func:`recording` record what their calls return.

    Args:
        paths: names of the modules, by identity; the model itself has the empty one and is not recorded.
        record: takes the name of a module and what it returned.
    """
    token = _watched.set((paths, record))
    try:
        yield
    finally:
        _watched.reset(token)


def recording(module_type: Any) -> Any:
    """A subclass that records what its calls return, and in NNX what it sows.

    Only a private copy of a model, or one for the time of a call, is given this class. Unlike ``nnx.capture`` it
    touches no class of the user's, sees inherited ``__call__`` methods, keeps forward order, and leaves no variables
    behind in the model, which ``nnx.scan`` would refuse.
    """
    return _recording(module_type)


@cache
def _recording(module_type: Any) -> Any:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = module_type.__call__(self, *args, **kwargs)
        paths, record = _watched.get()
        if path := paths.get(id(self)):
            record(path, outputs)
        return outputs

    def sow(self: Any, variable_type: Any, name: str, value: Any, *args: Any, **kwargs: Any) -> bool:
        paths, record = _watched.get()
        if id(self) in paths:  # unlike the copies that a transformation within the model makes
            record("/".join(filter(None, [paths[id(self)], name])), value)
        return True

    body = {"__module__": module_type.__module__, "__doc__": module_type.__doc__}
    if hasattr(module_type, "__call__"):  # noqa: B004 (of the instances, not of the class)
        body["__call__"] = __call__
    if hasattr(module_type, "sow"):
        body["sow"] = sow
    # NNX asks for what its classes are anyway
    options = {} if getattr(module_type, "_pytree__is_pytree", True) else {"pytree": False}
    return type(module_type)(module_type.__name__, (module_type,), body, **options)
