"""Modes of JAX that users set for a whole program, to find faults or to choose how it computes."""

from contextlib import contextmanager

import jax
import pytest

MODES = {
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_disable_jit": True,
    "jax_check_tracer_leaks": True,
    "jax_transfer_guard": "disallow",
    "jax_enable_x64": True,
    # A CPU does not have it, and refuses every product of matrices that does not say its precision itself.
    "jax_default_matmul_precision": "TF32_TF32_F32",
}


@contextmanager
def setting(name, value):
    """Makes a setting for all threads."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


in_every_mode = pytest.mark.parametrize("mode", MODES.items(), ids=MODES)
