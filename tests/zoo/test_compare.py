"""Layers of two models by CKA, and what is refused rather than compared."""

import csv
import json
import sys

import jax
import numpy as np
import pytest
from metrics import oracles

import zoo
from zoo import checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Features of two models that share a part, of the same examples and of others."""
    folder = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    common, ids = rng.normal(size=(20, 4)), np.array([f"e{i}" for i in range(20)])
    a = {"in": common + 0.1 * rng.normal(size=(20, 4)), "wide": rng.normal(size=(20, 5, 6)) + common[:, :1, None]}
    b = {"out": common + rng.normal(size=(20, 4))}
    np.savez(folder / "a.npz", ids=ids, labels=np.arange(20), about="{}", **a)
    np.savez(folder / "b.npz", ids=ids, **b)
    order = [0, 2, 1, *range(3, 20)]
    np.savez(folder / "order.npz", ids=ids[order], out=b["out"][order])
    np.savez(folder / "other.npz", ids=np.array([*ids[:19], "new"]), out=b["out"])
    np.save(folder / "b.npy", b["out"])
    np.save(folder / "few.npy", b["out"][:19])
    np.savez(folder / "odd.npz", ids=ids, out=b["out"][:7])
    (folder / "torn.npz").write_bytes((folder / "a.npz").read_bytes()[:100])
    return folder, a, b


def test_files_of_features(files, here, tmp_path):
    folder, a, b = files
    outputs = ("--csv", tmp_path / "new" / "c.csv", "--permutations", 99, "--picture", tmp_path / "p.html")
    told = json.loads(here("compare", folder / "a.npz", folder / "b.npz", "--json", *outputs).stdout)
    (pair,) = told["pairs"]
    assert (pair["layers_a"], pair["layers_b"], told["examples"]) == (["in", "wide"], ["out"], 20)
    expected = [[oracles.cka_of_features(x.reshape(20, -1), b["out"])] for x in a.values()]
    np.testing.assert_allclose(pair["cka"], expected, rtol=1e-4)
    assert pair["p"][0][0] == pytest.approx(0.01)
    rows = [*csv.DictReader((tmp_path / "new" / "c.csv").read_text().splitlines())]
    assert [(row["layer_a"], float(row["cka"])) for row in rows] == [
        (name, pytest.approx(value[0], rel=1e-6)) for name, value in zip(a, pair["cka"], strict=True)
    ]
    assert "plotly" in (tmp_path / "p.html").read_text()


def test_a_model_with_itself_in_a_table(files, here):
    command = here("compare", files[0] / "a.npz", "--permutations", 19, "--layer", "i*", "--layer", "wide")
    cells = {line.split()[0]: line.split()[1:] for line in command.stdout.splitlines() if "(" in line[9:]}
    assert cells["in"][:2] == ["1.000", "(0.050)"]
    assert cells["wide"][2:] == ["1.000", "(0.050)"]


NO_NUMBER = {
    ("a.npz", "order.npz"): (1, "another order: a.npz holds example e1 at place 1, where order.npz holds e2."),
    ("a.npz", "other.npz"): (1, "other examples: a.npz holds example e19, and other.npz does not."),
    ("a.npz", "b.npy"): (2, "NAME b.npy: it holds no ids; add them, or give --by-position."),
    ("a.npz", "few.npy", "--by-position"): (1, "a.npz holds 20 examples, and few.npy 19."),
    ("a.npz", "order.npz", "--by-position"): (1, "another order: "),
    ("a.npz", "b.npz", "--layer", "inn*"): (2, "--layer inn*: a.npz has no such layer; the closest are 'in'"),
    ("a.npz", "odd.npz"): (2, "NAME: odd.npz must hold arrays (N, ...) with the same N, and ids (N,); it holds"),
    ("torn.npz",): (2, "NAME: torn.npz cannot be read as features: "),
    ("no.npz",): (2, "NAME no.npz: there is no such file."),
    ("linen/ml",): (2, "NAME: unknown model 'linen/ml'; did you mean 'linen/mlp'"),
    ("runs/none",): (2, "NAME runs/none: there is no such folder or file, and it is no model either: unknown model"),
    ("linen/mlp@no",): (2, "NAME linen/mlp@no: there is no no."),
    (".",): (2, "NAME .: it is no run folder of `nngp-zoo track`."),
    ("a.npz", "--picture", "p.png"): (2, "--picture p.png: it must end in .html."),
}


@pytest.mark.parametrize("arguments", NO_NUMBER, ids=" ".join)
def test_what_does_not_belong_together_gives_no_number(files, here, monkeypatch, arguments):
    monkeypatch.chdir(files[0])
    code, message = NO_NUMBER[arguments]
    command = here("compare", *arguments)
    assert (command.returncode, command.stdout, command.stderr.count("\n")) == (code, "", 1)
    assert command.stderr.startswith(f"nngp-zoo: {message}")


def test_by_position(files, here):
    folder, _, _ = files
    arguments = ("--permutations", 9, "--json")
    by_ids = json.loads(here("compare", folder / "a.npz", folder / "b.npz", *arguments).stdout)
    trusted = here("compare", folder / "a.npz", folder / "b.npy", *arguments, "--by-position").stdout
    assert json.loads(trusted)["pairs"][0]["cka"] == by_ids["pairs"][0]["cka"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A run folder as `track` leaves it, a checkpoint of the same parameters, and the layers on the probe."""
    folder = tmp_path_factory.mktemp("runs")
    data = zoo.load("moons")
    model = zoo.get("linen/mlp", data.spec, width=8)
    params, state = model.init(jax.random.key(2))
    checkpoint.save(folder, 5, (params, state, {"an optimizer": np.ones(3)}))
    config = {"model": "linen/mlp", "data": "moons", "probe": 30, "steps": 5, "seed": 1, "width": 8}
    (folder / "run.json").write_text(json.dumps({"config": config}))
    flat = {f"{a}.{b}": np.asarray(value) for a, part in params.items() for b, value in part.items()}
    np.savez(folder / "step_5.npz", **flat)
    x, _, ids = data.probe(30)
    return folder, jax.jit(model.f.layers())(params, x, state=state), x, ids


def test_runs_models_and_checkpoints(ours, here, tmp_path):
    """They are measured on the data of the run, and all pairs are compared."""
    folder, layers, x, ids = ours
    names = (folder, f"linen/mlp@{folder / 'step_5.npz'}", "linen/mlp", tmp_path / "f.npz")
    np.savez(tmp_path / "f.npz", ids=ids, x=x)
    command = here("compare", *names, "--width", 8, "--seed", 1, "--permutations", 9, "--json")
    assert command.returncode == 0, command.stderr
    pairs = {(pair["a"], pair["b"]): np.array(pair["cka"]) for pair in json.loads(command.stdout)["pairs"]}
    run, stored, new, file = map(str, names)
    assert len(pairs) == 6
    np.testing.assert_allclose(np.diag(pairs[run, stored]), 1, atol=1e-6)
    assert pairs[run, new][1, 1] < 0.9999
    expected = [oracles.cka_of_features(np.asarray(y, float), np.asarray(x, float)) for y in layers.values()]
    np.testing.assert_allclose(pairs[run, file][:, 0], expected, rtol=1e-4)


def test_files_of_torch(tmp_path, here):
    """Tensors as trainings have them: with gradients, in bfloat16, on ids that are strings."""
    torch = pytest.importorskip("torch")
    a = torch.randn(12, 3, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ids = [f"e{i}" for i in range(12)]
    torch.save({"a": a, "half": a.bfloat16(), "ids": ids}, tmp_path / "f.pt")
    torch.save(a, tmp_path / "one.pth")
    np.savez(tmp_path / "f.npz", a=a.detach().numpy(), half=a.bfloat16().float().detach().numpy(), ids=ids)
    told = json.loads(here("compare", tmp_path / "f.pt", tmp_path / "f.npz", "--json").stdout)
    assert (told["pairs"][0]["layers_a"], told["examples"]) == (["a", "half"], 12)
    np.testing.assert_allclose(np.diag(told["pairs"][0]["cka"]), 1, atol=1e-6)
    assert here("compare", tmp_path / "one.pth", tmp_path / "f.npz", "--by-position").returncode == 0
    torch.save({"a": a, "ids": torch.arange(12)}, tmp_path / "other.pt")
    other = here("compare", tmp_path / "f.npz", tmp_path / "other.pt")
    assert (other.returncode, "holds example e0, and" in other.stderr) == (1, True)
    torch.save(torch.nn.Linear(2, 3), tmp_path / "module.pt")
    torch.save({"layers": [a]}, tmp_path / "list.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "f.pt").read_bytes()[:300])
    for name in ("module.pt", "list.pt", "torn.pt"):
        refused = here("compare", tmp_path / name)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        assert refused.stderr.startswith(f"nngp-zoo: NAME: {tmp_path / name} cannot be read as features: it")


def test_files_of_torch_without_torch(tmp_path, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "f.pt").touch()
    refused = here("compare", tmp_path / "f.pt")
    told = f"nngp-zoo: NAME: {tmp_path / 'f.pt'} is a file of PyTorch; run: pip install torch\n"
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", told)
