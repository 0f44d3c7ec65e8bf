"""Disks that take no more."""

import resource
from contextlib import contextmanager


@contextmanager
def largest_file(size):
    """Files may not become larger than some bytes: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
