"""Scores at initialisation, each against a computation that knows nothing of the library."""

import csv
import json

import jax
import numpy as np
import pytest
import scipy.stats

import zoo
from zoo.scores import (
    NUGGETS,
    SCORES,
    code_kernel,
    conclusion,
    correlations,
    flops,
    gp_accuracy,
    log_determinant,
    penultimate,
    scores,
)

COMPILED = "/jax/core/compile/backend_compile_duration"


def test_gp_accuracy_is_that_of_a_regression_whose_nugget_left_out_examples_choose():
    """Each left-out example is predicted by a fit to the others, and inverses are plain ones."""
    rng = np.random.default_rng(0)
    y, test_y = np.arange(24) % 3, np.arange(30) % 3
    means = rng.normal(size=(3, 4))
    phi, test_phi = (means[labels] + 0.9 * rng.normal(size=(len(labels), 4)) for labels in (y, test_y))
    targets, kernel = np.eye(3)[y] - 1 / 3, phi @ phi.T
    hits, accuracies = [], []
    for nugget in np.logspace(-7, 2, 20):
        noise = nugget * np.trace(kernel) / 24
        left_out = []
        for i in range(24):
            rest = np.delete(np.arange(24), i)
            inverse = np.linalg.inv(kernel[np.ix_(rest, rest)] + noise * np.eye(23))
            left_out.append((kernel[i, rest] @ inverse @ targets[rest]).argmax())
        hits.append(np.mean(left_out == y))
        mean = test_phi @ phi.T @ np.linalg.inv(kernel + noise * np.eye(24)) @ targets
        accuracies.append(np.mean(mean.argmax(axis=1) == test_y))
    assert len(set(accuracies)) > 2
    np.testing.assert_allclose(NUGGETS, np.logspace(-7, 2, 20))
    assert gp_accuracy(phi, y, test_phi, test_y) == pytest.approx(accuracies[int(np.argmax(hits))])


def test_naswot_counts_units_that_are_both_on_or_both_off():
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=(5, 6)))
    x[0, 0] = 0  # inputs that look like the outputs of ReLU units
    layers = {"inputs": x, "a": rng.normal(size=(5, 7)), "gelu": rng.normal(size=(5, 9))}
    layers["a/relu"] = np.maximum(layers["a"], 0)
    layers["b"] = np.maximum(rng.normal(size=(5, 2, 2, 3)), 0)
    codes = np.concatenate([layers["a/relu"] > 0, layers["b"].reshape(5, -1) > 0], axis=1)
    expected = [[sum(p == q for p, q in zip(a, b, strict=True)) for b in codes] for a in codes]
    kernel = np.asarray(code_kernel(layers, x))
    np.testing.assert_array_equal(kernel, expected)
    assert log_determinant(kernel) == pytest.approx(np.log(abs(np.linalg.det(np.array(expected, float)))))
    assert np.isnan(log_determinant(np.asarray(code_kernel({"gelu": layers["gelu"]}, x))))


def test_flops_count_every_step_of_a_recurrent_network():
    """Each of 4 steps multiplies the inputs and the state of 16 features with four gates."""
    model = zoo.get("linen/lstm", zoo.Spec((4, 3), 4), width=16)
    products = 2 * (4 * 3 * 16 + 4 * (16 + 16) * 4 * 16 + 16 * 4)
    assert products < flops(model) < 1.1 * products


@pytest.mark.parametrize("name", ["linen/mlp", "haiku/lstm"])
def test_the_last_layer_reads_the_penultimate_features(name):
    """A least-squares fit of the logits to them leaves no error."""
    model = zoo.get(name, zoo.Spec((6, 4), 3), width=16)
    params, state = model.init(jax.random.key(0))
    x, last = np.random.default_rng(1).normal(size=(60, 6, 4)).astype(np.float32), penultimate(model)
    (phi,), logits = jax.jit(lambda p: ([*last(p, x, state=state).values()], model.f(p, x, state=state)))(params)
    phi, logits = np.column_stack([np.asarray(phi, np.float64), np.ones(60)]), np.asarray(logits, np.float64)
    assert phi.shape == (60, 17)
    np.testing.assert_allclose(phi @ np.linalg.lstsq(phi, logits)[0], logits, atol=1e-5)


NORMALISED = """
import flax.linen as nn

class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(2)(nn.relu(nn.BatchNorm(not train)(nn.Dense(8)(x))))

def build():
    return Network()
"""


def test_initialisations_share_four_programs(tmp_path):
    """They make the parameters, the running statistics, the features, and the layers that NASWOT looks at."""
    (tmp_path / "mine.py").write_text(NORMALISED)
    data, events = zoo.load("moons"), []

    def listen(event, duration, **_):
        events.append(event)

    def compiled():
        """The number of programs compiled after each initialisation of a new model."""
        model = zoo.get(f"{tmp_path / 'mine.py'}:build", data.spec)
        events.clear()
        return [events.count(COMPILED) for _ in scores(model, data, inits=2, examples=50, tests=30)]

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        first, second = compiled(), compiled()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # All models of these shapes share the programs of the metrics and of the key.
    assert first == [first[0]] * 2
    assert second == [4, 4]


def test_correlations_are_those_of_scipy_over_the_models_that_have_the_score():
    rng = np.random.default_rng(0)
    rows = [{key: float(rng.normal()) for key in (*SCORES, "parameters", "flops", "end")} for _ in range(8)]
    rows[2]["naswot"], rows[5]["naswot"] = float("nan"), float("-inf")
    found = correlations(rows, "end")
    kept = [row for i, row in enumerate(rows) if i not in (2, 5)]
    tau, p = scipy.stats.kendalltau([row["naswot"] for row in kept], [row["end"] for row in kept])
    assert (found["naswot"]["tau"], found["naswot"]["tau_p"], found["naswot"]["models"]) == (tau, p, 6)
    assert found["flops"]["rho"] == scipy.stats.spearmanr(*([row[k] for row in rows] for k in ("flops", "end")))[0]
    assert np.isnan(correlations(rows[:2], "end")["flops"]["tau"])


def test_the_conclusion_may_be_that_no_score_beats_the_size():
    def said(**taus):
        found = {key: {"tau": taus.get(key, 0.1), "models": 9} for key in (*SCORES, "parameters", "flops")}
        found["naswot"] = {"tau": 0.9, "models": 4}  # which most models do not have
        return conclusion(found)

    assert said(flops=0.5, gp_accuracy=0.4) == "no score beats FLOPs: τ +0.50, and +0.40 of GP accuracy"
    assert said(flops=0.5, gp_accuracy=0.6) == "GP accuracy beats FLOPs: τ +0.60, and +0.50"


SCAN = ("scan", "linen/mlp", "haiku/mlp", "--data", "moons", "--width", 16, "--examples", 100, "--inits", 2)


def test_scan_ranks_models_and_goes_on_where_it_was_stopped(tmp_path, here):
    command = here(*SCAN, "--train", 40, "--out", tmp_path / "scan", "--json")
    assert command.returncode == 0, command.stderr
    result = json.loads(command.stdout)
    models = result["models"]
    assert {row["model"] for row in models} == {"linen/mlp", "haiku/mlp"}
    assert [row["gp_accuracy"] for row in models] == sorted((row["gp_accuracy"] for row in models), reverse=True)
    assert all(row["parameters"] == 2 * 16 + 16 + 16 * 16 + 16 + 16 * 2 + 2 for row in models)
    assert all(row["gp_accuracy"] > 0.75 and row["trained_accuracy"] > 0.75 for row in models)
    with (tmp_path / "scan" / "scan.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == [row["model"] for row in models]
    assert float(rows[0]["gp_accuracy_error"]) == models[0]["gp_accuracy_error"]
    assert "linen/mlp" in (tmp_path / "scan" / "scan.html").read_text().replace("\\u002f", "/")
    kept = tmp_path / "scan" / "models" / "haiku-mlp.json"
    there = json.loads(kept.read_text())
    there["row"]["gp_accuracy"] = 0.125
    kept.write_text(json.dumps(there))
    again = here(*SCAN, "--train", 40, "--out", tmp_path / "scan")
    assert "0.125±" in again.stdout  # it was read, not computed
    assert "Kendall's τ" in again.stdout
    assert "there are too few models" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linen/mpl",), "MODEL: unknown model 'linen/mpl'; did you mean 'linen/mlp'"),
        (("linen/autoencoder",), "MODELS: linen/autoencoder is trained for another task (reconstruct); scan compares"),
        (("linen/lenet", "--data", "moons"), "MODEL: linen/lenet takes image inputs, but the data are vector"),
        (("--framework", "jaks"), "--framework jaks: unknown framework 'jaks'; did you mean"),
        (("linen/mlp", "--family", "mlp"), "MODELS: give names, or --framework and --family, not both."),
        (("--examples", "9999"), "--examples: digits has 1 to 1258 training examples, not 9999."),
        (("--lr", "-1"), "--lr -1.0: it must be a positive number."),
        (("--family", "resnet18", "--depth", "3"), "MODELS: linen/resnet18 has no knob 'depth'; its knobs are width"),
        (("--out", "file/new"), "--out file/new: it can't be written"),
    ],
)
def test_refused(here, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    command = here("scan", *arguments)
    assert (command.returncode, command.stderr.count("\n"), command.stdout) == (2, 1, "")
    assert command.stderr.startswith(f"nngp-zoo: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
