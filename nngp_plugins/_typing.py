"""Types that several packages share."""

from __future__ import annotations

from typing import Any

PyTree = Any
"""Any nesting of dicts, lists, tuples and other containers that JAX knows, with arrays as leaves."""
