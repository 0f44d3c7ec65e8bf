"""Inputs sharded over a mesh of eight devices: test_batch_devices.py runs these in a process that has them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nngp_plugins as nngp

random = np.random.default_rng(0)
X1, X2 = (random.standard_normal((n, 4, 8)).astype(np.float32) for n in (8, 16))


def explicit_mesh(**axes):
    # since JAX 0.9 these axis types are the default
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Explicit,) * len(axes))


def put(x, mesh, *spec):
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))


def f(params, x):
    return params * jnp.tanh(x)


def expected(formula, terms, x1=X1, x2=None, params=1.5):
    y1, y2 = (params * np.tanh(np.asarray(x, np.float64)) for x in (x1, x1 if x2 is None else x2))
    return np.einsum(formula, y1, y2) / terms


def assert_close(kernel, reference):
    assert kernel.shape == reference.shape
    np.testing.assert_allclose(np.asarray(kernel), reference, rtol=1e-5, atol=1e-5 * np.abs(reference).max())


AXES = [
    ({}, "nhc,mgc->nmhg", 8),
    ({"trace_axes": nngp.all_but_batch}, "nhc,mhc->nm", 32),
    ({"trace_axes": 1}, "nhc,mhd->nmcd", 4),
    ({"diagonal_axes": 1}, "nhc,mhc->nmh", 8),
    ({"trace_axes": (), "diagonal_axes": (2, 1)}, "nhc,mhc->nmhc", 1),
]
BATCH_AXES = [  # that ask for batches of one size
    ({"diagonal_axes": 0}, "nhc,ngc->nhg", 8),
    ({"trace_axes": (0, 2), "diagonal_axes": 1}, "nhc,nhc->h", 64),
]


turns = itertools.count()


def check(place1, place2):
    """Every third axes for ``x2=None`` and for another ``x2`` in one program, and the usual ones eager."""
    x1, x2, half = place1(X1), place2(X2), place2(X2[:8])
    cases = [(*of, x2, X2) for of in AXES] + [(*of, half, X2[:8]) for of in BATCH_AXES]
    usual, cases = cases[:1], cases[next(turns) % 3 :: 3]

    def both(axes, x1, x2):
        kernel_fn = nngp.empirical_nngp_fn(f, **axes)
        return kernel_fn(x1, None, 1.5), kernel_fn(x1, x2, 1.5)

    others = [other for *_, other, _ in cases]
    compiled = jax.jit(lambda x1, others: [both(of[0], x1, x2) for of, x2 in zip(cases, others, strict=True)])
    eager = [both(axes, x1, x2) for axes, *_ in usual]
    for found, (_, formula, terms, _, other) in zip([*compiled(x1, others), *eager], [*cases, *usual], strict=True):
        assert_close(found[0], expected(formula, terms))
        assert_close(found[1], expected(formula, terms, X1, other))


def on_eight_both_sharded_over_the_batch():
    mesh = explicit_mesh(n=8)
    check(lambda x: put(x, mesh, "n"), lambda x: put(x, mesh, "n"))


def on_eight_both_sharded_over_batch_and_features():
    mesh = explicit_mesh(n=4, d=2)
    check(lambda x: put(x, mesh, "n", None, "d"), lambda x: put(x, mesh, "n", None, "d"))


def on_eight_sharded_over_the_batch_by_both_mesh_axes():
    mesh = explicit_mesh(n=4, d=2)
    check(lambda x: put(x, mesh, ("n", "d")), lambda x: put(x, mesh, "d", "n"))


def on_eight_sharded_in_two_ways():
    mesh = explicit_mesh(n=4, d=2)
    check(lambda x: put(x, mesh, "n", None, "d"), lambda x: put(x, mesh, "d", None, "n"))


def on_eight_traced_axis_sharded_in_two_ways():
    mesh = explicit_mesh(n=4, d=2)
    check(lambda x: put(x, mesh, None, None, "n"), lambda x: put(x, mesh, None, None, "d"))


def on_eight_x2_replicated():
    mesh = explicit_mesh(n=8)
    check(lambda x: put(x, mesh, "n"), lambda x: put(x, mesh))


def on_eight_x2_unsharded():
    mesh = explicit_mesh(n=8)
    check(lambda x: put(x, mesh, "n"), jnp.asarray)


def on_eight_x1_unsharded():
    mesh = explicit_mesh(n=8)
    check(np.asarray, lambda x: put(x, mesh, "n"))


def on_eight_automatic_mesh():
    mesh = jax.make_mesh((8,), ("n",), axis_types=(AxisType.Auto,))
    check(lambda x: put(x, mesh, "n"), lambda x: put(x, mesh, "n"))


def on_eight_the_kernel_stays_sharded_as_the_first_outputs():
    mesh = explicit_mesh(n=8)
    kernel_fn = nngp.empirical_nngp_fn(f)
    for x2 in (None, put(X2, mesh, "n")):
        kernel = kernel_fn(put(X1, mesh, "n"), x2, 1.5)
        assert jax.typeof(kernel).sharding.spec == PartitionSpec("n", None, None, None)
    rows = nngp.empirical_nngp_fn(f, trace_axes=nngp.all_but_batch)(put(X1, mesh, "n"), None, 1.5)
    assert {shard.data.shape for shard in rows.addressable_shards} == {(1, 8)}


def on_eight_in_a_mesh_context():
    mesh = explicit_mesh(n=8)
    with jax.set_mesh(mesh):
        check(lambda x: put(x, mesh, "n"), np.asarray)


def on_eight_gradient_and_vmap():
    mesh = explicit_mesh(n=8)
    kernel_fn = nngp.empirical_nngp_fn(f, trace_axes=nngp.all_but_batch)

    def total(params, x1, x2):
        return kernel_fn(x1, x2, params).sum()

    sharded = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(1.5, put(X1, mesh, "n"), put(X2, mesh, "n"))
    for actual, reference in zip(sharded, jax.grad(total, argnums=(0, 1, 2))(1.5, X1, X2), strict=True):
        assert_close(actual, np.asarray(reference))
    over_params = jax.jit(jax.vmap(kernel_fn, in_axes=(None, None, 0)))
    kernels = over_params(put(X1, mesh, "n"), put(X2, mesh, "n"), jnp.asarray([1.5, 3.0]))
    assert_close(kernels, expected("nhc,mhc->nm", 32, X1, X2) * np.asarray([1, 4]).reshape(2, 1, 1))


def on_eight_cross_terms():
    mesh = explicit_mesh(n=4, d=2)
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: {"a": x, "b": x[:, 0]}, cross_terms=True)
    kernel = kernel_fn(put(X1, mesh, "n", None, "d"), put(X2, mesh, "n", None, "d"), None)
    assert_close(kernel["a"]["b"], np.einsum("nhc,mc->nmh", X1, X2[:, 0]) / 8)
    assert_close(kernel["b"]["a"], np.einsum("nc,mhc->nmh", X1[:, 0], X2) / 8)


def on_eight_half_precision():
    mesh = explicit_mesh(n=8)
    y = X1.astype(jnp.bfloat16)
    kernel = nngp.empirical_nngp_fn(lambda params, x: x)(put(y, mesh, "n"), None, None)
    assert kernel.dtype == jnp.float32
    assert_close(kernel, np.einsum("nhc,mgc->nmhg", y.astype(np.float64), y.astype(np.float64)) / 8)


def check_rng(x1, x2, same):
    def noisy(params, x, rng):
        return jax.random.uniform(rng) * f(params, x)

    key = jax.random.key(3)
    kernel_fn = nngp.empirical_nngp_fn(noisy, trace_axes=nngp.all_but_batch)
    scale = jax.random.uniform(key) * jax.random.uniform(key if same else jax.random.fold_in(key, 1))
    reference = float(scale) * expected("nhc,mhc->nm", 32, x1, x2)
    for run in (kernel_fn, jax.jit(kernel_fn)):
        assert_close(run(x1, x2, 1.5, rng=key), reference)


def on_eight_rng_for_equal_and_other_inputs():
    mesh = explicit_mesh(n=8)
    check_rng(put(X1, mesh, "n"), X1, same=True)
    check_rng(put(X1, mesh, "n"), put(X2[:8], mesh, "n"), same=False)


def on_eight_rng_for_inputs_sharded_in_two_ways():
    mesh = explicit_mesh(n=4, d=2)
    check_rng(put(X1, mesh, "n"), put(X1, mesh, "d"), same=True)
    check_rng(put(X1, mesh, "n"), put(X2[:8], mesh, None, None, "n"), same=False)
