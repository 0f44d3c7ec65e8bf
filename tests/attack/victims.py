"""What is attacked: jobs whose files and numbers are known, so that a loss or a wrong number shows."""

import contextlib
import json
import shutil
import warnings
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from helpers.arrays import normal

import nngp_plugins as nngp

LOADED = tensorstore  # which a job would import
STEPS, LAYERS = 24, ("hidden", "head")
METRICS = {name: nngp.metrics.DEFAULT[name] for name in ("cka", "kernel_velocity", "scale")}
X1, X2, PARAMS = normal(0, 20, 5), normal(1, 15, 5), normal(2, 5, 7)


def layers(params, x):
    hidden = jnp.tanh(x @ params["hidden"])
    return {"hidden": hidden, "head": hidden @ params["head"]}


def train(path):
    """Trains with a tracker that writes to a run folder, and returns the last parameters."""
    x, y = normal(0, 12, 5), normal(1, 12, 2)
    params = {"hidden": normal(2, 5, 9), "head": normal(3, 9, 2)}
    step_of = jax.jit(jax.value_and_grad(lambda params: jnp.mean((layers(params, x)["head"] - y) ** 2)))
    tracker = nngp.KernelTracker(
        layers, x, schedule=nngp.every(2), metrics=METRICS, run=Path(path) / "run", keep_kernels=True
    )
    with tracker, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a failing disk is worth a warning, and training goes on
        for step in range(STEPS):
            loss, grads = step_of(params)
            params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
            tracker(step, params, loss=loss)
    return params


def write(path):
    """Writes a kernel of 35 tiles."""
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: jnp.tanh(x @ params))
    options = {"batch_size": 5, "tile_size": 3, "progress": False}
    nngp.write_kernel(kernel_fn, X1, X2, PARAMS, Path(path) / "k.zarr", **options)


def write_features(path):
    """Writes ten blocks of features for each of two layers."""
    params = {"hidden": normal(2, 5, 9), "head": normal(3, 9, 2)}
    options = {"batch_size": 5, "block_size": 2, "ids": range(len(X1)), "progress": False}
    nngp.write_features(layers, X1, params, Path(path) / "phi.zarr", **options)


JOBS = {"tracker": train, "store": write, "features": write_features}
FOLDERS = {"tracker": "run", "store": "k.zarr", "features": "phi.zarr"}
OPEN = {"store": nngp.open_kernel, "features": nngp.open_features}


def run(path, kind):
    """Does a job; tests/forks.py calls this."""
    JOBS[kind](path)


def numbers(path, kind):
    """All numbers that a folder gives, by name; each is read as a user reads it.

    Raises:
        ValueError: a file is damaged, or the job is unfinished.
        OSError: a file cannot be read.
    """
    if kind in OPEN:
        return arrays_of(OPEN[kind](Path(path) / FOLDERS[kind]))
    history = nngp.History.load(Path(path) / "run")
    kernels = {f"{name} {step}": history.kernel(name, step) for name in LAYERS for step in history.steps.tolist()}
    return {**rows_of(history), **kernels}


def arrays_of(store):
    ids = {} if (ids := getattr(store, "ids", None)) is None else {"ids": np.asarray(ids)}
    return {name: array[...] for name, array in store.arrays.items()} | ids


def rows_of(history):
    return {f"row {row['step']}": {**row, "seconds": 0} for row in history.rows} | {
        "references": history.reference_steps
    }


def partial_numbers(path, kind):
    """Those that an unfinished job left, and the kernels that it says the disk did not take."""
    if kind in OPEN:
        if not (Path(path) / FOLDERS[kind] / "job.json").exists():
            return {}, []
        store = OPEN[kind](Path(path) / FOLDERS[kind])
        if store.fraction:
            store.verify()
        return (arrays_of(store) if store.complete else {}), []
    run = Path(path) / "run"
    # The folder says what it is before it has a first line.
    if not (run / "metrics.jsonl").exists():
        return {}, []
    history = nngp.History.load(run)
    found, refused = rows_of(history), []
    for name, step in product(LAYERS, history.steps.tolist()):
        try:
            found[f"{name} {step}"] = history.kernel(name, step)
        except (ValueError, FileNotFoundError) as error:
            if "disk did not take" not in str(error) and "keeps no kernels" not in str(error):
                raise
            refused.append(f"{name} {step}")
    return found, refused


def same(found, expected):
    """Whether numbers are equal, up to what another order of operations may change."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
    if isinstance(expected, float | np.ndarray | jax.Array):
        return np.shape(found) == np.shape(expected) and np.allclose(found, expected, rtol=1e-5, equal_nan=True)
    return found == expected


def wrong(found, expected, *, may_lack=False):
    """The first name whose numbers are others than those of a job that nothing interrupted; None if all are right.

    Args:
        found: the numbers of a folder.
        expected: those of a job that nothing interrupted.
        may_lack: whether a row may hold nan: the velocity after a kernel that the disk refused until the job ended.
    """
    for name, value in found.items():
        if may_lack and name.startswith("row "):
            value = {key: number for key, number in value.items() if number == number}
            expected = {**expected, name: {key: expected[name].get(key) for key in value}}
        if name == "references":
            if not value.items() <= expected[name].items():
                return name
        elif not same(value, expected.get(name)):
            return name
    return None


def fresh(path, source=None):
    """An empty folder, or a copy of another one."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
    if source is None:
        path.mkdir(parents=True)
    else:
        shutil.copytree(source, path)
    return path


def main(arguments):
    """Does a job in each folder of a list, and prints how each ended; strace watches this process."""
    kind, *paths = arguments
    for path in paths:
        try:
            JOBS[kind](path)
            said = ["finished", ""]
        except (OSError, ValueError) as error:
            said = ["failed", f"{type(error).__name__}: {error}"]
        print(json.dumps(said), flush=True)  # noqa: T201


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
