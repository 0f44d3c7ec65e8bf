"""Settings that must be made before JAX starts, and processes that tests can kill."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest


def starts_with(flags):
    """Whether JAX starts with these flags; XLA ends the process over one that it does not know."""
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(start, env=env, capture_output=True, check=False).returncode == 0


# Most of the time of the tests goes into compiling small functions that need not run fast. Both flags change how code
# is generated, and neither changes what it computes; the second, which JAX 0.12 no longer has, halves the time of a
# compilation. Workers of xdist inherit the flags.
QUICK, QUICKER = "--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false"
if QUICK not in (given := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{given} {QUICK}"
    if starts_with(f"{given} {QUICK} {QUICKER}"):
        os.environ["XLA_FLAGS"] += f" {QUICKER}"
os.environ["KERAS_BACKEND"] = "jax"


class Forks:
    """Starts processes in milliseconds, by forking a process that has imported JAX and not yet used it."""

    def __init__(self, folder, jobs):
        self._errors = (folder / "stderr.txt").open("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        # All processes compile the same functions, so they share one cache.
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


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by markers
def pytest_collection_modifyitems(items):
    """Of a test with the marker ``every(n)``, all but about each n-th set of parameters becomes exhaustive."""
    counts = Counter()
    for item in items:
        if every := item.get_closest_marker("every"):
            (n,), name = every.args, item.nodeid.partition("[")[0]
            # Staggered, so that the sets are not all of one kind where the innermost parameter has n values.
            if (counts[name] + counts[name] // n) % n:
                item.add_marker(pytest.mark.exhaustive)
            counts[name] += 1
