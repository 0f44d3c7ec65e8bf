"""Tagging the calls of modules in frameworks whose models are objects: NNX, Equinox and Keras."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any

from ._tag import inside, is_looking, joined, mark

Method = tuple[type, str]
"""A method, by the class that defines it and by its name."""


@dataclass(frozen=True)
class Capture:
    """How the layers of one model are seen.

    Attributes:
        path_of: the path of a module in the model; None for an object that is no module of it.
        method: the method of the whole model that the adapter calls; what it returns are the outputs, and no layer.
        opaque: types of nodes in what methods return that are left as they are.
    """

    path_of: Callable[[Any], str | None]
    method: str = ""
    opaque: tuple[type, ...] = ()


_NO_MODEL = Capture(lambda module: None)
_capture: ContextVar[Capture] = ContextVar("capture", default=_NO_MODEL)
_own: dict[Method, tuple[Any, int]] = {}
"""The user's own methods while others stand in their place, and for how many captures."""
_lock = Lock()


@contextmanager
def tagging(methods: Iterable[Method], capture: Capture, sows: Iterable[Method] = ()) -> Iterator[None]:
    """Within this context, methods tag what they return when they run on a module of the model.

    They stand in the classes that define them, so that ``type(module)`` is the user's class, that a class which
    inherits a method still has the one of its base, and that no code runs which a user has for new classes. For other
    objects, and in other threads, they are what they were.

    Args:
        methods: those of the classes of all modules; see :func:`methods_of`.
        capture: how to see the layers of the model.
        sows: methods that tag what they are given instead, and keep nothing of it.
    """
    methods = {**dict.fromkeys(methods, _tagged), **dict.fromkeys(sows, _sowing)}
    with _lock:
        for (kind, name), make in methods.items():
            own, count = _own.get((kind, name)) or (vars(kind)[name], 0)
            _own[kind, name] = own, count + 1
            if not count:
                # A metaclass may have something to say to setattr.
                type.__setattr__(kind, name, make(name, own))
    token = _capture.set(capture)
    try:
        yield
    finally:
        _capture.reset(token)
        with _lock:
            for kind, name in methods:
                own, count = _own.pop((kind, name))
                if count > 1:
                    _own[kind, name] = own, count - 1
                else:
                    type.__setattr__(kind, name, own)


def _seen(module: Any) -> tuple[Capture, str | None]:
    """The capture that goes on, and the path of a module in its model; None if it is not in one."""
    capture = _capture.get()
    return capture, capture.path_of(module) if is_looking() else None


def _tagged(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def tagged(self: Any, *args: Any, **kwargs: Any) -> Any:
        capture, path = _seen(self)
        if path is None or (not path and name == capture.method):
            return call(self, *args, **kwargs)
        with inside(path, name) as level:
            outputs = call(self, *args, **kwargs)
        return mark(path, outputs, method=name, level=level, opaque=capture.opaque)

    return tagged


def _sowing(method: str, sow: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(sow)
    def sown(self: Any, variable_type: Any, name: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        _, path = _seen(self)
        if path is None:
            return sow(self, variable_type, name, value, *args, **kwargs)
        mark(joined(path, name), value)
        return True

    return sown


@functools.cache
def methods_of(module_type: Any, base: type) -> frozenset[Method]:
    """The call of a class of modules, and the public methods that it has beyond those of all modules.

    Args:
        module_type: the class of the module.
        base: the class of all modules of the framework; its own methods are not those of a layer.
    """
    found = set()
    for name in dir(module_type):
        method = inspect.getattr_static(module_type, name)
        public = not name.startswith("_") and not hasattr(base, name)
        if (public or name == "__call__") and inspect.isfunction(method):
            found.add(definition_of(module_type, name))
    return frozenset(found)


def definition_of(module_type: type, name: str) -> Method:
    """The method that a class has by this name."""
    return next(kind for kind in module_type.__mro__ if name in vars(kind)), name


@functools.cache
def sows(module_type: Any, base: type) -> bool:
    """Whether the code of a class calls ``self.sow``.

    Args:
        module_type: the class of the module.
        base: the class of all modules of the framework.
    """
    classes = [kind for kind in module_type.__mro__ if not issubclass(base, kind)]
    functions = (inspect.unwrap(value) for kind in classes for value in vars(kind).values() if callable(value))
    return any("sow" in function.__code__.co_names for function in functions if inspect.isfunction(function))


def sow_nothing(variable_type: Any, name: str, value: Any, *args: Any, **kwargs: Any) -> bool:
    """Takes the place of ``module.sow``: what modules sow would stay in the model, and ``nnx.scan`` refuses it."""
    return True
