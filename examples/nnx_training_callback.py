"""Flax NNX: track the kernel of every layer in an nnx.Optimizer loop. The tracker takes the live model."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import nngp_plugins as nngp


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dense = nnx.Linear(8 * 8 * 32, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.relu(self.dense(x.reshape(x.shape[0], -1)))
        return self.head(x)


@nnx.jit
def train_step(model, optimizer, x, y):
    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def main(steps=150, seed=0):
    x, y = load_digits(return_X_y=True)
    x = jnp.asarray((x - x.mean()) / x.std(), jnp.float32).reshape(-1, 8, 8, 1)
    train_x, train_y, probe_x, probe_y = x[256:], y[256:], x[:256], y[:256]

    model = CNN(nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    eval_model = nnx.clone(model)
    eval_model.eval()  # from_nnx keeps this mode: BatchNorm uses its running averages on the probe
    f = nngp.from_nnx(eval_model)

    rng = np.random.default_rng(seed)
    with nngp.KernelTracker(f.layers("conv", "dense", "head"), probe_x, targets=probe_y) as tracker:
        for step in range(steps):
            batch = rng.choice(len(train_x), 128)
            loss = train_step(model, optimizer, train_x[batch], train_y[batch])
            tracker(step, model, loss=loss)

    print(tracker.history)
    print(tracker.history.to_pandas().loc[steps - 1, ["loss", "cka", "relative_change", "effective_rank"]].round(3))
    return tracker.history


if __name__ == "__main__":
    main()
