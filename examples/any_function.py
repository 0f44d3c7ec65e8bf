"""No framework: kernels of a plain f(params, x), for all outputs, for each output, and against the closed form."""

import jax
import jax.numpy as jnp

import nngp_plugins as nngp


def f(params, x):
    """One wide ReLU layer and a linear read-out; every entry of the dict becomes a kernel."""
    hidden = jax.nn.relu(x @ params["w"])
    return {"hidden": hidden, "out": hidden @ params["v"] / jnp.sqrt(params["v"].shape[0])}


def arc_cosine(x):
    """The limit of the hidden layer's kernel at infinite width (Cho & Saul 2009), for inputs of unit norm."""
    theta = jnp.arccos(jnp.clip(x @ x.T, -1, 1))
    return (jnp.sin(theta) + (jnp.pi - theta) * jnp.cos(theta)) / (2 * jnp.pi)


def main(width=20_000):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (6, 10))
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    params = {"w": jax.random.normal(keys[1], (10, width)), "v": jax.random.normal(keys[2], (width, 3))}

    kernels = nngp.empirical_nngp_fn(f)(x, None, params)
    error = jnp.abs(kernels["hidden"] - arc_cosine(x)).max()
    print(f"hidden kernel {kernels['hidden'].shape}, {error:.4f} from the arc-cosine kernel at width {width:,}")

    per_output = nngp.empirical_nngp_fn(f, trace_axes=(), diagonal_axes=-1)(x, None, params)["out"]
    print(f"one kernel for each of three outputs: {per_output.shape}")

    test_x = x[:2]
    cross = nngp.empirical_nngp_fn(f)(test_x, x, params)["out"]
    print(f"test against training examples: {cross.shape}")

    gram = nngp.metrics.DenseGram(kernels["hidden"])
    print(f"effective rank {nngp.metrics.effective_rank(gram):.2f} of {gram.n}")
    return kernels, error


if __name__ == "__main__":
    main()
