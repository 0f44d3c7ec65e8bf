"""Flax Linen: track the kernel of every layer in a TrainState loop. The three lines for it are numbered."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import nngp_plugins as nngp


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for width in (128, 128):
            x = nn.relu(nn.Dense(width)(x))
            x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(10)(x)


def main(steps=300, seed=0):
    x, y = load_digits(return_X_y=True)
    x = jnp.asarray((x - x.mean()) / x.std(), jnp.float32)
    train_x, train_y, probe_x, probe_y = x[256:], y[256:], x[:256], y[:256]

    model = MLP()
    params = model.init(jax.random.key(seed), train_x[:1])["params"]
    train_state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-3))

    @jax.jit
    def train_step(train_state, x, y, key):
        def loss_fn(params):
            logits = train_state.apply_fn({"params": params}, x, train=True, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, grads = jax.value_and_grad(loss_fn)(train_state.params)
        return train_state.apply_gradients(grads=grads), loss

    f = nngp.from_linen(model, train=False)  # 1: the model as a function
    tracker = nngp.KernelTracker(f.layers("Dense_*"), probe_x, targets=probe_y)  # 2: which layers, on which inputs
    rng = np.random.default_rng(seed)
    for step in range(steps):
        batch = rng.choice(len(train_x), 128)
        key = jax.random.fold_in(jax.random.key(seed), step)
        train_state, loss = train_step(train_state, train_x[batch], train_y[batch], key)
        tracker(step, train_state.params, loss=loss)  # 3: call it at every step; it measures on its schedule
    tracker.close()

    print(tracker.history)
    print(tracker.history.to_pandas().loc[steps - 1, ["loss", "cka", "relative_change", "effective_rank"]].round(3))
    return tracker.history


if __name__ == "__main__":
    main()
