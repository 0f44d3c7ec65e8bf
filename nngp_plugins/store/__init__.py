"""Kernels on the disk: written tile by tile, resumed after a kill, read by slicing."""

from ._read import KernelStore as KernelStore, open_kernel as open_kernel
from ._write import write_kernel as write_kernel
