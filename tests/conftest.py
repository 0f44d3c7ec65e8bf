"""Settings that must be made before JAX starts, the precision of networks, and processes that tests can kill."""

import gc
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest


def platform_with(flags):
    """The platform that JAX starts on with these flags; none if XLA does not know one, as that ends the process."""
    start = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    env = {**os.environ, "XLA_FLAGS": flags}
    return subprocess.run(start, env=env, capture_output=True, text=True, check=False).stdout.strip()


# Most of the time of the tests goes into compiling small functions that need not run fast. On a CPU, the flags change
# how code is generated, and none changes what it computes: the first two generate it without optimisation and in one
# piece, and the last, which JAX 0.12 no longer has, halves the time of a compilation. On a GPU, XLA would time many
# ways to run each product. Workers of xdist inherit the flags, and share the memory of a GPU.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
QUICKER = "--xla_cpu_use_fusion_emitters=false"
TUNING = "--xla_gpu_autotune_level"
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
if QUICK not in (given := os.environ.get("XLA_FLAGS", "")) and TUNING not in given:
    choices = (f"{given} {QUICK} {QUICKER}", f"{given} {QUICK}", given)
    flags, platform = next((flags, found) for flags in choices if (found := platform_with(flags)) or flags is given)
    os.environ["XLA_FLAGS"] = flags if platform == "cpu" else f"{given} {TUNING}=0" if platform == "gpu" else given
os.environ["KERAS_BACKEND"] = "jax"
# What was compiled once is read from the disk, by other tests, by processes that they start, and the next time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.fixture
def full_precision():
    """Computes a test's own networks in float32, as accelerators round to TF32 by default.

    The products of the library say their precision themselves, and most tests run without this to see that they do.
    """
    import jax

    with jax.default_matmul_precision("highest"):
        yield


class Forks:
    """Starts processes in milliseconds, by forking a process that has imported JAX and not yet used it."""

    def __init__(self, folder, jobs):
        self._errors = (folder / "stderr.txt").open("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        # All processes compile the same functions, so they share one cache. It is not that of other tests: these are
        # killed, and what is half written would stay there.
        cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        script = Path(__file__).with_name("forks.py")
        self._process = subprocess.Popen(
            [sys.executable, script, jobs], text=True, env={**os.environ, **cache}, **pipes
        )
        assert self._process.stdout.readline() == "ready\n", self.errors()

    def start(self, path, **job):
        """Starts a job of the jobs.py in the test's folder, and returns the process id."""
        self._process.stdin.write(json.dumps({"path": str(path), **job}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self):
        """Waits for the process; returns its exit code, or minus the number of the signal that killed it."""
        return int(self._process.stdout.readline())

    def errors(self):
        self._errors.seek(0)
        return self._errors.read()

    def close(self):
        self._process.communicate()
        self._errors.close()


@pytest.fixture(scope="module")
def forks(request, tmp_path_factory):
    forks = Forks(tmp_path_factory.mktemp("forks"), request.path.with_name("jobs.py"))
    yield forks
    forks.close()


def pytest_collection_finish():
    """What is imported stays, and Python need not look for garbage in it, time and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by markers
def pytest_collection_modifyitems(items):
    """Of a test with the marker ``every(n)``, all but about each n-th set of parameters becomes exhaustive.

    ``NNGP_EVERY=3`` in the environment gives all tests with parameters the marker ``every(3)``. ``NNGP_SHARE=0/3`` runs
    the first of three shares of all tests.
    """
    counts, of_all = Counter(), int(os.environ.get("NNGP_EVERY", "1"))
    for item in items:
        every = item.get_closest_marker("every")
        if every or (of_all > 1 and "[" in item.nodeid):
            n, name = max([of_all, *(every.args if every else ())]), item.nodeid.partition("[")[0]
            # Staggered, so that the sets are not all of one kind where the innermost parameter has n values.
            if (counts[name] + counts[name] // n) % n:
                item.add_marker(pytest.mark.exhaustive)
            counts[name] += 1
    share, shares = map(int, os.environ.get("NNGP_SHARE", "0/1").split("/"))
    items[:] = items[share::shares]
