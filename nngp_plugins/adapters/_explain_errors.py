"""Why a model does not run: it got parameters of another model, or inputs of another shape."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from .._typing import PyTree

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""The path and the shape of each parameter."""

# A wrong shape makes jnp and Keras raise one of the first two; models that check shapes themselves raise the third.
_ERRORS_OF_WRONG_SHAPES = (TypeError, ValueError, AssertionError)


def shapes_of(params: PyTree) -> Shapes:
    """Returns the shape of every parameter with its path, such as ``Dense_0/kernel``."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return tuple(
        (jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"), getattr(leaf, "shape", ()))
        for path, leaf in leaves
    )


def owners_of(params: PyTree) -> list[str]:
    """Returns the path of the module of every parameter, such as ``Dense_0``."""
    return [path.rpartition("/")[0] for path, _ in shapes_of(params)]


def check_params(model: str, expected: Shapes, params: PyTree) -> None:
    """Refuses parameters whose paths or shapes are not those of the model.

    A framework whose models are objects would accept arrays of other shapes and compute something else.

    Raises:
        ValueError: a path or a shape differs.
    """
    if shapes_of_leaves(jax.tree.leaves(params)) != [shape for _, shape in expected]:
        refuse_others(model, expected, shapes_of(params))


def shapes_of_leaves(leaves: Sequence[Any]) -> list[tuple[int, ...]]:
    """Returns the shape of every leaf; a Python number has none."""
    return [getattr(leaf, "shape", ()) for leaf in leaves]


def refuse_others(model: str, expected: Shapes, given: Shapes, argument: str = "params") -> None:
    """Refuses arrays whose paths or shapes are not those of the model.

    Raises:
        ValueError: names the first path that differs.
    """
    if problem := _first_difference(expected, given) or _first_unknown(expected, given):
        raise ValueError(f"{argument} do not belong to this {model}: {problem}; pass those that f.split(model) gives.")


@contextmanager
def explain_errors(model: str, params: PyTree, x: PyTree, init: Callable[[], PyTree] | None = None) -> Iterator[None]:
    """Within this context, an error of a framework is raised as the cause of one that :func:`explain` words."""
    try:
        yield
    except Exception as error:
        if (message := explain(error, model, params, x, init)) is None:
            raise
        raise ValueError(message) from error


def explain(
    error: Exception, model: str, params: PyTree, x: PyTree, init: Callable[[], PyTree] | None = None
) -> str | None:
    """Returns a message for an error that a framework raised; None if there is nothing to add to it.

    Args:
        error: the error of the framework.
        model: name of the model, for the message.
        params: the parameters that were passed.
        x: the inputs that were passed.
        init: makes the parameters that the model would have on these inputs. It is traced, not run.
    """
    if isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError):
        return None  # These errors are about tracing, not about shapes.
    inputs = reprlib.repr(jax.tree.map(_dtype_and_shape, x)).replace("'", "")
    if init is not None and (problem := _first_difference(_expected_shapes(init), shapes_of(params))):
        return (
            f"params and x do not fit together in {model}: on x of {inputs}, {problem}. Pass the parameters of this "
            "model, and inputs of the shape that it was trained on."
        )
    if not isinstance(error, _ERRORS_OF_WRONG_SHAPES):
        return None
    lines = str(error).strip().splitlines() or [repr(error)]
    return f"{model} does not run on x of {inputs}: {lines[0]}"


def _expected_shapes(init: Callable[[], PyTree]) -> Shapes:
    try:
        return shapes_of(jax.eval_shape(init))
    except Exception:  # noqa: BLE001 (either the inputs are wrong, or the model is initialised in another mode)
        return ()


def _first_difference(expected: Shapes, given: Shapes) -> str | None:
    """Describes the first parameter that is missing or has another shape."""
    shapes = dict(given)
    for name, shape in expected:
        if name not in shapes:
            return f"they lack {name!r}, of shape {shape}"
        if shapes[name] != shape:
            return f"{name!r} should have shape {shape} and has {shapes[name]}"
    return None


def _first_unknown(expected: Shapes, given: Shapes) -> str | None:
    """Describes the first parameter that the model does not have."""
    known = dict(expected)
    return next((f"they hold {name!r}, which the model does not have" for name, _ in given if name not in known), None)


def _dtype_and_shape(leaf: Any) -> Any:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else leaf
