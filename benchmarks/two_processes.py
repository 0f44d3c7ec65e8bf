"""A kernel on the disk that two processes write, against one that writes it alone."""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from harness import Case, Contender, Target
from store import inputs, on_disk


def write_part(folder, part, n, d, batch_size):
    nngp, kernel_fn, x, params = inputs(n, d)
    options = {"batch_size": batch_size, "part": part, "progress": False}
    nngp.write_kernel(kernel_fn, x, None, params, folder / "kernel", **options)


def only_on(core):
    """Threads that write to the disk would else take the core of the other process."""
    os.sched_setaffinity(0, {core})


def in_processes(count, n, d, batch_size):
    """A kernel that so many processes write, without the start of these; each has a core of its own. Needs Linux."""
    os.environ["NPROC"] = "1"  # XLA reads it when JAX is first used.
    start = partial(ProcessPoolExecutor, 1, get_context("spawn"), only_on)
    cores = sorted(os.sched_getaffinity(0))
    processes = [start(initargs=(cores[i],)) for i in range(count)]

    def write(folder):
        parts = [
            process.submit(write_part, folder, (i, count), n, d, batch_size) for i, process in enumerate(processes)
        ]
        for part in parts:
            part.result()

    return on_disk(write)


CASES = [
    Case(
        "kernel on the disk by processes of one core each, N={n}, D={d}",
        {
            "one": Contender(partial(in_processes, 1), "`nngp.write_kernel(..., part=(0, 1))`"),
            "two": Contender(partial(in_processes, 2), "`part=(0, 2)` and `part=(1, 2)`, at the same time"),
        },
        [Target("one / two", lambda seconds, _: seconds["one"] / seconds["two"], at_least=1.8)],
        sizes={"n": 20_000, "d": 512, "batch_size": 2000},
        quick={"n": 600, "d": 16, "batch_size": 200},
        rounds=5,
    ),
]
