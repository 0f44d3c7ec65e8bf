"""Haiku: does a larger learning rate move the kernel further? One tracked run for each rate, compared."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import nngp_plugins as nngp


def net(x):
    x = jax.nn.relu(hk.Linear(256, name="hidden")(x))
    return hk.Linear(10, name="head")(x)


def run(learning_rate, steps=200, seed=0):
    x, y = load_digits(return_X_y=True)
    x = jnp.asarray((x - x.mean()) / x.std(), jnp.float32)
    train_x, train_y, probe_x = x[256:], y[256:], x[:256]

    f = nngp.from_haiku(hk.transform(net))
    params, _ = f.init(jax.random.key(seed), train_x[:1])
    optimizer = optax.sgd(learning_rate)
    opt_state = optimizer.init(params)

    @jax.jit
    def train_step(params, opt_state, x, y):
        def loss_fn(params):
            return optax.softmax_cross_entropy_with_integer_labels(f(params, x), y).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    rng = np.random.default_rng(seed)
    with nngp.KernelTracker(f.layers("hidden"), probe_x, schedule=nngp.every(20)) as tracker:
        tracker(0, params)
        for step in range(1, steps + 1):
            batch = rng.choice(len(train_x), 128)
            params, opt_state, loss = train_step(params, opt_state, train_x[batch], train_y[batch])
            tracker(step, params, loss=loss)
    return tracker.history


def main(learning_rates=(0.003, 0.03, 0.3)):
    histories = {rate: run(rate) for rate in learning_rates}
    for rate, history in histories.items():
        cka, loss = history.metric("cka")[-1, 0], history.scalar("loss")[-1]
        print(f"learning rate {rate:<6} loss {loss:.3f}   1 - CKA of the hidden layer to init {1 - cka:.2e}")
    return histories


if __name__ == "__main__":
    main()
