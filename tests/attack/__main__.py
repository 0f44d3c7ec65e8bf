"""``make attack``: attacks the tracker, kernels and features at random, and counts what became of it."""

import argparse
import platform
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
from conftest import Forks
from rich.console import Console
from rich.progress import track
from rich.table import Table

from . import attackers, victims

FAULTS_AT_ONCE = 8


def targets(forks, folder):
    """Each kind of job, done once without an attack."""
    found = []
    for kind in victims.JOBS:
        for again in ("first", "again"):  # the first one compiles
            path, start = victims.fresh(folder / f"{kind} {again}"), time.monotonic()
            forks.start(path, kind=kind)
            assert forks.wait() == 0, forks.errors()
        found.append(attackers.Target(kind, path, victims.numbers(path, kind), time.monotonic() - start))
    return found


def can(*command):
    """Whether a program runs here, as mounts and strace need rights."""
    if not shutil.which(command[0]):
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def ways(folder):
    """The attackers that can run here, with their shares."""
    disk = victims.fresh(folder / "disk")
    mounts = can("mount", "-t", "tmpfs", "tmpfs", str(disk))
    if mounts:
        subprocess.run(["umount", str(disk)], check=True)
    traces = can("strace", "-f", "-qq", "--seccomp-bpf", "-o", str(folder / "try"), "true")
    shares = {"damage": 0.45, "kill": 0.25, "faults": 0.2 * traces, "full disk": 0.1 * mounts}
    return {name: share for name, share in shares.items() if share}


def attack(way, forks, target, path, dice):
    """One attack, or for failing calls some at once; the fate of each."""
    if way == "faults":
        paths = [victims.fresh(path / str(i)) for i in range(FAULTS_AT_ONCE)]
        return attackers.faults(forks, target, paths, dice, victims.fresh(path / "cache"))
    attacker = {"damage": attackers.damage, "kill": attackers.kill, "full disk": attackers.full_disk}[way]
    return [attacker(forks, target, victims.fresh(path), dice)]


def run(count, seed, folder, watch=iter):
    """Attacks; returns the fates by attacker and target, and what was lost, each with the seed that repeats it."""
    forks, dice, lost = Forks(folder, Path(victims.__file__)), random.Random(seed), []
    fates = Counter()
    try:
        all_targets, shares = targets(forks, folder), ways(folder)
        for one in watch(range(count)):
            way, target = dice.choices(list(shares), list(shares.values()))[0], dice.choice(all_targets)
            if way == "faults" and dice.random() > 1 / FAULTS_AT_ONCE:
                continue  # one run of strace attacks several jobs
            here, path = random.Random(f"{seed} {one}"), folder / "attacked"
            try:
                for fate in attack(way, forks, target, victims.fresh(path), here):
                    fates[way, target.kind, fate] += 1
            except Exception as error:  # noqa: BLE001 (whatever goes wrong is what we look for)
                fates[way, target.kind, "LOST"] += 1
                lost.append(f"seed {seed}, attack {one}, {way} on the {target.kind}: {type(error).__name__}: {error}")
    finally:
        forks.close()
    return fates, lost


def table(fates):
    """The counts."""
    shown, columns = Table(title=f"{sum(fates.values())} attacks"), ["survived", "noticed", "not fired", "LOST"]
    for name in ("attack", "on", *columns):
        shown.add_column(name, justify="left" if name in ("attack", "on") else "right")
    for way, kind in sorted({(way, kind) for way, kind, _ in fates}):
        shown.add_row(way, kind, *(str(fates[way, kind, fate]) for fate in columns))
    return shown


def main():
    parser = argparse.ArgumentParser(prog="make attack", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many attacks")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="repeats the attacks of another time")
    given, console = parser.parse_args(), Console()
    console.print(f"seed {given.seed}; JAX {jax.__version__}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        fates, lost = run(given.count, given.seed, Path(folder), lambda one: track(one, "attacks", console=console))
    console.print(table(fates))
    for line in lost:
        console.print(line, markup=False)
    raise SystemExit(bool(lost))


if __name__ == "__main__":
    main()
