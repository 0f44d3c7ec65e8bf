"""Calls that do not belong to the kernel that is there."""

import os
import re
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_plugins as nngp

pytestmark = pytest.mark.once


def f(params, x, **kwargs):
    return jnp.tanh(jnp.asarray(x, float) @ params)


def kernel_fn(f=f, **options):
    return nngp.empirical_nngp_fn(f, **options)


KEYS = {"rng": jax.random.key(0), "state": {"mean": np.zeros(3)}, "train": True, "precision": "low", "dtype": 1}
BEGUN = {"kernel_fn": kernel_fn(), "x2": None, **KEYS}
X = np.random.default_rng(9).standard_normal((10, 5)).astype(np.float32)
DIFFERENT = {
    "params": ({"params": np.ones((5, 6), np.float32)}, "params"),
    "dtype of params": ({"params": np.ones((5, 6), np.float16)}, "params"),
    "x1": ({"x1": X}, "x1"),
    "x2": ({"x2": X}, "x2"),
    "the rng": ({"rng": jax.random.key(1)}, "argument 'rng'"),
    "no rng": ({"rng": None}, "argument 'rng'"),
    "the state": ({"state": {"mean": np.ones(3)}}, "argument 'state'"),
    "names in the state": ({"state": {"means": np.zeros(3)}}, "argument 'state'"),
    "a flag": ({"train": False}, "argument 'train'"),
    "one like a setting": ({"precision": "high"}, "argument 'precision'"),
    "two like settings": ({"precision": 1, "dtype": 2}, "argument 'precision', argument 'dtype'"),
    "another argument": ({"more": 1}, "argument 'more'"),
    "tile_size": ({"tile_size": 5}, "tile_size (stored 4, asked 5)"),
    "no tile_size": ({"tile_size": None}, "tile_size (stored 4, asked 10)"),
    "batch_size": ({"batch_size": 2}, "batch_size (stored 3, asked 2)"),
    "all at once": ({"batch_size": 0}, "batch_size (stored 3, asked 10)"),
    "precision": (
        {"kernel_fn": kernel_fn(precision="default")},
        "precision (stored 'highest', asked 'default')",
    ),
    "diagonal_axes": (
        {"kernel_fn": kernel_fn(diagonal_axes=0)},
        "diagonal_axes (stored \"{'kernel': ()}\", asked \"{'kernel': (0,)}\")",
    ),
    "trace_axes": (
        {"kernel_fn": kernel_fn(trace_axes=())},
        "trace_axes (stored \"{'kernel': (1,)}\", asked \"{'kernel': ()}\")",
    ),
    "cross_terms": ({"kernel_fn": kernel_fn(cross_terms=True)}, "cross_terms (stored 'False', asked 'True')"),
    "names of outputs": (
        {"kernel_fn": kernel_fn(lambda *args, **kwargs: {"a": f(*args)})},
        "outputs (stored \"{'kernel': (6,)}\", asked \"{'a': (6,)}\")",
    ),
    "shapes of outputs": (
        {"kernel_fn": kernel_fn(lambda *args, **kwargs: f(*args)[:, :3])},
        "outputs (stored \"{'kernel': (6,)}\", asked \"{'kernel': (3,)}\")",
    ),
}


@pytest.fixture
def begun(small):
    """A kernel of one tile of nine."""
    small.write(**BEGUN)
    small.keep(1)
    return small


@pytest.mark.parametrize(("other", "said"), DIFFERENT.values(), ids=DIFFERENT)
def test_the_message_names_what_differs(begun, other, said):
    files = begun.files()
    message = f"path={str(begun.path)!r} holds a kernel of other {said}; pass what it was begun with, or another path."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        begun.write(**{**BEGUN, **other})
    assert begun.files() == files
    assert begun.write(**BEGUN).complete


def test_other_dtypes(begun):
    with (
        jax.enable_x64(True),
        pytest.raises(ValueError, match=r"of other dtype \(stored .*float32.*, asked .*float64.*\);"),
    ):
        begun.write(**BEGUN)
    begun.write(**BEGUN)


def test_other_software(begun):
    begun.job.write_text(begun.job.read_text().replace('"jax 0.', '"jax 0.0.'))
    with pytest.raises(ValueError, match=r"of other software \(stored 'jax 0\.0\..* on .*', asked 'jax "):
        begun.write(**BEGUN)


def test_all_that_differs_is_named(begun):
    message = r"of other x1, params, tile_size \(stored 4, asked 3\), batch_size \(stored 3, asked 5\); pass what"
    with pytest.raises(ValueError, match=message):
        begun.write(**{**BEGUN, "x1": X, "params": np.ones((5, 6)), "tile_size": 3, "batch_size": 5})


def test_a_finished_kernel_is_compared_too(written):
    with pytest.raises(ValueError, match=r"holds a kernel of other x1; pass"):
        written.write(x1=X)


# folders


def test_resume_false_refuses_what_exists(written, tmp_path):
    files = written.files()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for path in (written.path, tmp_path / "empty", tmp_path / "file"):
        with pytest.raises(FileExistsError, match=rf"^path='{path}' exists; name another folder, or resume=True to go"):
            written.write(path=path, resume=False)
    assert written.files() == files
    assert written.write(path=tmp_path / "new.zarr", resume=False).complete


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "zarr.json", "kernel/zarr.json"])
def test_a_folder_of_something_else(small, name):
    (small.path / name).parent.mkdir(parents=True)
    (small.path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"^path='{small.path}' exists and holds no kernel; name another folder"):
        small.write()
    assert small.files() == {name: b"mine"}


def test_a_file_in_its_place(small):
    small.path.write_text("mine")
    with pytest.raises(FileExistsError, match=rf"^path='{small.path}' exists and holds no kernel; name another folder"):
        small.write()
    assert small.path.read_text() == "mine"
    with pytest.raises(FileNotFoundError, match=r"holds no kernel"):
        small.open()


def test_a_second_writer(small, forks):
    pid = forks.start(small.path, kind="symmetric")
    try:
        while not small.job.exists():
            time.sleep(0.001)
        os.kill(pid, signal.SIGSTOP)
        files = small.files()
        with pytest.raises(BlockingIOError, match=rf"^path='{small.path}' is in use: another process"):
            small.write()
        assert small.files() == files
    finally:
        os.kill(pid, signal.SIGCONT)
    assert forks.wait() == 0, forks.errors()
    assert small.open().complete
