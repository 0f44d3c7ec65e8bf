"""Parameters from checkpoints of other libraries: Orbax, Flax msgpack, ``.npz`` and safetensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

Flat = dict[str, np.ndarray]
_UNFINISHED = ".orbax-checkpoint-tmp"
# How Orbax marks a folder of arrays, by its versions.
_MARKS = ("_METADATA", "manifest.ocdbt", "checkpoint")


def find(paths: Iterable[Path]) -> dict[int, Path]:
    """Returns the checkpoints by their step, in its order.

    Args:
        paths: checkpoints, or folders of checkpoints such as those of an Orbax ``CheckpointManager``. The step is the
            last number in the name of a file or a folder.

    Raises:
        ValueError: there is no checkpoint, a name without a number, or two with the same step.
    """
    found: dict[int, Path] = {}
    for path in paths:
        if not path.exists():
            raise ValueError(f"there is no file or folder {path}.")
        own = path.is_dir() and not _folders(path)
        for one in sorted(p for p in path.iterdir() if _step(p) is not None) if own else [path]:
            step = _step(one)
            if step is None:
                raise ValueError(f"the name of {one} holds no step, such as in step_100.npz.")
            if step in found:
                raise ValueError(f"{found[step]} and {one} are both of step {step}.")
            found[step] = one
        if own and not found:
            raise ValueError(f"{path} holds no checkpoint with a step in its name.")
    return dict(sorted(found.items()))


def _step(path: Path) -> int | None:
    if _UNFINISHED in path.name:
        return None
    name = path.name if path.is_dir() else path.name.removesuffix(path.suffix if path.suffix[1:].isalpha() else "")
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def _folders(path: Path) -> list[Path]:
    """The folders of arrays of one Orbax checkpoint: itself, or one for each of its items."""

    def marked(folder: Path) -> bool:
        return any((folder / mark).is_file() for mark in _MARKS)

    items = (one for one in sorted(path.iterdir()) if one.is_dir() and _step(one) is None)
    return [path] if marked(path) else [*filter(marked, items)]


def restore(path: Path, like: Any) -> Any:
    """Reads the parameters and the state of a model.

    Optimizer states and all else that a checkpoint holds besides are passed over. The parameters may lie anywhere in
    it, under the names that the framework gives them.

    Args:
        path: a checkpoint.
        like: ``(params, state)`` of the model. Leaves of the state that are no floats, such as keys of dropout, stay.

    Returns:
        ``(params, state)``.

    Raises:
        ValueError: the checkpoint is damaged, or of another model; the message names the first parameter that is
            missing or has another shape.
        ModuleNotFoundError: the library that wrote it is missing; the message says what to install.
    """
    import jax.numpy as jnp

    try:
        found = {_plain(name): array for name, array in _read(path).items()}
    except ModuleNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise ValueError(f"it cannot be read: {' '.join(str(error).split())[:200]}") from error
    params, state = like
    return _matched(found, params, lambda leaf: True), _matched(
        found, state, lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def _plain(name: str) -> str:
    """A path of a parameter, whichever library wrote it: parts between slashes, without NNX's ``value``."""
    return name.replace(".", "/").strip("/").removesuffix("/raw_value").removesuffix("/value")


def _named(tree: Any) -> dict[str, Any]:
    import jax

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _matched(found: Flat, tree: Any, wanted: Any) -> Any:
    """The tree with its leaves from a checkpoint."""
    import jax
    import jax.numpy as jnp

    names = {_plain(name): leaf for name, leaf in _named(tree).items()}
    asked = {name: leaf for name, leaf in names.items() if wanted(leaf)}
    where = _place(found, asked) if asked else ""
    leaves = [jnp.asarray(found[where + name], leaf.dtype) if name in asked else leaf for name, leaf in names.items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _place(found: Mapping[str, np.ndarray], asked: Mapping[str, Any]) -> str:
    """What stands before the names of a model's parameters in a checkpoint.

    Moments of an optimizer have the names of the parameters too, and lie deeper.
    """
    first = next(iter(asked))
    places = [name.removesuffix(first) for name in found if name == first or name.endswith(f"/{first}")]
    if not places:
        raise ValueError(f"it is of another model: it holds no {first}, only {', '.join([*found][:3])}, ...")
    fits, why = [], ""
    for place in sorted(places, key=lambda place: (place.count("/"), place != "params/", "ema" in place)):
        for name, leaf in asked.items():
            shape = found[place + name].shape if place + name in found else None
            if shape != leaf.shape:
                there = "is missing" if shape is None else f"has shape {shape}"
                why = why or f"it is of another model: {place + name} {there}, not {leaf.shape}."
                break
        else:
            fits.append(place)
    if not fits:
        raise ValueError(why)
    return fits[0]


def _read(path: Path) -> Flat:
    """All arrays of a checkpoint by their path."""
    if path.is_dir():
        folders = _folders(path)
        if not folders:
            raise ValueError("it is no finished checkpoint of Orbax.")
        return {k: v for folder in folders for k, v in _orbax(folder, "" if len(folders) == 1 else folder.name).items()}
    if path.suffix == ".npz":
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    if path.suffix == ".safetensors":
        try:
            from safetensors.numpy import load_file
        except ImportError:
            raise ModuleNotFoundError(f"{path.name} needs safetensors; run: pip install safetensors") from None
        return dict(load_file(path))
    from flax.serialization import msgpack_restore

    return _arrays(msgpack_restore(path.read_bytes()))


def _orbax(folder: Path, item: str) -> Flat:
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        raise ModuleNotFoundError("Orbax checkpoints need orbax; run: pip install orbax-checkpoint") from None
    import jax

    with ocp.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(folder.absolute())
        tree = getattr(getattr(metadata, "item_metadata", metadata), "tree", metadata)
        # Arrays of NumPy, because the devices of the training need not be here.
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(folder.absolute(), args=ocp.args.PyTreeRestore(restore_args=how))
    return {f"{item}/{name}": array for name, array in _arrays(restored).items()}


def _arrays(tree: Any) -> Flat:
    return {name: np.asarray(leaf) for name, leaf in _named(tree).items() if hasattr(leaf, "shape")}
