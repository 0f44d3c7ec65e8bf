"""The state of a training on the disk, so that a command that was stopped goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np

from . import written

NAME = "checkpoint.npz"


def save(folder: Path, step: int, tree: Any) -> None:
    """Writes all arrays of a PyTree, whole or not at all."""
    arrays: dict[str, Any] = {str(i): _numbers(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    with written.whole(folder / NAME) as file:
        np.savez(file, step=np.asarray(step), **arrays)


def load(folder: Path, like: Any) -> tuple[int, Any] | None:
    """Reads what :func:`save` wrote.

    Args:
        folder: the folder.
        like: a PyTree of the same structure, of arrays or of their shapes.

    Returns:
        ``(step, tree)``; None if there is no checkpoint.

    Raises:
        ValueError: the file is damaged, or is of another model.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        step, arrays = int(found.pop("step")), [found[str(i)] for i in range(len(found))]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} is damaged: {error}; delete it to start anew.") from error
    return step, _tree(path, arrays, like)


def load_weights(folder: Path, like: Any) -> Any | None:
    """Reads parameters and state ``(params, state)`` of a training that :func:`save` wrote; None if there is none."""
    n = len(jax.tree.leaves(like))
    if not (folder / NAME).exists():
        return None
    try:
        with np.load(folder / NAME, allow_pickle=False) as file:
            arrays = [file[str(i)] for i in range(n)]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ValueError(f"{folder / NAME} is damaged, or of another model: {error}.") from error
    return _tree(folder / NAME, arrays, like)


def _tree(path: Path, arrays: list[np.ndarray], like: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    if [jax.eval_shape(_data, leaf).shape for leaf in leaves] != [array.shape for array in arrays]:
        raise ValueError(f"{path} holds the training of another model.")
    return jax.tree.unflatten(structure, [_restored(a, leaf) for a, leaf in zip(arrays, leaves, strict=True)])


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _numbers(leaf: Any) -> np.ndarray:
    return np.asarray(_data(leaf))


def _restored(array: np.ndarray, leaf: Any) -> Any:
    return jax.random.wrap_key_data(jnp.asarray(array)) if _is_key(leaf) else jnp.asarray(array, leaf.dtype)
