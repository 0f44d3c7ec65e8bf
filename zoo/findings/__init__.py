"""Published findings, a file each, that a command reproduces."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from ..spec import check_name


class Finding(NamedTuple):
    """What was published.

    Attributes:
        claim: what ought to come out.
        source: the paper.
    """

    claim: str
    source: str


FINDINGS: dict[str, Finding] = {
    "mnist-nngp": Finding(
        "the kernel of an infinitely wide ReLU network of depth 20 classifies 93 % of MNIST from 1,000 images",
        "Lee et al., Deep Neural Networks as Gaussian Processes, ICLR 2018, table 2",
    ),
    "lazy-rich": Finding(
        "in NTK parametrisation, wider networks move their kernels less: 1 − CKA falls, as width⁻² in the limit",
        "Dyer & Gur-Ari, ICLR 2020; Huang & Yau, ICML 2020; Chizat et al., NeurIPS 2019",
    ),
    "silent-alignment": Finding(
        "from a small init, the kernel of a deep linear network aligns with the target before the loss falls",
        "Atanasov, Bordelon & Pehlevan, Neural Networks as Kernel Learners, ICLR 2022",
    ),
    "coordcheck": Finding(
        "with Adam, layers of wide networks grow in standard parametrisation, and keep their size in µP",
        "Yang et al., Tensor Programs V, NeurIPS 2021, appendix D.1",
    ),
    "cka-width": Finding(
        "the wider networks are, the more alike are those that were trained from different seeds",
        "Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019, figure 7",
    ),
    "neural-collapse": Finding(
        "features of a class go on to collapse after the training error is zero: NC1 falls",
        "Papyan, Han & Donoho, PNAS 2020",
    ),
    "mnist1d": Finding(
        "on MNIST-1D, a linear model, an MLP, a GRU and a CNN reach 32, 68, 91 and 94 % test accuracy",
        "Greydanus & Kobak, Scaling Down Deep Learning with MNIST-1D, ICML 2024",
    ),
}


class Verdict(NamedTuple):
    """What came out.

    Attributes:
        holds: whether it is what was published.
        lines: what was measured, for people.
        numbers: the same for scripts.
    """

    holds: bool
    lines: list[str]
    numbers: dict[str, Any]


def reproduce(name: str, **sizes: Any) -> Verdict:
    """Runs the experiment of a finding.

    Args:
        name: a name of :data:`FINDINGS`.
        **sizes: arguments of the experiment that make it smaller.

    Raises:
        ValueError: there is no such finding.
        ModuleNotFoundError: a package that ships the data is missing.
    """
    check_name("finding", name, FINDINGS)
    verdict: Verdict = import_module(f"{__name__}.{name.replace('-', '_')}").measure(**sizes)
    return verdict
