"""Draws docs/gp.png from what the first example of docs/gp.md computes.

python docs/make_gp.py
"""

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

HERE = Path(__file__).parent
COLOURS = {"softmax": "#dc2626", "Gaussian process": "#2563eb", "probabilities": "#2563eb", "variance": "#9ca3af"}


def computed() -> dict[str, Any]:
    """The variables of the example, so that the picture shows what a reader gets."""
    (code, *_) = re.findall(r"```python\n(.*?)```", (HERE / "gp.md").read_text(), flags=re.DOTALL)
    variables: dict[str, Any] = {}
    exec(compile(code, "gp.md", "exec"), variables)
    return variables


def draw_calibration(axes: Any, name: str, probabilities: np.ndarray, y: np.ndarray) -> None:
    """The accuracy of predictions over their mean confidence, in bins of similar confidence."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    edges = np.digitize(confidence, [0.6, 0.75, 0.9, 0.97])
    bins = [np.flatnonzero(edges == i) for i in np.unique(edges)]
    shares = [right[of_bin].mean() for of_bin in bins]
    # The standard error with one more right and one more wrong prediction, so that a bin without errors has one, too.
    smooth = [(right[of_bin].sum() + 1) / (len(of_bin) + 2) for of_bin in bins]
    error = [np.sqrt(share * (1 - share) / len(of_bin)) for share, of_bin in zip(smooth, bins, strict=True)]
    means = [confidence[of_bin].mean() for of_bin in bins]
    axes.errorbar(means, shares, error, fmt="o-", ms=4, capsize=2, color=COLOURS[name], label=name)


def main() -> None:
    """Writes the picture."""
    found = computed()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
    left.plot([0, 1], [0, 1], color="#9ca3af", lw=1)
    draw_calibration(left, "softmax", np.asarray(found["softmax"]), found["y_test"])
    draw_calibration(left, "Gaussian process", found["probabilities"], found["y_test"])
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0.3, 1.02), ylim=(0.1, 1.05), title="Digits that were seen")
    for name, score in found["scores"].items():
        false, true, _ = roc_curve(found["is_other"], score)
        area = roc_auc_score(found["is_other"], score)
        right.plot(false, true, color=COLOURS[name], label=f"{name}, AUROC {area:.2f}")
    right.set(xlabel="seen digits that are flagged", ylabel="unseen digits that are flagged", title="Unseen digits")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / "gp.png", dpi=110)


if __name__ == "__main__":
    main()
