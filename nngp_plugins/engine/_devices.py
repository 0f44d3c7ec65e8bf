"""Which devices run the network, and how arrays come from several devices to one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .._meshes import no_mesh


@contextmanager
def transfers_allowed() -> Iterator[None]:
    """Lets arrays move between host and device under ``jax_transfer_guard`` too, for a call or as a decorator.

    The guard finds transfers that nobody meant. A caller of this library means those that the call needs.
    """
    with (
        jax.transfer_guard_host_to_device("allow"),
        jax.transfer_guard_device_to_host("allow"),
        jax.transfer_guard_device_to_device("allow"),
    ):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Lets arrays move, and leaves the mesh of ``jax.set_mesh``, for a call or as a decorator."""
    with transfers_allowed(), no_mesh():
        yield


def compiler_options() -> dict[str, Any] | None:
    """Options for programs of many matrix products; None where the defaults are best.

    On a GPU, XLA times dozens of Triton kernels for each shape of a product, which takes seconds a shape. Those of
    cuBLAS are as fast here (measured on an H100), and take a tenth of a second.
    """
    return {"xla_gpu_enable_triton_gemm": False} if jax.default_backend() == "gpu" else None


def network_devices(count: int) -> list[jax.Device]:
    """The first ``count`` devices of this process; all of them for -1."""
    devices = jax.local_devices()
    return devices if count == -1 else devices[:count]


def on_one_device(array: Any) -> Any:
    """The same array on a single device; arrays that are there already pass through."""
    if not isinstance(array, jax.Array) or len(array.devices()) == 1:
        return array
    if not array.is_fully_replicated:
        if not isinstance(array.sharding, NamedSharding):
            return jnp.asarray(np.asarray(array))
        array = jax.device_put(array, NamedSharding(array.sharding.mesh, PartitionSpec()))
    # jax.device_put to one device would leave the mesh in the array's type.
    return array.addressable_shards[0].data
