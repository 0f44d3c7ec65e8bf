"""Optional dependencies: a missing one raises an error that names the extra to install."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, *, extra: str) -> Any:
    """Imports and returns ``module``.

    Raises:
        ModuleNotFoundError: the package is not installed; the message names the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # The module is installed, but something that it imports is not.
        raise ModuleNotFoundError(
            f"this needs {error.name}, which is not installed; run: pip install 'nngp-plugins[{extra}]'",
            name=error.name,
        ) from error
