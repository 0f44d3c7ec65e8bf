"""The contraction engine: outputs of any ``f(params, x, **kwargs)`` to kernels."""

from ._axes import Axes as Axes
from ._axes import all_but_batch as all_but_batch
from ._batch import BatchedKernelFn as BatchedKernelFn
from ._batch import batch as batch
from ._batch import plan as plan
from ._empirical import KernelFn as KernelFn
from ._empirical import empirical_nngp_fn as empirical_nngp_fn
from ._job import Job as Job
from ._kwargs import Shared as Shared
from ._layout import free_component as free_component
from ._store import KernelStore as KernelStore
from ._store import open_kernel as open_kernel
from ._write import write_kernel as write_kernel
