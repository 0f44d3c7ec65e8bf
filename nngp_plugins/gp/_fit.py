"""From a kernel or features and targets to a posterior."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import jax
import numpy as np

from ..engine import OnHost
from ..metrics import FeatureGram, Gram, StreamedGram
from ._entries import Entries
from ._factor import Cholesky, Spectral, factor, spectral
from ._iterative import Iterative
from ._posterior import DensePosterior, FeaturePosterior
from ._select import by_left_out, by_likelihood
from ._sides import DenseSide, FeatureSide
from ._targets import Targets

Select = Literal["lml", "loo"]


def fit(
    kernel: Gram | Any,
    y: Any,
    *,
    nugget: float | None = None,
    select: Select | None = None,
    memory_budget: int | None = None,
) -> FeaturePosterior | DensePosterior:
    """The posterior of a Gaussian process whose prior has this kernel and mean zero.

    Features with ``D < N`` are solved on their own side: two passes over the examples, ``(D, D)`` matrices, never an
    ``(N, N)`` one. Stored features, as ``nngp.gram(store)``, are read block by block, and never held together. Wider
    features and kernels are solved by ``(N, N)``. The work is done on the host, in float64 whatever the dtype of the
    kernel: the noise is often smaller than what float32 resolves beside the largest eigenvalue.

    A kernel whose Cholesky factor takes more than ``memory_budget`` is solved by conjugate gradients, of which a step
    reads it once, tile by tile: a kernel on the disk, as :func:`nngp_plugins.open_kernel` opens it, need not fit into
    memory. The posterior then says the ``residual`` that is left. It has no likelihood.

    With ``nugget=0`` and a singular kernel, such as that of duplicates, the answer is that of the pseudo-inverse: the
    limit of a small nugget.

    Args:
        kernel: a Gram, such as :func:`nngp_plugins.gram` returns, or a kernel ``(N, N)``, which may lie in a
            :class:`nngp_plugins.KernelStore`. Wrap features ``(N, D)`` as ``FeatureGram(phi)``; ``phi`` may be a memory
            map, which is read in blocks.
        y: targets; :func:`nngp_plugins.metrics.labels_of` says which are labels, and these are regressed on as one-hot
            rows minus 1/C. Numbers are regressed on as they are; remove their mean first.
        nugget: variance of the noise, relative to ``tr K / N``; None for 1e-3.
        select: ``"lml"`` chooses the nugget and the scale of the kernel that maximise the log marginal likelihood,
            ``"loo"`` those with the least squared error of left-out examples, and the scale that their errors have.
            None for the given nugget, and the kernel as it is.
        memory_budget: bytes that factors of the kernel may take; None for half of the memory.

    Returns:
        A :class:`FeaturePosterior` for features, a :class:`DensePosterior` for entries.

    Raises:
        ValueError: a kernel that is not square, symmetric and positive semi-definite, is zero, or holds NaN; centred
            features that are read block by block; y of another length; a negative nugget; a nugget beside ``select=``.
            ``memory_budget`` is too small for ``select=``, ``nugget=0``, or features that need an ``(N, N)`` matrix.
        TypeError: the call is inside ``jit``, where :func:`nngp_plugins.metrics.log_marginal_likelihood` works.

    Warns:
        RuntimeWarning: the nugget is smaller than the rounding error of the kernel's entries, so that the directions of
            this size count as never observed. Conjugate gradients leave a residual that is too large.

    Source: Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006, §2.2, §2.3 and §5.4. The
    preconditioner: Frangella, Tropp & Udell, "Randomized Nyström Preconditioning", SIAM J. Matrix Anal. Appl. 2023.

    Example:
        >>> import numpy as np, nngp_plugins as nngp
        >>> phi, y = np.array([[1.0], [2.0], [3.0]]), np.array([2.1, 3.9, 6.1])
        >>> posterior = nngp.gp.fit(nngp.metrics.FeatureGram(phi), y, nugget=0.01)
        >>> posterior.mean(np.array([[4.0]])).round(1).tolist()
        [8.0]
    """
    refuse_options(nugget, select, memory_budget)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((kernel, y))):
        raise TypeError("gp.fit decides by values, so it cannot run inside jit; metrics.log_marginal_likelihood can.")
    phi = features_of_gram(kernel)
    entries = Entries(kernel) if phi is None else None
    targets = Targets.of(y, phi.shape[0] if entries is None else entries.n)
    budget = OnHost().budget() if memory_budget is None else int(memory_budget)
    if entries is not None and bytes_of(entries.n, nugget, select) > budget:
        return by_multiplying(entries, targets, nugget, select, budget)
    side = by_features(phi, targets, nugget, select, budget) if entries is None else by_entries(entries, targets)
    refuse_empty(side.trace)
    part, scale = solved(side, 1e-3 if nugget is None else nugget, select)
    weights, chosen = side.weights(part), part.ridge * side.n / side.trace
    common = (side, part, targets, chosen, scale)
    if entries is not None:
        return DensePosterior(*common, weights)
    if isinstance(side, FeatureSide):
        return FeaturePosterior(*common, weights, part.free())
    phi = np.asarray(phi, np.float64)
    return FeaturePosterior(*common, phi.T @ weights, part.half(phi).T)


def refuse_options(nugget: float | None, select: str | None, memory_budget: int | None) -> None:
    """Refuses numbers and names that mean nothing.

    Raises:
        ValueError: there are such ones.
    """
    if select not in (None, "lml", "loo"):
        raise ValueError(f"select={select!r} must be 'lml', 'loo' or None.")
    if nugget is not None and select is not None:
        raise ValueError(f"nugget={nugget} and select={select!r} were both given; select= chooses the nugget.")
    if nugget is not None and not 0 <= nugget < np.inf:
        raise ValueError(f"nugget={nugget} must be 0 or more; it is relative to tr K / N.")
    if memory_budget is not None and not 1 <= memory_budget < np.inf:
        raise ValueError(f"memory_budget={memory_budget!r} must be a positive number of bytes, or None.")


def refuse_empty(trace: float) -> None:
    """Refuses a kernel of which nothing can be learnt.

    Raises:
        ValueError: its trace is not a positive number.
    """
    if not np.isfinite(trace):
        raise ValueError("the kernel holds NaN or infinity; nngp.gram names the examples.")
    if trace <= 0:
        raise ValueError("the kernel is zero, as that of a network with a head of zeros; there is nothing to fit with.")


def features_of_gram(kernel: Any) -> Any:
    """The features of a Gram, with a shape and slices of rows; None if it is known by its entries.

    Raises:
        ValueError: they are read block by block, less their mean.
    """
    if not isinstance(kernel, StreamedGram):
        return kernel.features if isinstance(kernel, FeatureGram) else None
    if kernel.centered:
        raise ValueError("kernel is centred; pass the features as they are stored, as those of test examples will be.")
    # Of more features than examples, the examples are what fits into memory.
    return kernel.phi if kernel.phi.shape[1] < kernel.n else kernel.phi[: kernel.n]


def by_entries(entries: Entries, targets: Targets) -> DenseSide:
    """The side of a kernel."""
    return DenseSide(entries.held(), targets.columns, entries.noise)


def by_features(
    phi: Any, targets: Targets, nugget: float | None, select: Select | None, budget: int
) -> FeatureSide | DenseSide:
    """The cheaper side of features: their own if D < N.

    Raises:
        ValueError: its matrices do not fit.
    """
    smaller = min(phi.shape)
    if (needed := bytes_of(smaller, nugget, select)) > budget:
        raise ValueError(
            f"features of shape {tuple(phi.shape)} need matrices ({smaller}, {smaller}) of {needed:.3g} bytes, more "
            f"than memory_budget={budget:.3g}; write the kernel by nngp.write_kernel, and pass nngp.open_kernel(path)."
        )
    if phi.shape[1] < phi.shape[0]:
        return FeatureSide(phi, targets.columns)
    wide = np.asarray(phi, np.float64)
    return by_entries(Entries(wide @ wide.T), targets)


def bytes_of(n: int, nugget: float | None, select: Select | None) -> int:
    """The bytes of a matrix ``(n, n)`` and its factor: eigenvectors take more than Cholesky's."""
    return (16 if select is None and nugget != 0 else 24) * n * n


def by_multiplying(
    entries: Entries, targets: Targets, nugget: float | None, select: Select | None, budget: int
) -> DensePosterior:
    """The posterior by conjugate gradients.

    Raises:
        ValueError: it needs eigenvectors.
    """
    refuse_empty(entries.trace)
    nugget = 1e-3 if nugget is None else nugget
    ridge, least = nugget * entries.trace / entries.n, entries.noise * entries.n / entries.trace
    needed = bytes_of(entries.n, nugget, select)
    if select is not None:
        raise ValueError(
            f"select={select!r} needs the eigenvectors of the kernel, {needed:.3g} bytes, more than "
            f"memory_budget={budget:.3g}; choose by fewer examples: gp.fit(K[:5000, :5000], y[:5000], "
            f"select={select!r}).nugget."
        )
    if ridge <= entries.noise:
        raise ValueError(
            f"nugget={nugget} is not above the rounding error of the kernel, {least:.1g} in the same unit, so that it "
            f"needs eigenvectors, {needed:.3g} bytes, more than memory_budget={budget:.3g}; pass a larger nugget."
        )
    iterative = Iterative.of(entries, ridge, budget)
    weights, residual = iterative.solved(np.asarray(targets.columns, np.float64))
    return DensePosterior(entries, iterative, targets, nugget, 1.0, weights, residual)


def solved(side: FeatureSide | DenseSide, nugget: float, select: Select | None) -> tuple[Cholesky | Spectral, float]:
    """The factor with its ridge, and the scale of the kernel."""
    if select is None:
        ridge = nugget * side.trace / side.n
        if 0 < ridge <= side.noise:
            warnings.warn(
                f"nugget={nugget} is below the rounding error of the kernel, {side.noise * side.n / side.trace:.1g} "
                "in the same unit; directions of this size count as never observed. Pass features, a kernel in "
                "float64, or a larger nugget.",
                RuntimeWarning,
                stacklevel=3,
            )
        return factor(side.matrix, ridge, side.noise), 1.0
    if not np.any(side.y):
        raise ValueError(f"select={select!r} finds no scale, because y is zero.")
    spectrum = spectral(side.matrix, side.noise)
    ridge, scale = (by_likelihood if select == "lml" else by_left_out)(side, spectrum)
    return spectrum.with_ridge(ridge), scale
