"""A small kernel on the disk, and processes that write one and can be killed."""

import json
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp

X1, X2, PARAMS = normal(0, 10, 5), normal(1, 7, 5), normal(2, 5, 6)


def network(params, x):
    return jnp.tanh(x @ params)


def files_of(path):
    """The bytes of every file but the lock."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


@dataclass(frozen=True)
class Small:
    """A kernel of 10 examples in 3 × 3 tiles; what a test names is other."""

    path: Path
    x1 = X1
    x2 = X2
    params = PARAMS
    network = staticmethod(network)
    tiles = 9

    def write(self, f=network, x1=X1, x2=None, params=PARAMS, path=None, *, kernel_fn=None, **options):
        kernel_fn = kernel_fn or nngp.empirical_nngp_fn(f)
        options = {"batch_size": 3, "tile_size": 4, "progress": False, **options}
        return nngp.write_kernel(kernel_fn, x1, x2, params, path or self.path, **options)

    def open(self):
        return nngp.open_kernel(self.path)

    def files(self):
        return files_of(self.path)

    def is_like(self, finished):
        """Whether all files are those of an uninterrupted run; the ledger may list tiles in another order."""
        files, finished = self.files(), dict(finished)
        listed, expected = (set(found.pop("ledger.jsonl").splitlines()) for found in (files, finished))
        return files == finished and listed == expected

    def keep(self, count):
        """Leaves what a writer that was killed after some tiles leaves."""
        lines = self.ledger.read_bytes().splitlines(keepends=True)
        self.ledger.write_bytes(b"".join(lines[:count]))
        for line in lines[count:]:
            self.tile(*json.loads(line)[1][1:]).unlink()

    def tile(self, *chunk, name="kernel"):
        return self.path.joinpath(name, "c", *map(str, chunk))

    @property
    def ledger(self):
        return self.path / "ledger.jsonl"

    @property
    def job(self):
        return self.path / "job.json"


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """One for all tests of the folder."""
    from conftest import Forks  # not above, as each.py imports this file where conftest is its name

    forks = Forks(tmp_path_factory.mktemp("forks"), Path(__file__).with_name("jobs.py"))
    yield forks
    forks.close()


@pytest.fixture(scope="session", name="files_of")
def _files_of():
    return files_of


@pytest.fixture
def small(tmp_path):
    return Small(tmp_path / "k.zarr")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The files of the small kernel, written without interruption."""
    small = Small(tmp_path_factory.mktemp("finished") / "k.zarr")
    small.write()
    return small.files()


@pytest.fixture
def written(small, finished):
    """The small kernel, finished."""
    for name, content in finished.items():
        (small.path / name).parent.mkdir(parents=True, exist_ok=True)
        (small.path / name).write_bytes(content)
    (small.path / ".lock").touch()
    return small
