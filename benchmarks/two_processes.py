"""A kernel that two processes write, against one that writes it alone; in memory, and on the disk. Needs Linux."""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from harness import Case, Contender, Target, ratio
from store import RUNS, inputs, on_disk

from nngp_plugins.engine import Part


def write_part(folder, part, n, d, batch_size):
    nngp, kernel_fn, x, params = inputs(n, d)
    options = {"batch_size": batch_size, "part": part, "progress": False}
    nngp.write_kernel(kernel_fn, x, None, params, folder / "kernel", **options)


def multiply_part(folder, part, n, d, batch_size):
    """What the machine gives to two processes that share nothing: its share of the products, and nothing else."""
    y = np.ones((batch_size, d), np.float32)
    tiles = (n // batch_size) * (n // batch_size + 1) // 2
    for _ in Part(*part).of_range(2 * tiles):
        y @ y.T


def only_on(core):
    """Threads that write to the disk would else take the core of the other process."""
    os.sched_setaffinity(0, {core})


def stolen():
    """The seconds of this machine's cores that its host has taken for others, or for itself, such as for the disk."""
    return int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")


def in_processes(do, count, n, d, batch_size, where):
    """The work of so many processes, without their start; each has a core of its own."""
    # XLA and OpenBLAS read these when they are first used.
    os.environ.update(NPROC="1", OPENBLAS_NUM_THREADS="1")
    start = partial(ProcessPoolExecutor, 1, get_context("spawn"), only_on)
    cores = sorted(os.sched_getaffinity(0))
    processes = [start(initargs=(cores[i],)) for i in range(count)]

    def write(folder):
        parts = [process.submit(do, folder, (i, count), n, d, batch_size) for i, process in enumerate(processes)]
        for part in parts:
            part.result()

    def run():
        before = stolen()
        sample = on_disk(write, where)()
        return {**sample, "stolen": (stolen() - before) / len(cores) / sample["seconds"]}

    return run


def case(place, where):
    return Case(
        f"kernel {place} by processes of one core each, N={{n}}, D={{d}}",
        {
            "one": Contender(partial(in_processes, write_part, 1), "`nngp.write_kernel(..., part=(0, 1))`"),
            "two": Contender(partial(in_processes, write_part, 2), "`part=(0, 2)` and `part=(1, 2)`, at the same time"),
            "one, products": Contender(partial(in_processes, multiply_part, 1), "products in NumPy, nothing written"),
            "two, products": Contender(partial(in_processes, multiply_part, 2), "half of them each"),
        },
        [
            Target("one / two", lambda seconds, _: seconds["one"] / seconds["two"], at_least=1.8),
            ratio("one, products", "two, products"),
            Target("share of the cores' time that the host took from two", lambda share, _: share["two"], of="stolen"),
        ],
        sizes={"n": 20_000, "d": 512, "batch_size": 2000, "where": where},
        quick={"n": 600, "d": 16, "batch_size": 200, "where": where},
        rounds=5,
    )


CASES = [case("in memory", "/dev/shm"), case("on the disk", str(RUNS))]
