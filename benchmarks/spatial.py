"""Outputs with spatial axes, kept on their diagonal or traced, against the formulations that XLA might like best."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from _device import jitted
from harness import Case, Contender, ratio
from jax import lax

einsum, dot, matmul = (partial(form, precision="highest") for form in (jnp.einsum, lax.dot_general, jnp.matmul))


def rows(y):
    return y.reshape(len(y), -1)


def places(y):
    return y.transpose(1, 2, 0, 3).reshape(-1, y.shape[0], y.shape[3])


def blocks(y, product):
    """A product of 200 rows at a time."""
    kernel = lax.map(product, y.reshape(-1, min(200, len(y)), *y.shape[1:]))
    return kernel.reshape(len(y), *kernel.shape[2:])


def diagonal_blocks(a, b):
    b = b.transpose(1, 2, 3, 0)
    return blocks(a, lambda block: dot(block, b, (((3,), (2,)), ((1, 2), (0, 1)))).transpose(2, 3, 0, 1))


DIAGONAL = {
    "einsum": partial(einsum, "nhwc,mhwc->nmhw"),
    "dot_general": lambda a, b: dot(a, b, (((3,), (3,)), ((1, 2), (1, 2)))).transpose(2, 3, 0, 1),
    "reshaped": lambda a, b: matmul(places(a), places(b).mT).transpose(1, 2, 0).reshape(len(a), len(b), *a.shape[1:3]),
    "row blocks": diagonal_blocks,
}
TRACE = {
    "einsum": partial(einsum, "nhwc,mhwc->nm"),
    "dot_general": lambda a, b: dot(a, b, (((1, 2, 3), (1, 2, 3)), ((), ()))),
    "reshaped": lambda a, b: matmul(rows(a), rows(b).T),
    "row blocks": lambda a, b: blocks(rows(a), partial(lambda b, block: matmul(block, b), rows(b).T)),
}


CALLS = 10


def repeated(kernel):
    """Some calls, for one may be over before the process is awake."""

    def run():
        for _ in range(CALLS):
            result = kernel().block_until_ready()
        return result

    return run


def outputs(shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, *shape), np.float32))


def floor(form, shape):
    @jitted
    def kernel(y1, y2):
        sums = form(y1, y2)
        return sums / (y1[0].size / sums[0, 0].size)

    y1, y2 = outputs(shape)
    return repeated(lambda: kernel(y1, y2))


def ours(axes, shape):
    import nngp_plugins as nngp

    y1, y2 = outputs(shape)
    kernel_fn = nngp.batch(nngp.empirical_nngp_fn(lambda params, x: x, **axes))
    return repeated(lambda: kernel_fn.contract(y1, y2))


def case(title, forms, **axes):
    contenders = {f"floor, {name}": Contender(partial(floor, form), "jitted") for name, form in forms.items()}
    contenders["ours"] = Contender(partial(ours, axes), "`nngp.batch(kernel_fn).contract(y1, y2)`")
    sizes, quick = {"shape": (1000, 8, 8, 64)}, {"shape": (40, 4, 4, 8)}
    title = f"{CALLS} kernels of outputs {{shape}}, {title}"
    return Case(title, contenders, [ratio("ours", "floor", at_most=1.05)], sizes, quick)


CASES = [
    case("`diagonal_axes=(1, 2)`", DIAGONAL, diagonal_axes=(1, 2)),
    case("`trace_axes=(1, 2, 3)`", TRACE, trace_axes=(1, 2, 3)),
]
