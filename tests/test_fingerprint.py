"""Fingerprints: two things that differ never have one, and what they are of does not depend on the process."""

import dataclasses
import functools
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp

X, PARAMS = normal(0, 6, 5), normal(1, 5, 4)


@dataclasses.dataclass(frozen=True)
class Config:
    rate: float
    table: Any = None


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, y):
        return self.factor * y

    def __repr__(self):
        return f"Scale({self.factor!r})"

    def times(self, y):
        return self.factor * y


class Bare:
    def __call__(self, y):
        return y


def double(y):
    return 2 * y


def scale(y, by):
    return by * y


def write(path, **options):
    def f(params, x, act=None, config=None):
        y = x @ params
        return y if act is None else act(y)

    kernel_fn = nngp.empirical_nngp_fn(f)
    return nngp.write_kernel(kernel_fn, X, None, PARAMS, path, batch_size=3, progress=False, **options)


ALMOST = np.linspace(0, 1, 2000)
DIFFERENT = {
    "functions": (double, jnp.tanh),
    "partial, of arrays": (functools.partial(scale, by=ALMOST[:4]), functools.partial(scale, by=ALMOST[:4] + 1e-12)),
    "partial, of numbers": (functools.partial(scale, by=2), functools.partial(scale, by=3)),
    "partial, of functions": (functools.partial(scale, by=2), functools.partial(jnp.multiply, 2)),
    "methods": (Scale(2).times, Scale(3).times),
    "objects": (Scale(2), Scale(3)),
    "dataclasses": (Config(0.1), Config(0.2)),
    "dataclasses with long arrays": (Config(0.1, ALMOST), Config(0.1, np.where(np.arange(2000) == 900, 7, ALMOST))),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_a_kernel_of_another_argument_is_refused(tmp_path, pair):
    first, second = pair
    name = "config" if isinstance(first, Config) else "act"
    write(tmp_path / "k", **{name: first})
    assert write(tmp_path / "k", **{name: first}).complete
    with pytest.raises(ValueError, match=f"holds a kernel of other argument '{name}'; pass what it was begun with"):
        write(tmp_path / "k", **{name: second})


def test_functions_that_cannot_be_told_apart(tmp_path):
    def local(y):
        return y

    unknown = {
        "<lambda>": lambda y: y,
        "local": local,
        "partial": functools.partial(lambda y, by: y, by=2),
        "jit": jax.jit(lambda y: y),
        "Bare object": Bare(),
    }
    for act in unknown.values():
        with pytest.raises(
            TypeError, match=r"^argument 'act': .* can't be told from others of its kind, so that a store"
        ):
            write(tmp_path / "k", act=act)
        assert not (tmp_path / "k").exists()


def test_another_process_knows_them(tmp_path):
    """A kernel that a process has written with a partial function is that of the next process."""
    code = f"""
import functools, numpy as np, nngp_plugins as nngp

def f(params, x, act):
    return act(x @ params)

def scale(y, by):
    return by * y

store = nngp.write_kernel(nngp.empirical_nngp_fn(f), np.eye(4, dtype="float32"), None, np.ones((4, 3), "float32"),
    {str(tmp_path / "k")!r}, batch_size=2, progress=False, act=functools.partial(scale, by=2))
"""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], check=True)
