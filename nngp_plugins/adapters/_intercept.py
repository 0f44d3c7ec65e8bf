"""Tagging the calls of modules in frameworks whose models are objects: NNX, Equinox and Keras."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

from ._tag import inside, joined, mark


@functools.cache
def tagging_class(module_type: Any, path: str, base: type, method: str = "", opaque: tuple[type, ...] = ()) -> Any:
    """A subclass whose methods tag what they return and, in NNX, what they sow.

    An adapter gives this class to its private copy of a model, or to a live model for the time of one call. The path is
    part of the class, because transformations within a model make copies of its modules, which keep nothing but their
    class. No class of the user changes.

    Args:
        module_type: the class of the module.
        path: the path of the module in the model.
        base: the class of all modules of the framework; its own methods are not those of a layer.
        method: the method of the whole model that the adapter calls; what it returns are the outputs, and no layer.
        opaque: types of nodes in what methods return that are left as they are.
    """

    def tagging(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def tagged(self: Any, *args: Any, **kwargs: Any) -> Any:
            with inside(path):
                outputs = call(self, *args, **kwargs)
            return mark(path, outputs, method=name, opaque=opaque)

        return tagged

    def sow(self: Any, variable_type: Any, name: str, value: Any, *args: Any, **kwargs: Any) -> bool:
        mark(joined(path, name), value)
        return True

    methods = {
        name: tagging(name, call) for name, call in _methods(module_type, base).items() if path or name != method
    }

    def __getattribute__(self: Any, name: str) -> Any:
        # The class keeps its own methods: classes compare them with those of a base to see which a subclass overrides.
        tagged = name in methods and name not in object.__getattribute__(self, "__dict__")
        return MethodType(methods[name], self) if tagged else module_type.__getattribute__(self, name)

    body = {"__getattribute__": __getattribute__, **{name: methods[name] for name in ("__call__",) if name in methods}}
    return _subclass(module_type, {**body, "sow": sow} if hasattr(module_type, "sow") else body)


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


@functools.cache
def silent_class(module_type: Any) -> Any:
    """A subclass whose modules sow nothing: what they sow would stay in the model, and ``nnx.scan`` refuses it."""
    return _subclass(module_type, {"sow": lambda *args, **kwargs: True})


def _subclass(module_type: Any, methods: dict[str, Any]) -> Any:
    body = {"__module__": module_type.__module__, "__doc__": module_type.__doc__, **methods}
    # A subclass of an NNX class that opted out of being a PyTree has to opt out again.
    options = {} if getattr(module_type, "_pytree__is_pytree", True) else {"pytree": False}
    return type(module_type)(module_type.__name__, (module_type,), body, **options)


def _methods(module_type: Any, base: type) -> dict[str, Callable[..., Any]]:
    """The call of a class of modules, and the public methods that it has beyond those of all modules."""
    found: dict[str, Callable[..., Any]] = {}
    for name in dir(module_type):
        method = inspect.getattr_static(module_type, name)
        public = not name.startswith("_") and not hasattr(base, name)
        if (public or name == "__call__") and inspect.isfunction(method):
            found[name] = method
    return found
