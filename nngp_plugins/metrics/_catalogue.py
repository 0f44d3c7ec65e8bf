"""What there is: each metric with its formula, range, cost and source, and how to read it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._change import centered_kernel_velocity, kernel_distance, relative_change
from ._classes import class_block_means, class_separation, neural_collapse, target_alignment
from ._many import cka_matrix, minibatch_cka_matrix
from ._regression import log_marginal_likelihood, regression_accuracy
from ._similarity import alignment, bures_distance, cka
from ._spectrum import (
    condition_number,
    effective_rank,
    eigenvector_overlap,
    participation_ratio,
    power_law_exponent,
    scale,
    spectrum,
    stable_rank,
    von_neumann_entropy,
)

ROTATION, SCALE, TRANSLATION = "rotation of features", "scale", "translation of features"
# of features (N, D) with D < N; of a kernel, N in place of D
INNER, EIGENVALUES, VECTORS, CHOLESKY = "N D²", "N D² + eigvalsh(D)", "svd(N, D)", "N D² + cholesky(D)"


@dataclass(frozen=True)
class Entry:
    """A metric and how to read it.

    Attributes:
        metric: the function.
        formula: K and L are kernels, λ eigenvalues largest first, p = λ / Σ λ, Y targets, N examples, C classes.
        range: of its values.
        cost: for N examples with D < N features; of a dense kernel, with N in place of D.
        tells: what the number says.
        misleads: when it says something else.
        invariant: what may be done to the features without changing it.
    """

    metric: Callable[..., Any]
    formula: str
    range: str
    cost: str
    tells: str
    misleads: str
    invariant: tuple[str, ...] = (ROTATION,)

    @property
    def name(self) -> str:
        """The metric's name in :mod:`nngp_plugins.metrics`."""
        return self.metric.__name__

    @property
    def source(self) -> str:
        """Where it was published."""
        text = (inspect.getdoc(self.metric) or "").partition("Source: ")[2].partition("\n\n")[0]
        return " ".join(text.split()).rstrip(".")


def catalogue() -> tuple[Entry, ...]:
    """All metrics, with formula, range, cost, source, and how to read them.

    Example:
        >>> import nngp_plugins as nngp
        >>> entry = next(entry for entry in nngp.metrics.catalogue() if entry.name == "stable_rank")
        >>> entry.formula, entry.range
        ('tr K / λ₁', '[1, min(N, D)]')
    """
    return _SIMILARITY + _SPREAD + _TARGETS


_SIMILARITY = (
    Entry(
        cka,
        "HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))",
        "about [0, 1]; debiased it can be slightly negative",
        f"3 × {INNER}",
        "whether two layers place examples alike: 1 for the same geometry, about 0 for unrelated features",
        "biased (`debiased=False`), it tends to D / (D + N) for unrelated features: 0.8 with 200 features and 50 "
        "examples. A few examples far from all others can make it high by themselves",
        (ROTATION, SCALE, TRANSLATION),
    ),
    Entry(
        cka_matrix,
        "cka of layer i of one model and layer j of another",
        "as cka",
        f"layers² × {INNER}, or N² for each pair up to N = 1024",
        "which layers of two models, or of two steps, correspond",
        "as cka; blocks on the diagonal are often one direction that many layers share",
        (ROTATION, SCALE, TRANSLATION),
    ),
    Entry(
        minibatch_cka_matrix,
        "Σ HSIC(K, L) / √(Σ HSIC(K, K) Σ HSIC(L, L)) over batches",
        "as cka",
        "as cka_matrix, a batch at a time",
        "the same, of data that does not fit",
        "biased, it depends on the size of the batches",
        (ROTATION, SCALE, TRANSLATION),
    ),
    Entry(
        alignment,
        "⟨K, L⟩ / (‖K‖ ‖L‖), of centred kernels unless center=False",
        "[0, 1]",
        f"3 × {INNER}",
        "the cosine between two kernels; centred it is biased CKA",
        "as biased CKA; without centring, a mean that all features share makes it close to 1 for any two",
        (ROTATION, SCALE),
    ),
    Entry(
        kernel_distance,
        "1 − ⟨K, L⟩ / (‖K‖ ‖L‖)",
        "[0, 1]",
        f"3 × {INNER}",
        "how far the kernel has turned, whatever its size; right down to 1e-14 in float32",
        "without centring, blind to what happens beside a large mean",
        (ROTATION, SCALE),
    ),
    Entry(
        centered_kernel_velocity,
        "kernel_distance of centred kernels / steps between them",
        "≥ 0, per step",
        f"3 × {INNER}",
        "when the kernel changes, and when it has settled",
        "grows with noise of the gradients; compare runs at the same distance of steps",
        (ROTATION, SCALE, TRANSLATION),
    ),
    Entry(
        relative_change,
        "‖K − K₀‖ / ‖K₀‖",
        "≥ 0",
        f"3 × {INNER}",
        "how far the kernel is from the reference: about 0 all through lazy training",
        "scale counts: under a loss that diverges, or weights that only grow, it is large though nothing was learnt",
    ),
    Entry(
        bures_distance,
        "min ‖phi_a − phi_b Q‖ over orthogonal Q",
        "≥ 0, in units of features",
        "N D² + svd(D, D)",
        "how far features are apart once they are turned onto each other; a metric, so the triangle inequality holds",
        "scale and mean count: divide by √tr K and centre for shape alone",
    ),
    Entry(
        eigenvector_overlap,
        "‖U_aᵀ U_b‖² / k with the k leading eigenvectors as columns",
        "[0, 1], about k / N for unrelated kernels",
        VECTORS,
        "whether the leading directions are still the same ones",
        "jumps where eigenvalues k and k + 1 cross, though the kernel hardly changed",
        (ROTATION, SCALE),
    ),
)
_SPREAD = (
    Entry(
        scale,
        "tr K / N",
        "≥ 0",
        "N D",
        "mean squared size of the features of an example: whether signals explode or vanish with depth",
        "says nothing about geometry",
    ),
    Entry(
        spectrum,
        "λ₁ ≥ λ₂ ≥ …",
        "≥ 0",
        EIGENVALUES,
        "everything that the numbers below summarise",
        "eigenvalues below N · 1e-7 · λ₁ are rounding error in float32; those of the singular values are good to 1e-14",
    ),
    Entry(
        effective_rank,
        "exp(−Σ p log p)",
        "[1, min(N, D)]",
        EIGENVALUES,
        "over how many directions the kernel spreads",
        "of eigenvalues λ, not of singular values: `of='singular_values'` gives RankMe, which is larger. An offset "
        "that all features share pulls it to 1",
        (ROTATION, SCALE),
    ),
    Entry(
        von_neumann_entropy,
        "−Σ p log p",
        "[0, log min(N, D)], in nats",
        EIGENVALUES,
        "the logarithm of effective_rank",
        "as effective_rank",
        (ROTATION, SCALE),
    ),
    Entry(
        participation_ratio,
        "(tr K)² / ‖K‖²",
        "[1, min(N, D)]",
        INNER,
        "over how many directions the size of the kernel spreads; needs no eigenvalues",
        "large eigenvalues count more than in effective_rank, so a mean hides all else: centre first",
        (ROTATION, SCALE),
    ),
    Entry(
        stable_rank,
        "tr K / λ₁",
        "[1, min(N, D)]",
        EIGENVALUES,
        "how much there is beside the leading direction",
        "the leading direction is often the mean: centre first",
        (ROTATION, SCALE),
    ),
    Entry(
        power_law_exponent,
        "α of λ_i ∝ i^−α, by least squares of logarithms over a window of ranks",
        "usually 0 to 3; nan where the window reaches rounding error",
        EIGENVALUES,
        "how fast the tail falls: about 1 in sensory cortex, above 1 for smooth features",
        "it is a fit: another window gives another number, and one over a spectrum that is no power law means nothing",
        (ROTATION, SCALE),
    ),
    Entry(
        condition_number,
        "λ₁ / λ_min",
        "[1, ∞]",
        VECTORS,
        "how ill-posed regression with this kernel is",
        "dominated by its smallest eigenvalue: a duplicate example makes it infinite",
        (ROTATION, SCALE),
    ),
)
_TARGETS = (
    Entry(
        target_alignment,
        "alignment of K with Y Yᵀ, centred",
        "[0, 1]",
        "N D C",
        "how much of the kernel is about the targets: grows in rich training",
        "of one-hot labels at most 1, only where classes are equally far apart; biased for few examples, as CKA is",
        (ROTATION, SCALE, TRANSLATION),
    ),
    Entry(
        class_block_means,
        "mean of K_ij over i in class c and j in class d",
        "(C, C)",
        "N D C",
        "which classes the kernel holds to be alike",
        "the diagonal counts each example with itself, much where classes are small",
    ),
    Entry(
        class_separation,
        "tr(Σ_W Σ_B⁺) / C",
        "≥ 0",
        "N D C",
        "NC1: spread within classes over distance between them; falls to 0 in neural collapse",
        "large and noisy where class means hardly differ, as at initialisation",
        (ROTATION, SCALE, TRANSLATION),
    ),
    Entry(
        neural_collapse,
        "NC1; NC2: spread of the norms of class means, |cos + 1/(C−1)|; NC3: ‖W/‖W‖ − M/‖M‖‖²; NC4: disagreement",
        "≥ 0, NC4 in [0, 1]",
        "N D C",
        "how far the last layer is from the simplex of neural collapse; 0 is there",
        "defined for the last hidden layer of a classifier, with as many features as classes or more",
        (ROTATION, SCALE, TRANSLATION),
    ),
    Entry(
        regression_accuracy,
        "accuracy of Y − (G Y)_i / G_ii with G = (K + s I)⁻¹",
        "[0, 1]",
        CHOLESKY,
        "how well kernel regression on this layer classifies the probe, each example left out in turn",
        "depends on the nugget s N / tr K, and on the number of examples; the mean of features is not removed",
        (ROTATION, SCALE),
    ),
    Entry(
        log_marginal_likelihood,
        "−½ tr(Yᵀ G Y) − ½ C log det(K + s I) − ½ N C log 2π",
        "nats, of all N C targets",
        CHOLESKY,
        "how likely the targets are under a Gaussian process with this kernel",
        "scale counts: a kernel that fits the targets but has another size scores badly",
    ),
)
