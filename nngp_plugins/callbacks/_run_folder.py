"""The run folder: what a tracker writes and the report reads."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ._history import Row


class RunFolder:
    """Writes ``run.json``, ``metrics.jsonl`` (a line for each snapshot), ``reference.npz`` and ``last.npz``."""

    def __init__(self, path: str | Path, about: Mapping[str, Any]):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(about, indent=2, default=str)
        try:
            # exclusive creation: of two processes that want one folder, the second is refused
            with (self.path / "run.json").open("x") as file:
                file.write(text + "\n")
        except FileExistsError:
            raise FileExistsError(
                f"run={str(path)!r} is in use: it already holds a run; name another folder, or delete this one."
            ) from None
        self._metrics = (self.path / "metrics.jsonl").open("w")

    def append(self, row: Row) -> None:
        """Adds a snapshot, at once on its way to the disk."""
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()

    def save(self, name: str, **arrays: Any) -> None:
        """Saves arrays as ``name``."""
        np.savez(self.path / name, **arrays)

    def close(self, *, discard: bool) -> None:
        """Closes the files; a run that measured nothing leaves nothing that would block the next one."""
        self._metrics.close()
        if discard:
            for name in ("metrics.jsonl", "run.json"):
                (self.path / name).unlink()


def describe(probe: Any, config: Mapping[str, Any] | None, **about: Any) -> dict[str, Any]:
    """What ``run.json`` says of a run: versions, the probe's fingerprint, and the user's config."""
    from .. import __version__  # the package is not ready while this module is imported

    versions = {"nngp-plugins": __version__, "jax": jax.__version__, "numpy": np.__version__}
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(probe)]
    digest = hashlib.sha256()
    for leaf in leaves:
        digest.update(f"{leaf.shape}{leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | versions,
        "probe": {"n": int(leaves[0].shape[0]), "sha256": digest.hexdigest()},
        **about,
        "config": dict(config or {}),
    }
