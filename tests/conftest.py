"""Settings that must be made before JAX starts, and processes that tests can kill."""

import json
import mmap
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest


def is_known_to_xla(flag):
    """Whether this jaxlib has the flag; XLA ends the process over one that it does not know."""
    for path in Path(find_spec("jaxlib").origin).parent.glob("*.so"):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
            if library.find(flag.encode()) >= 0:
                return True
    return False


# Most of the time of the tests goes into compiling small functions that need not run fast. Both flags change how code
# is generated, and neither changes what it computes; the second halves the time of a compilation.
FLAGS = {"xla_backend_optimization_level": "0", "xla_cpu_use_fusion_emitters": "false"}
known = [f"--{flag}={value}" for flag, value in FLAGS.items() if is_known_to_xla(flag)]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *known])
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
