"""Modes of JAX that users set for a whole program, to find faults or to choose how it computes."""

from contextlib import contextmanager

import jax
import pytest

MODES = {
    # These refuse something, and each refuses it beside the others, too.
    "refusals": {
        "jax_numpy_rank_promotion": "raise",
        "jax_numpy_dtype_promotion": "strict",
        "jax_debug_nans": True,
        "jax_debug_infs": True,
        "jax_transfer_guard": "disallow",
    },
    "jax_disable_jit": {"jax_disable_jit": True},
    "jax_check_tracer_leaks": {"jax_check_tracer_leaks": True},
    "jax_enable_x64": {"jax_enable_x64": True},
    # A CPU does not have it, and refuses every product of matrices that does not say its precision itself.
    "jax_default_matmul_precision": {"jax_default_matmul_precision": "TF32_TF32_F32"},
}


@contextmanager
def setting(**values):
    """Makes settings for all threads."""
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


# Without jit, each operation of each shape compiles by itself; the check of leaks looks at all of Python's objects.
SLOW = {"jax_disable_jit", "jax_check_tracer_leaks"}
in_every_mode = pytest.mark.parametrize(
    "mode",
    [
        pytest.param(values, id=name, marks=pytest.mark.exhaustive if name in SLOW else ())
        for name, values in MODES.items()
    ],
)
