"""Types that several packages share."""

from __future__ import annotations

from typing import Any

PyTree = Any
