"""How many threads work side by side, while BLAS starts none of its own."""

from __future__ import annotations

import os
from typing import Any


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "process_cpu_count"):  # since Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_blas_thread() -> Any:
    """A context in which BLAS starts no threads: while these wait for small work, they take the cores from others."""
    # threadpoolctl limits only libraries that are loaded. SciPy brings a BLAS of its own, which XLA uses.
    from scipy import linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")
