"""Why a model does not run: parameters of another model, or inputs of another shape."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

Shapes = tuple[tuple[str, tuple[int, ...]], ...]

# what a wrong shape ends in: jnp and Keras raise the first two, models that check for themselves the third
_OF_SHAPES = (TypeError, ValueError, AssertionError)


def shapes_of(params: Any) -> Shapes:
    """The shape of every parameter by its path, such as ``Dense_0/kernel``."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return tuple(
        (jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"), getattr(leaf, "shape", ()))
        for path, leaf in leaves
    )


def check_params(model: str, expected: Shapes, params: Any) -> None:
    """Refuses parameters of another model where it is known what they are.

    A framework that holds its models as objects takes arrays of other shapes as well, and computes something else.

    Raises:
        ValueError: a path or a shape differs.
    """
    if [getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(params)] == [shape for _, shape in expected]:
        return
    found, known = shapes_of(params), dict(expected)
    told = _difference(expected, found) or next((f"they hold {name!r}" for name, _ in found if name not in known), None)
    if told:
        raise ValueError(f"params are not those of this {model}: {told}; f.split(model) gives the ones to pass.")


@contextmanager
def explaining(model: str, params: Any, x: Any, init: Callable[[], Any] | None = None) -> Iterator[None]:
    """Chains errors of a framework under what :func:`explanation` says of them."""
    try:
        yield
    except Exception as error:
        if (told := explanation(error, model, params, x, init)) is None:
            raise
        raise ValueError(told) from error


def explanation(error: Exception, model: str, params: Any, x: Any, init: Callable[[], Any] | None = None) -> str | None:
    """What to say above an error that a framework raised; None where there is nothing to add.

    Args:
        error: what it raised.
        model: how to call the model.
        params: the parameters it was given.
        x: the inputs it was given.
        init: makes the parameters that it would have on these inputs; traced, not run.
    """
    if isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError):
        return None  # about tracing, whatever the shapes
    inputs = reprlib.repr(jax.tree.map(_described, x)).replace("'", "")
    if init is not None and (told := _difference(_expected(init), shapes_of(params))):
        return (
            f"params and x do not fit together in {model}: on x of {inputs}, {told}. Pass parameters of this very "
            "model, and inputs as it was trained on."
        )
    if not isinstance(error, _OF_SHAPES):
        return None
    lines = str(error).strip().splitlines() or [repr(error)]
    return f"{model} does not run on x of {inputs}: {lines[0]}"


def _expected(init: Callable[[], Any]) -> Shapes:
    try:
        return shapes_of(jax.eval_shape(init))
    except Exception:  # noqa: BLE001 (the inputs are what is wrong, or the model is initialised in another mode)
        return ()


def _difference(expected: Shapes, found: Shapes) -> str | None:
    """The first parameter that is missing or of another shape."""
    shapes = dict(found)
    for name, shape in expected:
        if name not in shapes:
            return f"they lack {name!r}, of shape {shape}"
        if shapes[name] != shape:
            return f"{name!r} should have shape {shape} and has {shapes[name]}"
    return None


def _described(leaf: Any) -> Any:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else leaf
