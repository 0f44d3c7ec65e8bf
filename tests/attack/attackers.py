"""The attackers. Each attacks once, and says what became of it: ``survived``, or ``noticed`` with a message."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import victims

TIMEOUT = 60  # seconds after which a job hangs


class Lost(AssertionError):
    """A promise that was broken: a loss, a wrong number, an end of training, or a hang."""


@dataclass
class Target:
    """A victim, and the numbers that it has if nothing attacks it.

    Attributes:
        kind: ``tracker``, ``store`` or ``features``.
        whole: a folder that a job wrote without an attack.
        numbers: what that folder gives.
        seconds: how long a job takes.
    """

    kind: str
    whole: Path
    numbers: dict
    seconds: float

    def files(self):
        """The files of a finished job, by their paths in the folder."""
        return sorted(str(file.relative_to(self.whole)) for file in self.whole.rglob("*") if file.is_file())

    def check_partial(self, path, *, may_refuse=False):
        """What is there must be right; returns whether it lacks kernels that the disk refused until the job ended."""
        found, refused = victims.partial_numbers(path, self.kind)
        if refused and not may_refuse:
            raise Lost(f"{refused[:3]} of {len(refused)} are lost, and no disk refused them")
        if name := victims.wrong(found, self.numbers):
            raise Lost(f"{name!r} is wrong after the attack")
        return bool(refused)

    def check_whole(self, path, *, may_refuse=False):
        """All must be there, and right."""
        found, refused = victims.partial_numbers(path, self.kind)
        if missing := sorted(self.numbers.keys() - found.keys() - set(refused if may_refuse else ())):
            raise Lost(f"{missing[:3]} of {len(missing)} are lost")
        if name := victims.wrong(found, self.numbers, may_lack=may_refuse):
            raise Lost(f"{name!r} is wrong in the end")


@contextmanager
def bounded(forks, pid):
    """Kills a job that hangs."""
    timer = threading.Timer(TIMEOUT, os.kill, (pid, signal.SIGKILL))
    timer.start()
    start = time.monotonic()
    yield
    timer.cancel()
    if time.monotonic() - start > TIMEOUT:
        raise Lost("the job hangs")


def finish(forks, target, path, *, may_refuse=False):
    """The same job again, without an attack: it ends, and all is as if there had been none.

    What the disk refused until the first job ended may be lacking, if an error says so.
    """
    pid = forks.start(path, kind=target.kind)
    with bounded(forks, pid):
        code = forks.wait()
    if code:
        raise Lost(f"the next job fails: {forks.errors()[-500:]}")
    target.check_whole(path, may_refuse=may_refuse)


def kill(forks, target, path, dice):
    """Some signals at random moments, each at another process that goes on in the same folder."""
    killed = 0
    for _ in range(dice.randint(1, 4)):
        pid = forks.start(path, kind=target.kind)
        sent = dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP])
        time.sleep(dice.uniform(0, target.seconds))
        with bounded(forks, pid):
            try:
                os.kill(pid, sent)
                if sent == signal.SIGSTOP:  # as a laptop that sleeps
                    time.sleep(0.05)
                    os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
            killed += forks.wait() != 0
        target.check_partial(path)
    finish(forks, target, path)
    return "survived" if killed else "not fired"


FAULTS = {
    "open": ("openat", ["EDQUOT", "EIO", "EMFILE"]),
    "write": ("write,pwrite64,writev,pwritev", ["ENOSPC", "EIO", "EDQUOT"]),
    "sync": ("fsync,fdatasync", ["EIO", "ENOSPC"]),
    "rename": ("rename,renameat,renameat2", ["EIO", "EACCES"]),
    "make folder": ("mkdir,mkdirat", ["ENOSPC", "EROFS"]),
    "cut": ("ftruncate", ["EIO", "EFBIG"]),
    "lock": ("flock", ["ENOLCK", "EIO"]),
    "close": ("close", ["EIO", "ENOSPC"]),
}


def faults(forks, target, paths, dice, cache):
    """One kind of call fails in several jobs, each for a file or a folder of its own; returns what became of each."""
    name = dice.choice(sorted(FAULTS))
    calls, errors = FAULTS[name]
    files = target.files()
    folders = sorted({str(Path(file).parent) for file in files} - {"."})
    spots = []
    for path in paths:
        spot = path / dice.choice(folders if name == "make folder" else files + folders)
        spots += [spot, spot.with_name(f"{spot.name}.new"), spot.with_name(f"{spot.name}.__lock")]
    when = dice.choice(["", "", ":when=1", ":when=2+", ":when=1..2"])
    inject = f"inject={calls}:error={dice.choice(errors)}{when}"
    only = [part for spot in spots for part in ("-P", str(spot))]
    log = cache / "calls.txt"
    strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", str(log), "-e", f"trace={calls}", "-e", inject, *only]
    script = [sys.executable, "-m", "attack.victims", target.kind, *map(str, paths)]
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    try:
        done = subprocess.run(
            [*strace, *script], capture_output=True, text=True, timeout=TIMEOUT + 10 * len(paths),
            env={**os.environ, **compiled}, cwd=Path(__file__).parents[1], check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Lost(f"jobs hang where {inject} in {spots[::3]}") from None
    if done.returncode:
        raise Lost(f"{inject} in {spots[::3]} ended the process: {done.stderr[-800:]}")
    injected = [line for line in log.read_text().splitlines() if "INJECTED" in line]
    fates = []
    for path, line in zip(paths, done.stdout.splitlines(), strict=True):
        how, message = json.loads(line)
        where = f"{inject} in {path}"
        if how == "failed" and str(path) not in message:
            raise Lost(f"{where}: the message names no file: {message}")
        if how == "failed" and target.kind == "tracker" and (path / "run" / "metrics.jsonl").exists():
            raise Lost(f"{where}: training ended: {message}")
        lacks = target.check_partial(path, may_refuse=True)
        finish(forks, target, path, may_refuse=True)
        fired = any(str(path) in line for line in injected) or (injected and "<" not in injected[0])
        if lacks and not fired:
            raise Lost(f"{where}: kernels are lost, and no call failed")
        fates.append("noticed" if how == "failed" or lacks else "survived" if fired else "not fired")
    return fates


def full_disk(forks, target, path, dice):
    """A disk that fills up or becomes read-only while a job writes, and is well again later."""
    pages = dice.randint(2, 40)
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(path)]
    subprocess.run([*mount, "-o", f"size={4096 * pages}"], check=True)
    try:
        pid = forks.start(path, kind=target.kind)
        if dice.random() < 0.4:
            time.sleep(dice.uniform(0, target.seconds))
            subprocess.run([*mount, "-o", "remount,ro"], check=False, capture_output=True)
        with bounded(forks, pid):
            code = forks.wait()
        if code and target.kind == "tracker" and (path / "run" / "metrics.jsonl").exists():
            raise Lost(f"training ended: {forks.errors()[-500:]}")
        subprocess.run([*mount, "-o", "remount,rw,size=16m"], check=True)
        lacks = target.check_partial(path, may_refuse=True)
        finish(forks, target, path, may_refuse=True)
        return "noticed" if code or lacks else "survived"
    finally:
        subprocess.run(["umount", str(path)], check=True)


def flip(file, dice, other):
    content = bytearray(file.read_bytes())
    if content:
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        file.write_bytes(content)


def cut(file, dice, other):
    file.write_bytes(file.read_bytes()[: dice.randrange(file.stat().st_size + 1)])


def lengthen(file, dice, other):
    with file.open("ab") as end:
        end.write(dice.randbytes(dice.randint(1, 600)))


def swap(file, dice, other):
    between = file.with_name("between")
    file.rename(between)
    other.rename(file)
    between.rename(other)


def copy(file, dice, other):
    shutil.copy(other, file)


def fifo(file, dice, other):
    file.unlink()
    os.mkfifo(file)


def link(file, dice, other):
    file.unlink()
    file.symlink_to(other)


def folder(file, dice, other):
    file.unlink()
    file.mkdir()


def delete(file, dice, other):
    file.unlink()


def zero(file, dice, other):
    file.write_bytes(b"\0" * file.stat().st_size)


DAMAGES = [flip, flip, flip, cut, lengthen, swap, copy, fifo, link, folder, delete, zero]


def named(message, root, file):
    """Whether a message names a file, or the folder of its array; ``run/kernels`` alone would be too little."""
    folders = [folder for folder in file.parents if len(folder.parts) > 2]
    # Such as "'…/run' holds no metrics.jsonl".
    in_folder = repr(str(root / file.parent)) in message and f" {file.name}" in message
    return in_folder or any(str(root / name) in message for name in (file, *folders))


def damage(forks, target, path, dice):
    """A finished folder is damaged, and read: an error names a file, or all numbers are right."""
    victims.fresh(path, target.whole)
    files = [name for name in target.files() if not name.endswith(".lock")]
    one, other = dice.sample(files, 2)
    how = dice.choice(DAMAGES)
    how(path / one, dice, path / other)
    what = f"{how.__name__} of {one} ({other})"
    try:
        with alarm():
            found = victims.numbers(path, target.kind)
    except (ValueError, OSError) as error:
        if not any(named(str(error), path, Path(file)) for file in (one, other)):
            raise Lost(f"{what}: the message names no file: {type(error).__name__}: {error}") from error
        return "noticed"
    except Exception as error:
        raise Lost(f"{what}: {type(error).__name__}: {error}") from error
    if name := victims.wrong(found, target.numbers) or next(iter(target.numbers.keys() - found.keys()), None):
        raise Lost(f"{what}: {name!r} is wrong or missing, without an error")
    return "survived"


@contextmanager
def alarm():
    """Interrupts what waits for ever."""

    def ring(*_):
        raise Lost("reading hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(TIMEOUT // 3)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
