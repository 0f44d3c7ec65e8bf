"""A Gaussian process as its formulas in float64 NumPy, with nothing of the library."""

import numpy as np


def process(phi, y, test, nugget, scale=1.0):
    """Mean, covariance, log marginal likelihood, and the predictions for each example from all others."""
    phi, y, test = (np.asarray(a, np.float64) for a in (phi, y, test))
    kernel = phi @ phi.T
    n, ridge = len(phi), nugget * np.trace(kernel) / len(phi)
    ridged = scale * (kernel + ridge * np.eye(n))
    cross = scale * test @ phi.T
    _, log_det = np.linalg.slogdet(ridged)
    solved = np.linalg.solve(ridged, y)
    columns = y.shape[1] if y.ndim == 2 else 1
    left_out = []
    for i in range(n):
        others = np.delete(np.arange(n), i)
        row = scale * kernel[i, others]
        gain = np.linalg.solve(ridged[np.ix_(others, others)], row)
        left_out.append((gain @ y[others], ridged[i, i] - row @ gain))
    return {
        "mean": cross @ solved,
        "covariance": scale * test @ test.T - cross @ np.linalg.solve(ridged, cross.T),
        "log_marginal_likelihood": -0.5 * (np.sum(y * solved) + columns * (log_det + n * np.log(2 * np.pi))),
        "left_out_mean": np.array([mean for mean, _ in left_out]),
        "left_out_variance": np.array([variance for _, variance in left_out]),
    }
