"""Scores of a model at initialisation, from which its accuracy after training may be guessed.

Sources: Park et al., "Towards NNGP-guided Neural Architecture Search", 2020, for the Gaussian process; Mellor et al.,
"Neural Architecture Search without Training", ICML 2021, for the codes of ReLU units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from threadpoolctl import threadpool_limits

from nngp_plugins import gp, metrics

from .data import Dataset
from .families import FAMILIES
from .model import Model

SCORES = {
    "gp_accuracy": "GP accuracy",
    "log_marginal_likelihood": "log likelihood",
    "effective_rank": "effective rank",
    "target_alignment": "target alignment",
    "naswot": "NASWOT",
}
BASELINES = {"parameters": "parameters", "flops": "FLOPs"}
NUGGETS = np.logspace(-7, 2, 20)
BATCH, ROWS = 128, 512


def scores(
    model: Model, data: Dataset, *, inits: int, examples: int, tests: int, seed: int = 0
) -> Iterator[dict[str, float]]:
    """Yields the :data:`SCORES` of initialisations of a model.

    The features are those that the last layer reads, pooled over positions. A Gaussian process of their kernel K is
    fitted to one-hot targets minus 1/classes. Running statistics of batch normalisation are those of one batch.

    Args:
        model: the model.
        data: the data.
        inits: number of initialisations.
        examples: number n of training examples.
        tests: number of test examples.
        seed: random seed.

    Yields:
        ``gp_accuracy`` on the test examples, with that nugget of ``logspace(-7, 2, 20) · tr K / n`` for which most
        training examples are predicted by the others; ``log_marginal_likelihood`` in nats for each example, at its
        maximum over the nugget and the scale of K; ``effective_rank`` and ``target_alignment`` of K; and ``naswot``,
        nan for a network without ReLU.
    """
    train, test = data.train_x[:examples], data.test_x[:tests]
    y, test_y = data.train_y[:examples], data.test_y[:tests]
    f, everything = penultimate(model), model.f.layers(functions=True)
    features = jax.jit(lambda params, state, x: metrics.features(*f(params, x, state=state).values()))
    layers = jax.jit(lambda params, state, x: everything(params, x, state=state))
    for i in range(inits):
        params, state = model.init(jax.random.fold_in(jax.random.key(seed), i), train[:BATCH])
        both = _in_batches(features, params, state, np.concatenate([train, test]))
        phi, test_phi = np.split(both, [len(train)])
        gram = metrics.FeatureGram(jnp.asarray(phi))
        with threadpool_limits(1):  # ten times as fast for such small matrices
            accuracy = gp_accuracy(phi, y, test_phi, test_y)
            likelihood = _gp(phi, y, select="lml").log_marginal_likelihood()
        yield {
            "gp_accuracy": accuracy,
            "log_marginal_likelihood": likelihood / len(y),
            "effective_rank": float(metrics.effective_rank(gram)),
            "target_alignment": float(metrics.target_alignment(gram, y)),
            "naswot": log_determinant(code_kernel(layers(params, state, train[:BATCH]), train[:BATCH])),
        }


def penultimate(model: Model) -> Any:
    """Returns the model whose one layer is the features ``(N, D)`` that the last layer reads.

    Example:
        >>> import zoo
        >>> model = zoo.get("linen/vit", zoo.Spec((8, 8, 1)))
        >>> penultimate(model).layer_shapes(*model.shapes[:1], model.inputs(5))["blocks/norm"].shape
        (5, 64)
    """
    layers = model.f.layers(functions=True)
    *names, _ = layers.layer_shapes(model.shapes[0], model.inputs(2), state=model.shapes[1])
    if not names:
        raise ValueError(f"{model.name} has one layer only, and so no features that a last layer reads.")
    family = FAMILIES.get(model.family)
    # A recurrent layer returns its outputs first, and then its cells.
    first = next(name for name in names if name.split(":")[0] == names[-1].split(":")[0])
    return model.f.layers(first, functions=True).pool(family.pool if family else "mean")


def _in_batches(f: Any, params: Any, state: Any, x: np.ndarray) -> np.ndarray:
    """The outputs of ``f`` in batches of at most :data:`ROWS`, of one size, so that it is compiled once."""
    batches = -(-len(x) // ROWS)
    rows = -(-len(x) // batches)
    padded = np.pad(x, [(0, rows * batches - len(x)), *[(0, 0)] * (x.ndim - 1)])
    parts = [np.asarray(f(params, state, batch)) for batch in np.split(padded, batches)]
    return np.concatenate(parts)[: len(x)]


def _gp(phi: Any, y: np.ndarray, **options: Any) -> Any:
    return gp.fit(metrics.FeatureGram(phi), y, **options)


def gp_accuracy(phi: np.ndarray, y: np.ndarray, test_phi: np.ndarray, test_y: np.ndarray) -> float:
    """The test accuracy of a Gaussian process with the best of :data:`NUGGETS`, which the training examples choose."""
    best, accuracy = -1.0, 0.0
    for nugget in NUGGETS:
        posterior = _gp(phi, y, nugget=float(nugget))
        left_out = posterior.classes[posterior.leave_one_out().mean.argmax(axis=1)]
        if (hits := float((left_out == y).mean())) > best:
            best, accuracy = hits, float((posterior.predict(test_phi) == test_y).mean())
    return accuracy


def code_kernel(layers: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """The Hamming kernel ``(N, N)`` of the codes of ReLU units: how many of them treat two examples in the same way.

    ReLU layers are those whose smallest output is exactly zero, but for the inputs themselves. It is computed by NumPy,
    because compiling a program for the layers of each model would take far longer than this does.
    """
    n = len(x)
    total, inputs = np.zeros((n, n)), np.reshape(x, (n, -1))
    for y in layers.values():
        flat = np.asarray(y).reshape(n, -1)
        if flat.min() == 0 < flat.max() and not np.array_equal(flat, inputs):
            on = (flat > 0).astype(np.float32)
            counts = on.sum(axis=1)
            # Units that are both off are all of them, less those that are on in either.
            total += flat.shape[1] - counts - counts[:, None] + 2 * on @ on.T
    return total


def log_determinant(kernel: np.ndarray) -> float:
    """``log |det K|``; nan for a kernel of zeros, and minus infinity for two examples with the same code."""
    return float(np.linalg.slogdet(kernel.astype(np.float64))[1]) if kernel.any() else np.nan


def flops(model: Model) -> float:
    """Floating-point operations of a forward pass of one example, as XLA counts them.

    XLA counts the body of a loop once, so loops over time and layers are unrolled first.
    """

    def forward(params: Any, state: Any, x: Any) -> Any:
        return model.f(params, x, state=state)

    arguments = (*model.shapes, model.inputs())
    with jax.disable_jit():
        unrolled = jaxpr_as_fun(jax.make_jaxpr(forward)(*arguments))
    cost: Any = jax.jit(unrolled).lower(*jax.tree.leaves(arguments)).cost_analysis()
    return float(cost["flops"])


def correlations(rows: Sequence[Mapping[str, float]], target: str) -> dict[str, dict[str, float]]:
    """Rank correlations of every score and baseline with a number, over models.

    Args:
        rows: the numbers of each model.
        target: such as ``"trained_accuracy"``.

    Returns:
        For each score, over those models that have it, ``tau`` (Kendall's τ), ``rho`` (Spearman's ρ), their p-values
        ``tau_p`` and ``rho_p``, and the number of ``models``; nan for less than 3 models.
    """
    from scipy.stats import kendalltau, spearmanr

    found = {}
    for key in (*SCORES, *BASELINES):
        pairs = np.array([(row[key], row[target]) for row in rows]).T
        a, b = pairs[:, np.isfinite(pairs).all(axis=0)]
        measured = len(a) > 2 and len(set(a)) > 1 and len(set(b)) > 1
        (tau, tau_p), (rho, rho_p) = (kendalltau(a, b), spearmanr(a, b)) if measured else ((np.nan, np.nan),) * 2
        numbers = {"tau": tau, "tau_p": tau_p, "rho": rho, "rho_p": rho_p}
        found[key] = {name: float(value) for name, value in numbers.items()} | {"models": len(a)}
    return found


def conclusion(found: Mapping[str, Mapping[str, float]]) -> str:
    """Says whether a score tells more than the size of a model does.

    Args:
        found: what :func:`correlations` returns. A score that only some of the models have is left out.

    Example:
        >>> conclusion({key: {"tau": 0.3, "models": 9} for key in (*SCORES, *BASELINES)})
        'no score beats parameters: τ +0.30, and +0.30 of GP accuracy'
    """
    models = max(of["models"] for of in found.values())
    taus = {key: of["tau"] for key, of in found.items() if of["models"] == models and np.isfinite(of["tau"])}
    best = [max(filter(taus.__contains__, keys), key=lambda k: taus[k], default=None) for keys in (SCORES, BASELINES)]
    score, baseline = best
    if score is None or baseline is None:
        return "there are too few models, or they are too much alike, to compare the scores"
    if taus[score] > taus[baseline]:
        return f"{SCORES[score]} beats {BASELINES[baseline]}: τ {taus[score]:+.2f}, and {taus[baseline]:+.2f}"
    return f"no score beats {BASELINES[baseline]}: τ {taus[baseline]:+.2f}, and {taus[score]:+.2f} of {SCORES[score]}"
