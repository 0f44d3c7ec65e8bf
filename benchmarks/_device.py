"""What matters on an accelerator: how floors are compiled, and how long compilations take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax

EVENT = "/jax/core/compile/backend_compile_duration"
# XLA tries dozens of Triton programs for every new shape of a product, which takes up to 10 s. On an H100, cuBLAS was
# as fast as the best of them or faster, so this does not slow a floor down.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


def jitted(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f`` compiled as a floor."""
    return jax.jit(f, compiler_options=GPU_OPTIONS if jax.default_backend() == "gpu" else None)


@dataclass
class Compilations:
    """How many programs the backend compiled, and the seconds of all of them."""

    programs: int = 0
    seconds: float = 0.0


@cache
def all_compilations() -> Compilations:
    """Those of this process, from the first call on."""
    made = Compilations()

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == EVENT:
            made.programs += 1
            made.seconds += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    return made


@contextmanager
def compilations() -> Iterator[Compilations]:
    """Counts those of all threads until the block ends."""
    total = all_compilations()
    before = Compilations(total.programs, total.seconds)
    here = Compilations()
    yield here
    here.programs, here.seconds = total.programs - before.programs, total.seconds - before.seconds
