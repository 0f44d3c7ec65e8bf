"""What a tracker refuses, before it measures anything."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Container, Mapping
from functools import cache
from operator import index
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding

from ..adapters import check_key, holds_module, is_model
from ..engine import is_traced
from ..history import is_own_name
from ..metrics import DenseGram, Metric, labels_of
from ._schedules import Schedule

NUMPY = np.ndarray | np.generic
ARRAYS = Array | np.ndarray | np.generic


def probe_size(probe: Any) -> int:
    """The number of examples of a probe.

    Raises:
        ValueError: its arrays do not have one batch in front, or the batch is empty.
    """
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(probe)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"probe_x must hold arrays with one batch of examples in front, got batch sizes {sorted(sizes)}."
        )
    return sizes.pop()


def check_batches(batch_size: int | None, rows: NamedSharding | None) -> None:
    """Refuses to cut a probe into batches that is sharded over explicit axes: JAX asks where each of them should be.

    Raises:
        ValueError: says what to do.
    """
    if batch_size is not None and rows is not None and AxisType.Explicit in rows.mesh.axis_types:
        raise ValueError(
            f"batch_size={batch_size} would cut probe_x, which is sharded over explicit axes of a mesh; leave "
            "batch_size out, because each device has only a share of the probe, or make the mesh with "
            "axis_types=(AxisType.Auto, ...)."
        )


def check_arguments(
    f: Any, schedule: Any, batch_size: int | None, rng: Any, keep_kernels: bool, run: Any, config: Any
) -> None:
    """Refuses arguments of a tracker that have another type or value.

    Raises:
        TypeError: ``f`` is not a function, ``schedule`` is not a schedule, ``rng`` is not a key, or ``config`` is not a
            mapping.
        ValueError: ``batch_size`` is not positive, or kernels are kept without a run folder.
    """
    if not callable(f) or is_model(f) or holds_module(f):
        such = "nngp.as_model_fn(model).layers()"
        if holds_module(f):
            such = "nngp.as_model_fn(model.module).layers(), and model.params to each call"
        raise TypeError(f"f={reprlib.repr(f)} is no function f(params, x); pass one, such as {such}.")
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config={reprlib.repr(config)} is not a mapping; pass a dict, such as vars(args).")
    check_key(rng)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be positive, or None for the whole probe at once.")
    if schedule is not None and not isinstance(schedule, Schedule):
        raise TypeError(f"schedule={schedule!r} is not a schedule; pass nngp.every({schedule!r}) or nngp.log_spaced().")
    if keep_kernels and run is None:
        raise ValueError("keep_kernels=True keeps them in the run folder; pass run= as well.")


def check_concrete(**arguments: Any) -> None:
    """Refuses arguments that a compiled function traces: the tracker would hold them when the trace has ended.

    Raises:
        TypeError: names the first such argument.
    """
    for name, value in arguments.items():
        if is_traced(value):
            raise TypeError(
                f"{name} is traced, because this tracker is made inside a compiled function; make the tracker outside "
                "of it, or pass an array that was made outside of it, such as a NumPy array."
            )


def check_reference(reference: Any) -> int | None:
    """The first step whose kernels may be references, as an int; None for every step.

    Raises:
        TypeError: ``reference`` is not an integer.
        ValueError: it is negative.
    """
    if reference is None:
        return None
    step = _as_int(
        reference,
        f"reference={reprlib.repr(reference)} is not a step; pass an int, such as reference=1000, or None for the "
        "first kernel of each layer that is not zero.",
    )
    if step < 0:
        raise ValueError(f"reference={step} is negative; pass the step of the reference, such as reference=1000.")
    return step


def check_queue_bytes(queue_bytes: Any) -> int:
    """The bytes of host memory for snapshots that wait, as an int.

    Raises:
        TypeError: ``queue_bytes`` is not an integer.
        ValueError: it is not positive.
    """
    most = _as_int(
        queue_bytes,
        f"queue_bytes={reprlib.repr(queue_bytes)} is not a number of bytes; pass an int, such as "
        "queue_bytes=2 * 2**30.",
    )
    if most < 1:
        raise ValueError(
            f"queue_bytes={most} must be positive; with queue_bytes=1, each snapshot waits for the one before."
        )
    return most


def _as_int(value: Any, message: str) -> int:
    """An integer of any type, or the message; a bool counts as an integer in Python, and not here."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return index(value)
    except TypeError:
        raise TypeError(message) from None


def check_layers(known: Mapping[str, Any], found: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses to go on with a run that has other layers.

    Raises:
        ValueError: names the first layer that differs.
    """
    for name in [*known, *found]:
        old, new = known.get(name), found.get(name)
        if new is None or old is None or list(old) != list(new):
            said = [f"of shape {tuple(shape)}" if shape is not None else "missing" for shape in (old, new)]
            raise ValueError(
                f"the run folder is of another model: layer {name!r} is {said[0]} there and {said[1]} now (without the "
                "batch axis); go on with the same model, or name another folder."
            )


def refuse_traced(name: str, *leaves: Any) -> None:
    """Refuses what a compiled function traces, given to a tracker that is called there.

    Raises:
        TypeError: a leaf is traced.
    """
    for leaf in leaves:
        if isinstance(leaf, Tracer):
            raise TypeError(
                f"{name} is traced, because the tracker is called inside a compiled function, which runs Python only "
                "once. Put nngp.track_kernel(tracker) into the optimizer there, or call the tracker outside."
            )


def check_params(params: Any) -> None:
    """Refuses what optax hands to a transformation in place of a model's parameters.

    Raises:
        ValueError: ``params`` are those of one group, or the two sets of a lookahead.
    """
    import optax

    if isinstance(params, optax.LookaheadParams):
        raise ValueError(
            "params is a LookaheadParams, which holds the parameters twice. For the fast ones, put track_kernel "
            "inside, optax.lookahead(optax.chain(optimizer, nngp.track_kernel(tracker)), ...), or call tracker(step, "
            "params.fast). For the slow ones, call tracker(step, params.slow)."
        )

    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    for path, node in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_masked):
        if is_masked(node):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} is masked, because optax.partition and optax.masked hand over the "
                "parameters of one group alone. Put track_kernel beside them: "
                "optax.chain(optax.partition(...), nngp.track_kernel(tracker))."
            )


def as_numbers(scalars: Mapping[str, Any]) -> dict[str, Any]:
    """The scalars of a call; those of NumPy become floats, because training may write to their arrays later.

    Raises:
        TypeError: names the first such scalar, or the first that is traced.
        ValueError: names the first that was donated before the call.
    """
    numbers: dict[str, Any] = {}
    for name, value in scalars.items():
        is_array = isinstance(value, Array)
        if is_array and isinstance(value, Tracer):
            refuse_traced(name, value)
        if not (value.shape == () and _is_real(value.dtype) if is_array else is_real_number(value)):
            shown = f"{value.dtype}{list(value.shape)}" if is_array else reprlib.repr(value)
            raise TypeError(f"{name}={shown} is not a scalar; pass single numbers, and a model's state as state=.")
        if not is_array:
            value = float(value) if isinstance(value, NUMPY) else value
        elif value.is_deleted():
            raise ValueError(f"{name}= was donated before this call; pass the number that came after, or a copy.")
        numbers[name] = value
    return numbers


def is_real_number(value: Any) -> bool:
    """Whether a value is a single number that a float can stand for; those of JAX may be traced."""
    if isinstance(value, ARRAYS):
        return value.shape == () and _is_real(value.dtype)
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


@cache
def _is_real(dtype: Any) -> bool:
    # NumPy counts differences of times as integers.
    is_number = any(jnp.issubdtype(dtype, kind) for kind in (jnp.integer, jnp.floating, jnp.bool_))
    return is_number and not jnp.issubdtype(dtype, np.timedelta64)


def check_names(scalars: Mapping[str, Any], metrics: Container[str]) -> None:
    """Refuses scalars whose names belong to the tracker's own numbers.

    Raises:
        ValueError: names the first such scalar.
    """
    for name in scalars:
        if is_own_name(name, metrics):
            raise ValueError(f"the scalar {name!r} has a name of the tracker's own; choose another.")


def check_targets(targets: Any, n: int) -> np.ndarray:
    """The targets of the ``n`` examples of a probe as an array; None becomes empty.

    Targets ``(N, 1)`` lose that axis, except for whole numbers that would become labels without it.

    Raises:
        TypeError: the targets hold Python objects.
        ValueError: the targets have another shape than ``(N,)`` or ``(N, C)``, or are the ids of tokens.
    """
    if targets is None:
        return np.zeros((0,))
    given = np.asarray(targets)
    if given.dtype.kind == "V":  # NumPy cannot save the small dtypes of JAX, such as bfloat16.
        given = given.astype(np.float32 if jnp.issubdtype(given.dtype, jnp.floating) else np.int32)
    if given.dtype == object:
        raise TypeError("targets hold Python objects; pass an array of numbers or strings.")
    if given.ndim not in (1, 2) or len(given) != n:
        raise ValueError(f"targets of shape {given.shape} do not label the {n} examples of the probe.")
    labels, column = labels_of(given, n, "targets"), given[:, 0] if given.shape[1:] == (1,) else given
    return given if labels is None and labels_of(column, n) is not None else column


def check_metrics(metrics: Mapping[str, Metric], n: int) -> None:
    """Refuses metrics that do not give a scalar for Grams of ``n`` examples; they are traced, nothing is computed.

    Raises:
        TypeError: ``metrics`` is not a mapping, or a metric is not a function of two Grams that returns a scalar.
        ValueError: a name has a slash, or there are too few examples.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics={reprlib.repr(metrics)} is not a dict {{name: metric(gram, reference_gram)}}.")
    kernel: Any = jax.ShapeDtypeStruct((n, n), jnp.float32)
    eigenvalues: Any = jax.ShapeDtypeStruct((n,), jnp.float32)
    exponent: Any = jax.ShapeDtypeStruct((), jnp.int32)
    like = DenseGram(kernel, kernel, eigenvalues, exponent)
    for name, metric in metrics.items():
        if "/" in name:
            raise ValueError(f"metrics={name!r} has a slash in its name, which separates layer and metric.")
        try:
            value = jax.eval_shape(metric, like, like)
            shape, is_real = value.shape, _is_real(value.dtype)
        except ValueError as error:
            raise ValueError(f"metrics[{name!r}] on a probe of {n} examples: {error}") from error
        except (TypeError, AttributeError) as error:
            raise TypeError(f"metrics[{name!r}] is no metric(gram, reference_gram) -> scalar: {error}") from error
        if shape:
            raise TypeError(f"metrics[{name!r}] returns an array of shape {shape}, not a scalar.")
        if not is_real:
            raise TypeError(f"metrics[{name!r}] returns {value.dtype}, which is no real number.")
