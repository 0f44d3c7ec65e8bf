"""Callbacks: watch the kernel while optax trains."""

from ._history import History as History
from ._schedules import Schedule as Schedule
from ._schedules import every as every
from ._schedules import log_spaced as log_spaced
from ._tracker import KernelTracker as KernelTracker
