"""The kernels of a run as the page shows them: pictures, spectra, and CKA between layers and between steps."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._pictures import cosines, picture
from .._threads import one_blas_thread
from ..charts import spaced
from ..history import StoredRun
from ..metrics import cka_matrix

_PICTURES, _LAYERS, _STEPS = 72, 12, 24
"""At most so many pictures, of so many layers, at so many steps: the page stays small."""
_SPECTRA = 8
"""At most so many spectra of a layer, each of so many examples, because one costs N³."""
_PIXELS = 128
_EXAMPLES = 300
_RANKS = 48


@dataclass(frozen=True)
class Frame:
    """A centred kernel of a layer, ``(N, N)``.

    Attributes:
        step: its step; None for a layer that has no reference yet.
        kernel: the kernel, with examples in the order of their targets.
    """

    step: int | None
    kernel: np.ndarray


class Kernels:
    """The kernels that a run folder holds: at evenly spaced snapshots if it keeps them, else references and the last.

    Args:
        run: the run.
    """

    def __init__(self, run: StoredRun):
        self._run = run
        self._order = np.argsort(run.targets, kind="stable") if run.targets.size else np.arange(run.before.shape[1])
        places = spaced(range(len(run.layers)), _LAYERS)
        self.layers = [run.layers[i] for i in places]
        most = max(2, min(_STEPS, _PICTURES // len(places)))
        self.frames = [self._kept(name, most) or self._ends(i) for i, name in zip(places, self.layers, strict=True)]

    def _kept(self, layer: str, most: int) -> list[Frame]:
        """Those of the folder ``kernels``; none if the run keeps none, or TensorStore is not installed."""
        frames = []
        for step in spaced(self._run.history.steps.tolist(), most):
            # A kernel that the disk did not take is missing on the page, and nowhere else.
            with suppress(FileNotFoundError, ModuleNotFoundError, ValueError):
                kernel = np.asarray(self._run.history.kernel(layer, step), np.float64)
                centered = kernel - kernel.mean(axis=0)
                frames.append(Frame(step, self._sorted(centered - centered.mean(axis=1, keepdims=True))))
        return frames

    def _ends(self, i: int) -> list[Frame]:
        run, step = self._run, self._run.before_steps[i]
        frames = [Frame(None if np.isnan(step) else int(step), self._sorted(run.before[i]))]
        if run.after is not None:
            # A disk that is full may have no room for the kernels of the last snapshot.
            frames.append(Frame(run.after_step, self._sorted(run.after[i])))
        return frames

    def _sorted(self, kernel: np.ndarray) -> np.ndarray:
        return kernel[np.ix_(self._order, self._order)]

    @property
    def labels(self) -> np.ndarray | None:
        """The class of each example, in the order of the kernels; None if there are no classes."""
        return self._run.targets[self._order] if self._run.has_classes else None

    def pictures(self) -> list[list[dict[str, Any]]]:
        """For each layer and each of its steps: the step, the picture, and the mean cosines in a class and between."""
        same = None if self.labels is None else self.labels[:, None] == self.labels[None, :]
        return [[self._shown(frame, same) for frame in frames] for frames in self.frames]

    def _shown(self, frame: Frame, same: np.ndarray | None) -> dict[str, Any]:
        found = cosines(frame.kernel)
        shown: dict[str, Any] = {"step": frame.step, "finite": bool(np.isfinite(frame.kernel).all())}
        if same is not None:
            others = ~np.eye(len(found), dtype=bool)
            for name, pairs in (("within", same & others), ("between", ~same)):
                shown[name] = float(found[pairs].mean()) if pairs.any() else None
        return {**shown, "picture": picture(found, _PIXELS)}

    def classes(self) -> list[dict[str, Any]]:
        """The name of each class, and the part of a side that its examples take: its start and its size."""
        if self.labels is None:
            return []
        names, starts, counts = np.unique(self.labels, return_index=True, return_counts=True)
        n = len(self.labels)
        return [
            {"name": str(name), "start": start / n, "size": count / n}
            for name, start, count in zip(names.tolist(), starts.tolist(), counts.tolist(), strict=True)
        ]

    def spectra(self) -> dict[str, Any]:
        """Shares of eigenvalues in the trace, and the share of the targets in the leading directions, by rank."""
        n = len(self._order)
        some = np.unique(np.linspace(0, n - 1, min(n, _EXAMPLES)).round().astype(int))
        targets = _centred_targets(self.labels, self._run.targets[self._order] if self._run.targets.size else None)
        chosen = None if targets is None else targets[some] - targets[some].mean(axis=0)
        ranks = np.unique(np.geomspace(1, len(some), min(len(some), _RANKS)).round().astype(int))
        each = []
        # Threads of BLAS cost more than they save here, and much more beside a training.
        with one_blas_thread():
            for frames in self.frames:
                usable = [frame for frame in frames if np.isfinite(frame.kernel).all() and np.trace(frame.kernel) > 0]
                each.append(
                    [
                        {"step": frame.step, **_spectrum(frame.kernel[np.ix_(some, some)], chosen, ranks)}
                        for frame in spaced(usable, _SPECTRA)
                    ]
                )
        return {"ranks": ranks.tolist(), "examples": len(some), "layers": each}

    def cka_of_layers(self) -> list[dict[str, Any]]:
        """CKA of all layers with each other, of their references and at the last snapshot."""
        run = self._run
        found = [{"name": "references", "cka": _cka(run.before)}]
        if run.after is not None:
            found.append({"name": f"step {run.after_step:,}", "cka": _cka(run.after)})
        return found

    def cka_of_steps(self) -> list[dict[str, Any] | None]:
        """CKA of the steps of each layer with each other; None for a layer with fewer than three."""
        return [
            {"steps": [frame.step for frame in frames], "cka": _cka(np.stack([frame.kernel for frame in frames]))}
            if len(frames) > 2
            else None
            for frames in self.frames
        ]


def _cka(kernels: np.ndarray) -> list[list[float]] | None:
    """Debiased CKA, which is the same for centred kernels; None for too few examples."""
    if kernels.shape[1] < 4:
        return None
    # A power of the size of a kernel leaves the range of float32 sooner than the kernel.
    sizes = np.abs(kernels).max(axis=(1, 2), keepdims=True)
    kernels = np.divide(kernels, sizes, out=np.full(kernels.shape, np.nan, kernels.dtype), where=sizes > 0)
    return np.asarray(cka_matrix(list(kernels.astype(np.float32)))).tolist()


def _centred_targets(labels: np.ndarray | None, targets: np.ndarray | None) -> np.ndarray | None:
    if labels is not None:
        return (labels[:, None] == np.unique(labels)[None, :]).astype(float)
    return None if targets is None else targets.astype(float)[:, None]


def _spectrum(kernel: np.ndarray, targets: np.ndarray | None, ranks: np.ndarray) -> dict[str, Any]:
    centered = kernel - kernel.mean(axis=0)
    centered = centered - centered.mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(centered.astype(np.float64))
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = len(values) * np.finfo(np.float32).eps * values[0]
    share = np.where(values > noise, values / values.clip(0).sum(), np.nan)
    found: dict[str, Any] = {"share": share[ranks - 1].tolist()}
    if targets is not None and (total := np.square(targets).sum()) > 0:
        power = np.square(vectors.T @ targets).sum(axis=1).cumsum() / total
        found["power"] = power[ranks - 1].tolist()
    return found
