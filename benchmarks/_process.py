"""The processes that contenders run in, and the environment of the peer."""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

PEER = Path(__file__).resolve().parents[1] / ".venv-peer"
# These are the last versions that neural-tangents imports on. They need Python 3.11 or older.
PEER_PACKAGES = (
    "neural-tangents==0.6.5",
    "jax==0.4.30",
    "jaxlib==0.4.30",
    "numpy<2",
    "scipy<1.14",
    "dm-haiku==0.0.12",
)


class Failed(Exception):
    """A contender's process ended early."""


class Worker:
    """A contender's process. A line asks for a sample, a line of JSON answers."""

    def __init__(self, python: str, order: dict[str, Any], fresh: bool):
        script = Path(__file__).with_name("harness.py")
        self.command, self.fresh = [python, str(script), "--worker", json.dumps(order)], fresh
        self.process: subprocess.Popen[str] | None = None
        self.versions: dict[str, str] = {}

    def __enter__(self) -> "Worker":
        if not self.fresh:
            self.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the process, which sets itself up while others do."""
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True)

    def ready(self) -> None:
        """Waits until the contender is set up."""
        if not self.fresh:
            self.versions = self.answer()

    def run(self) -> dict[str, float]:
        """Measures once."""
        if self.fresh:
            self.start()
            self.versions = self.answer()
        with suppress(BrokenPipeError):
            print("run", file=self.process.stdin, flush=True)
        sample = self.answer()
        if self.fresh:
            self.stop()
        return sample

    def answer(self) -> Any:
        """The next answer of the process."""
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.process.wait()
        self.errors.seek(0)
        text = self.errors.read()
        sys.stderr.write(text)
        lines = re.findall(r"^[\w.]+(?:Error|Exception)\b.*", text, re.MULTILINE) or text.split("\n")
        raise Failed(f"{lines[-1]} (exit status {self.process.returncode})")

    def stop(self) -> None:
        """Ends the process, if there is one."""
        if self.process is not None:
            # It ends by itself when nothing more is asked, and then removes its files, which may take gigabytes.
            with suppress(subprocess.TimeoutExpired):
                self.process.communicate(timeout=60)
            self.process.kill()
            self.process.communicate()
            self.errors.close()
        self.process = None


def serve(order: str) -> None:
    """Sets a contender up in this process and measures it as often as it is asked to."""
    # Only answers go to the real stdout; the text that libraries print goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asked = json.loads(order)
    case = import_module(asked["name"]).CASES[asked["case"]]
    contender = case.contenders[asked["contender"]]
    run = contender.setup(**(case.quick if asked["quick"] else case.sizes))
    if contender.warm and not contender.fresh:
        run()
    print(json.dumps(versions()), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(measured(run)), file=answers, flush=True)


def measured(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds and bytes of one run, and a number that tells its result."""
    # This resets the peak. If the system refuses it, the peak counts from the start of the process.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    peak = memory("VmHWM")
    sample = {"seconds": seconds, "growth": peak - before, "peak": peak}
    if isinstance(result, dict):
        return sample | result
    if result is not None:
        import numpy as np

        sample["result"] = float(np.abs(np.asarray(result).ravel()[::101]).mean())
    return sample


def memory(what: str) -> int:
    """Resident bytes of this process: now (``VmRSS``) or at the peak (``VmHWM``; the only one other systems tell)."""
    with suppress(OSError), open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(what))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def versions() -> dict[str, str]:
    """Of Python and of the libraries that matter for speed."""
    found = {"Python": platform.python_version()}
    for package in ("jax", "numpy", "dm-haiku", "neural-tangents"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


@cache
def peer_python(say: Callable[[str], None]) -> tuple[str, str]:
    """The peer's Python, its environment built the first time; or nothing, and why."""
    python, ready = PEER / "bin" / "python", PEER / ".ready"
    if ready.exists() and ready.read_text() == repr(PEER_PACKAGES):
        return str(python), ""
    base = next(filter(is_python_3_11, candidates()), None)
    if base is None:
        return "", "the peer needs Python 3.11, which is not here"
    say(f"building {PEER.name} for neural-tangents, which takes minutes")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEER_PACKAGES]
    for command in ([base, "-m", "venv", "--clear", PEER], pip):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr or done.stdout).strip().split("\n")[-1]
            return "", f"the environment of the peer could not be built: {last}"
    ready.write_text(repr(PEER_PACKAGES))
    return str(python), ""


def candidates() -> list[str]:
    """Where Python 3.11 may be."""
    return [sys.executable, "python3.11", *map(str, Path.home().glob(".pyenv/versions/3.11.*/bin/python"))]


def is_python_3_11(python: str) -> bool:
    """Whether that starts, as this version."""
    with suppress(OSError):
        say = "import sys, venv, ensurepip; print(sys.version_info[:2] == (3, 11))"
        return subprocess.run([python, "-c", say], capture_output=True, text=True).stdout.strip() == "True"
    return False
