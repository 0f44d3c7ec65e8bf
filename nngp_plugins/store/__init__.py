"""Kernels and features on the disk: written chunk by chunk, resumed after a kill, read by slicing."""

from ._features import write_features as write_features
from ._read import KernelStore as KernelStore, open_kernel as open_kernel
from ._read_features import FeatureStore as FeatureStore, open_features as open_features
from ._write import write_kernel as write_kernel
