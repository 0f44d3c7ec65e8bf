"""Uses one extra of the installed package: ``python .ci/extras.py keras``; of ``nothing``, what needs none."""

import logging
import os
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import nngp_plugins as nngp

X = jax.random.normal(jax.random.key(0), (6, 3))
FOLDER = tempfile.mkdtemp()


def check(kernel, outputs):
    """The kernel is that of its definition, in NumPy."""
    y = np.asarray(outputs, np.float64)
    np.testing.assert_allclose(kernel, y @ y.T / y.shape[1], rtol=1e-4, atol=1e-5)


def tracked(**options):
    """A training of two snapshots."""
    with nngp.KernelTracker(lambda w, x: jnp.tanh(x @ w), X, **options) as tracker:
        for step in range(2):
            tracker(step, (1 + step) * jnp.eye(3), loss=1.0 - step / 2)
    return tracker.history


def nothing():
    assert Path(nngp.__file__).is_relative_to(sys.prefix), "this is not the package that was installed"
    check(nngp.empirical_nngp_fn(lambda w, x: x @ w)(X, None, jnp.eye(3)), X)
    assert nngp.report.findings(tracked(run=f"{FOLDER}/run"))
    said = "nothing"
    try:
        nngp.write_report(f"{FOLDER}/run")
    except ModuleNotFoundError as error:
        said = str(error)
    assert "nngp-plugins[report]" in said, f"without Jinja2, write_report says {said}"


def equinox():
    import equinox as eqx

    model = eqx.nn.Linear(3, 4, key=jax.random.key(0))
    check(nngp.empirical_nngp_fn(nngp.from_equinox(model))(X, None, model), jax.vmap(model)(X))


def keras():
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    check(nngp.empirical_nngp_fn(nngp.from_keras(model))(X, None, model), model(X))


def lineax():
    operator = nngp.metrics.DenseGram(X @ X.T).as_lineax()
    np.testing.assert_allclose(operator.mv(jnp.ones(6)), X @ X.sum(axis=0), rtol=1e-4, atol=1e-4)


def store():
    kernel_fn = nngp.empirical_nngp_fn(lambda w, x: x @ w)
    nngp.write_kernel(kernel_fn, X, None, jnp.eye(3), f"{FOLDER}/k.zarr", batch_size=2, progress=False)
    check(nngp.open_kernel(f"{FOLDER}/k.zarr")[:, :], X)


def tensorboard():
    tracked(writers=[nngp.writers.TensorBoard(f"{FOLDER}/tensorboard")])
    assert any(Path(FOLDER).rglob("events.out.tfevents.*"))


def wandb():
    import wandb

    with wandb.init(mode="offline", dir=FOLDER, settings=wandb.Settings(silent=True)) as run:
        tracked(writers=[run])
        assert abs(run.summary["kernel/output/cka"] - 1) < 1e-5


def mlflow():
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(f"sqlite:///{FOLDER}/mlflow.db")
    with mlflow.start_run() as run:
        tracked(writers=[nngp.writers.MLflow()])
    assert mlflow.get_run(run.info.run_id).data.metrics["loss"] == 0.5


if __name__ == "__main__":
    globals()[sys.argv[1]]()
