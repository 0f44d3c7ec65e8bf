"""Fingerprints: two things that differ never have one, and what they are of does not depend on the process."""

import dataclasses
import functools
import importlib
import json
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


def of_inputs(params, x, act=None, config=None):
    y = x @ params
    return y if act is None else act(y)


KERNEL_FN = nngp.empirical_nngp_fn(of_inputs)


def write(path, **options):
    return nngp.write_kernel(KERNEL_FN, X, None, PARAMS, path, batch_size=6, progress=False, **options)


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


FACTOR = 2


def times(factor):
    return lambda y: factor * y


READS_FACTOR, TIMES_2 = lambda y: FACTOR * y, times(2)
LAMBDAS = [
    lambda y: y,
    lambda y: 2 * y,
    lambda y: 3 * y,
    READS_FACTOR,
    lambda y, by=2: by * y,
    lambda y, by=3: by * y,
    lambda y: jnp.sin(y),
    lambda y: jnp.cos(y),
    lambda y: (lambda z: z + 1)(y),
    lambda y: (lambda z: z + 2)(y),
    lambda y: np.eye(2)[0, 0] * y,
    TIMES_2,
    times(3),
    times(ALMOST[:1]),
    times(ALMOST[1:2]),
    jax.jit(lambda y: 4 * y),
    jax.jit(lambda y: 5 * y),
    functools.partial(lambda y, by: by * y, by=2),
]


def test_lambdas_count_by_their_code(tmp_path, monkeypatch):
    """Each is another one, also a lambda that reads another number from outside; each is that of before."""
    stores = iter(range(100))

    def said_of(act):
        path = tmp_path / str(next(stores))
        write(path, act=act)
        return json.loads((path / "job.json").read_text())["made_of"]["argument 'act'"]

    found = [said_of(act) for act in LAMBDAS]
    assert len(set(found)) == len(LAMBDAS)
    assert said_of(times(2)) == found[LAMBDAS.index(TIMES_2)]
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert said_of(READS_FACTOR) != found[LAMBDAS.index(READS_FACTOR)]


def test_a_kernel_of_another_lambda_is_refused(tmp_path):
    assert write(tmp_path / "k", act=LAMBDAS[1]).complete
    assert write(tmp_path / "k", act=LAMBDAS[1]).complete
    with pytest.raises(ValueError, match="holds a kernel of other argument 'act'; pass what it was begun with"):
        write(tmp_path / "k", act=LAMBDAS[2])


BARE = Bare()


def recursive():
    def act(y, depth=2):
        return act(y, depth - 1) if depth else y

    return act


@pytest.mark.parametrize(
    "act",
    [BARE, lambda y, bare=BARE: bare(y), recursive(), BARE.__call__],
    ids=["object", "default", "itself", "method"],
)
def test_functions_that_cannot_be_told_apart(tmp_path, act):
    with pytest.raises(TypeError, match=r"^argument 'act': .*, so that a stored kernel could be that of another one"):
        write(tmp_path / "k", act=act)
    assert not (tmp_path / "k").exists()


def test_another_process_knows_them(tmp_path, monkeypatch):
    """A kernel that a process has written with a partial function is that of the next process."""
    code = f"""
import functools, numpy as np, nngp_plugins as nngp

FACTOR = np.float32(2)

def f(params, x, act, more):
    return more(act(x @ params))

def scale(y, by):
    return by * y

store = nngp.write_kernel(nngp.empirical_nngp_fn(f), np.eye(4, dtype="float32"), None, np.ones((4, 3), "float32"),
    {str(tmp_path / "k")!r}, batch_size=2, progress=False, act=functools.partial(scale, by=2),
    more=lambda y: FACTOR * y)
"""
    (tmp_path / "writes_a_kernel.py").write_text(code)
    subprocess.run([sys.executable, "-c", "import writes_a_kernel"], check=True, cwd=tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module("writes_a_kernel").store.complete
