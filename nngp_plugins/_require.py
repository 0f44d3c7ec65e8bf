"""Optional dependencies: imported where they are used, and named with their extra where they are missing."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, *, extra: str) -> Any:
    """Imports ``module``, or says which extra of nngp-plugins installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the module is there, and something that it imports is not
        raise ModuleNotFoundError(
            f"this needs {error.name}, which is not installed; run: pip install 'nngp-plugins[{extra}]'",
            name=error.name,
        ) from error
