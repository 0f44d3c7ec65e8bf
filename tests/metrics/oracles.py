"""The formulas of the papers in float64 NumPy and SciPy, of features ``phi`` and ``psi``, without our algorithms."""

import numpy as np
import scipy.linalg
import scipy.spatial.distance
import sklearn.neighbors


def hsic_biased(k, l):  # noqa: E741
    """Gretton et al. 2005, as Kornblith et al. 2019 write it."""
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return np.trace(k @ h @ l @ h) / (n - 1) ** 2


def hsic_debiased(k, l):  # noqa: E741
    """Song et al. 2012, eq. 5."""
    m = len(k)
    k, l, ones = k.copy(), l.copy(), np.ones(m)  # noqa: E741
    for i in range(m):
        k[i, i] = l[i, i] = 0
    return (
        np.sum(k * l.T)
        + (ones @ k @ ones) * (ones @ l @ ones) / ((m - 1) * (m - 2))
        - 2 / (m - 2) * (ones @ k @ l @ ones)
    ) / (m * (m - 3))


def hsic_of_features(phi, psi, debiased=True):
    """Either HSIC by sums over features, because kernels of many examples take gigabytes."""
    m = len(phi)
    if not debiased:
        return np.sum(((phi - phi.mean(axis=0)).T @ (psi - psi.mean(axis=0))) ** 2) / (m - 1) ** 2
    diagonals = [np.sum(f**2, axis=1) for f in (phi, psi)]
    rows = [f @ f.sum(axis=0) - diagonal for f, diagonal in zip((phi, psi), diagonals, strict=True)]
    products = np.sum((phi.T @ psi) ** 2) - diagonals[0] @ diagonals[1]
    of_sums = rows[0].sum() * rows[1].sum() / ((m - 1) * (m - 2)) - 2 / (m - 2) * (rows[0] @ rows[1])
    return (products + of_sums) / (m * (m - 3))


def cka_of_features(phi, psi, debiased=True):
    of_both, of_phi, of_psi = (hsic_of_features(*f, debiased) for f in ((phi, psi), (phi, phi), (psi, psi)))
    return of_both / np.sqrt(of_phi * of_psi)


def cka_oracle(hsic):
    return lambda phi, psi: (
        hsic(phi @ phi.T, psi @ psi.T) / np.sqrt(hsic(phi @ phi.T, phi @ phi.T) * hsic(psi @ psi.T, psi @ psi.T))
    )


def alignment(phi, psi):
    """Cristianini et al. 2001, def. 1."""
    k, l = phi @ phi.T, psi @ psi.T  # noqa: E741
    return np.trace(k @ l) / np.sqrt(np.trace(k @ k) * np.trace(l @ l))


def relative_change(phi, psi):
    return np.linalg.norm(phi @ phi.T - psi @ psi.T) / np.linalg.norm(psi @ psi.T)


def kernel_distance(phi, psi, center=False):
    """Fort et al. 2020, eq. 1, with the digits of long double, for what is left of 1 less a cosine near 1."""
    phi, psi = (f.astype(np.longdouble) for f in (phi, psi))
    if center:
        phi, psi = phi - phi.mean(axis=0), psi - psi.mean(axis=0)
    return float(1 - alignment(phi, psi))


def bures(phi, psi):
    """Bhatia, Jain & Lim 2019, thm. 1."""
    k, l = phi @ phi.T, psi @ psi.T  # noqa: E741
    root = scipy.linalg.sqrtm(k).real
    return np.sqrt(np.trace(k) + np.trace(l) - 2 * np.trace(scipy.linalg.sqrtm(root @ l @ root).real))


def procrustes(phi, psi):
    """Williams et al. 2021, eq. 3."""
    width = max(phi.shape[1], psi.shape[1])
    phi, psi = (np.pad(f, ((0, 0), (0, width - f.shape[1]))) for f in (phi, psi))
    q, _ = scipy.linalg.orthogonal_procrustes(psi, phi)
    return np.linalg.norm(phi - psi @ q)


def rsa(phi, psi, correlation):
    """Kriegeskorte et al. 2008, by SciPy."""
    return correlation(*(scipy.spatial.distance.pdist(f) for f in (phi, psi))).statistic


def distance_correlation(phi, psi):
    """Székely, Rizzo & Bakirov 2007, def. 3 and 4."""

    def doubly_centred(d):
        return d - d.mean(axis=0)[None] - d.mean(axis=1)[:, None] + d.mean()

    a, b = (doubly_centred(scipy.spatial.distance.cdist(f, f)) for f in (phi, psi))
    return np.sqrt(np.mean(a * b) / np.sqrt(np.mean(a * a) * np.mean(b * b)))


def debiased_distance_correlation(phi, psi):
    """The root of Székely & Rizzo 2013, with the U-centred distances of their 2014 paper, def. 2."""

    def u_centred(d):
        n = len(d)
        sums = d.sum(axis=0)
        centred = d - sums[None] / (n - 2) - sums[:, None] / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
        return centred - np.diag(np.diag(centred))

    a, b = (u_centred(scipy.spatial.distance.cdist(f, f)) for f in (phi, psi))
    square = np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))
    return np.sign(square) * np.sqrt(abs(square))


def mutual_knn(phi, psi, k):
    """Huh et al. 2024, by the neighbours that scikit-learn finds."""
    found = []
    for f in (phi, psi):
        search = sklearn.neighbors.NearestNeighbors(n_neighbors=k, metric="cosine").fit(f)
        found.append(search.kneighbors(return_distance=False))
    return np.mean([len(set(a) & set(b)) for a, b in zip(*found, strict=True)]) / k


def gulp(phi, psi, ridge):
    """Boix-Adserà et al. 2022, section 2, by covariances of features that are centred and scaled to a trace of 1."""
    phi, psi = (f - f.mean(axis=0) for f in (phi, psi))
    phi, psi = (f / np.linalg.norm(f) for f in (phi, psi))
    a, b = (np.linalg.inv(f.T @ f + ridge * np.eye(f.shape[1])) @ f.T for f in (phi, psi))
    own = [np.trace(inverse @ f @ inverse @ f) for inverse, f in ((a, phi), (b, psi))]
    return np.sqrt(sum(own) - 2 * np.trace(a @ psi @ b @ phi))


def eigenvector_overlap(phi, psi, k):
    """Björck & Golub 1973."""
    u, v = (np.linalg.svd(f, full_matrices=False)[0][:, :k] for f in (phi, psi))
    return np.mean(np.cos(scipy.linalg.subspace_angles(u, v)) ** 2)


def eigenvalues(phi):
    """Those that can differ from zero, largest first."""
    return np.linalg.svd(phi, compute_uv=False) ** 2


def entropy(values):
    p = values / values.sum()
    return -sum(q * np.log(q) for q in p if q > 0)


def power_law_exponent(phi, first, last):
    """α-ReQ, Agrawal et al. 2022."""
    ranks = np.arange(first, last + 1)
    slope, _ = np.polyfit(np.log(ranks), np.log(eigenvalues(phi)[ranks - 1]), 1)
    return -slope


def class_block_means(kernel, y):
    """Shan & Bordelon 2021, by loops."""
    names = np.unique(y)
    means = np.zeros((len(names), len(names)))
    for c, first in enumerate(names):
        for d, second in enumerate(names):
            pairs = [kernel[i, j] for i in range(len(y)) for j in range(len(y)) if y[i] == first and y[j] == second]
            means[c, d] = sum(pairs) / len(pairs)
    return means


def class_means(phi, y):
    return {c: phi[y == c].mean(axis=0) for c in np.unique(y)}


def nc1(phi, y):
    """``tr(Σ_W Σ_B⁺) / C`` of Papyan et al. 2020, whose covariances average over examples and over classes."""
    means, overall = class_means(phi, y), phi.mean(axis=0)
    within = sum(np.outer(row - means[c], row - means[c]) for row, c in zip(phi, y, strict=True)) / len(phi)
    between = sum(np.outer(m - overall, m - overall) for m in means.values()) / len(means)
    return np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / len(means)


def neural_collapse(phi, y, classifier, logits):
    """NC1 to NC4; the columns of ``classifier`` and ``logits`` are the classes 0, 1, ..., C − 1."""
    means, overall = class_means(phi, y), phi.mean(axis=0)
    centred = np.array([m - overall for m in means.values()])
    norms = [np.sqrt(m @ m) for m in centred]
    count = len(means)
    angles = [
        abs(centred[c] @ centred[d] / norms[c] / norms[d] + 1 / (count - 1))
        for c in range(count)
        for d in range(count)
        if c != d
    ]
    weights = np.array([classifier[:, c] for c in means])  # rows, as in the paper
    ours = weights / np.sqrt((weights**2).sum()) - centred / np.sqrt((centred**2).sum())
    nearest = [min(means, key=lambda c, row=row: np.linalg.norm(row - means[c])) for row in phi]
    return {
        "nc1": nc1(phi, y),
        "nc2_norms": np.std(norms) / np.mean(norms),
        "nc2_angles": np.mean(angles),
        "nc3": (ours**2).sum(),
        "nc4": np.mean([c != np.argmax(row) for c, row in zip(nearest, logits, strict=True)]),
    }


def one_hot(y):
    return (np.asarray(y)[:, None] == np.unique(y)).astype(float)


def regression_accuracy(kernel, y, nugget):
    """Each example left out, the rest solved for; the ridge is that of all examples."""
    n, targets = len(kernel), one_hot(y)
    ridge = nugget * np.trace(kernel) / n
    right = 0
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        weights = np.linalg.solve(kernel[np.ix_(rest, rest)] + ridge * np.eye(n - 1), targets[rest])
        right += np.argmax(kernel[i, rest] @ weights) == np.argmax(targets[i])
    return right / n
