"""Data sets of two hubs, from folders and tables that the libraries of these hubs write."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

import zoo

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 5, 6), np.uint8)
VECTORS = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
LABELS = np.arange(40) % 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:", "'hf:' must have the form hf:NAME, hf:./FOLDER or tfds:NAME, and after it ,config=NAME"),
        ("tfds:mnist,label", "'tfds:mnist,label' must have the form"),
        ("hf:a/b,z=c", "'hf:a/b,z=c' must have the form"),
        ("hf:./no", "'hf:./no': there is no folder './no'."),
        ("hf:a/b", "'hf:a/b' needs the package datasets; run: pip install datasets"),
        ("tfds:mnist", "'tfds:mnist' needs the package tensorflow-datasets; run: pip install tensorflow-datasets"),
    ],
)
def test_refused_before_anything_is_loaded(here, tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.data.hub.find_spec", lambda name: None)
    command = here("track", "linen/mlp", "--data", name, "--run", "run")
    assert (command.returncode, command.stdout, command.stderr.count("\n")) == (2, "", 1)
    assert command.stderr.startswith(f"nngp-zoo: --data: {message}")
    assert not (tmp_path / "run").exists()


def assert_named(data, inputs):
    """Each id is that of its own example, and test examples are no training examples."""
    assert not {*data.train_ids} & {*data.test_ids}
    for x, y, ids in ((data.train_x, data.train_y, data.train_ids), (data.test_x, data.test_y, data.test_ids)):
        rows = [int(name.split("/")[1]) for name in ids]
        np.testing.assert_array_equal(x[:], inputs[rows])
        np.testing.assert_array_equal(y, LABELS[rows])


@pytest.fixture
def table():
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    names = datasets.ClassLabel(names=["cat", "dog", "eel", "fox"])
    features = {"picture": datasets.Image(), "kind": names, "group": names, "name": datasets.Value("string")}
    columns = {"picture": [image.fromarray(a) for a in IMAGES], "kind": LABELS, "group": LABELS // 2}
    columns["name"] = ["some text"] * 40
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def test_hugging_face_saved_to_disk(table, tmp_path):
    """Test examples without labels are passed over; of several labels, the name of the data says which."""
    import datasets

    hidden = table.remove_columns("kind").add_column("kind", [-1] * 40, feature=table.features["kind"])
    few = table.remove_columns("group")
    datasets.DatasetDict({"train": few, "test": hidden, "validation": few}).save_to_disk(tmp_path / "three")
    data = zoo.load(f"hf:{tmp_path}/three")
    assert data.spec == zoo.Spec((5, 6, 1), 4)
    assert {name.split("/")[0] for name in data.test_ids} == {"validation"}
    assert_named(data, (IMAGES / np.float32(255))[..., None])
    table.save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match=r"add ,y=COLUMN to its name .*picture \(Image\), kind \(ClassLabel\), group"):
        zoo.load(f"hf:{tmp_path}/one")
    with pytest.raises(ValueError, match=r"it has no column 'picure'; its columns are picture \(Image\)"):
        zoo.load(f"hf:{tmp_path}/one,x=picure")
    one = zoo.load(f"hf:{tmp_path}/one,y=kind")
    assert (len(one.train_x), len(one.test_x)) == (32, 8)
    assert_named(one, (IMAGES / np.float32(255))[..., None])


def test_hugging_face_folders(table, tmp_path):
    """A folder of pictures in folders of classes, and one of tables without class labels."""
    for i, row in enumerate(table):
        folder = tmp_path / "pictures" / "catdogeelfox"[3 * row["kind"] : 3 * row["kind"] + 3]
        folder.mkdir(parents=True, exist_ok=True)
        row["picture"].save(folder / f"{i:02}.png")
    data = zoo.load(f"hf:{tmp_path}/pictures")
    assert (data.classes, data.spec.shape, len(data.test_x)) == (4, (5, 6, 1), 8)
    by_class = np.argsort(LABELS, kind="stable")
    for x, y, name in zip(data.train_x[:], data.train_y, data.train_ids, strict=True):
        i = by_class[int(name.split("/")[1])]
        np.testing.assert_array_equal(x[..., 0], IMAGES[i] / np.float32(255))
        assert y == LABELS[i]
    table = table.remove_columns(["picture", "group", "kind"]).add_column("v", VECTORS.tolist())
    table = table.add_column("label", LABELS)
    (tmp_path / "tables").mkdir()
    table.to_parquet(tmp_path / "tables" / "train.parquet")
    assert_named(zoo.load(f"hf:{tmp_path}/tables"), VECTORS)
    uneven = table.remove_columns("v").add_column("v", [[0.0] * (1 + i % 2) for i in range(40)])
    uneven.save_to_disk(tmp_path / "uneven")
    with pytest.raises(ValueError, match="the inputs in its column 'v' have different shapes"):
        zoo.load(f"hf:{tmp_path}/uneven")


VECTORS_OF_TFDS = """
import numpy as np
import tensorflow_datasets as tfds

class Vectors(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        v, label = tfds.features.Tensor(shape=(3,), dtype=np.float32), tfds.features.ClassLabel(num_classes=4)
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"v": v, "label": label}))

    def _split_generators(self, downloads):
        return {"train": self._generate_examples(40), "test": self._generate_examples(20)}

    def _generate_examples(self, n):
        for i in range(n):
            yield i, {"v": np.full(3, n + i, np.float32), "label": i % 4}
"""


def test_tensorflow_datasets(tmp_path):
    """One process prepares the data, and another finds them by their name."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        pytest.skip("tensorflow-datasets is not installed")
    package = tmp_path / "vectors"
    package.mkdir()
    for name in ("README.md", "TAGS.txt", "CITATIONS.bib"):
        (package / name).touch()
    (package / "__init__.py").write_text(VECTORS_OF_TFDS)
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path / "data")}
    write = "import vectors; vectors.Vectors(file_format='array_record').download_and_prepare()"
    read = "import numpy, zoo; d = zoo.load('tfds:vectors'); x, test_x = d.train_x[:], d.test_x[:]; "
    read += (
        "numpy.savez('d.npz', x=x, y=d.train_y, ids=d.train_ids, test_x=test_x, test_y=d.test_y, test_ids=d.test_ids)"
    )
    for script, folders in ((write, ()), (read, sys.path)):
        path = os.pathsep.join([*folders, *environment.get("PYTHONPATH", "").split(os.pathsep)])
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment | {"PYTHONPATH": path}, check=True)
    data = np.load(tmp_path / "d.npz")
    for n, prefix in ((40, ""), (20, "test_")):
        x, y, ids = (data[prefix + key] for key in ("x", "y", "ids"))
        np.testing.assert_array_equal(np.sort(x, axis=0), np.arange(n, 2 * n)[:, None].repeat(3, axis=1))
        np.testing.assert_array_equal(y, x[:, 0].astype(int) % 4)
        assert {*ids} == {f"{prefix.removesuffix('_') or 'train'}/{i}" for i in range(n)}


@pytest.mark.parametrize(("name", "package"), [("hf:no/where", "datasets"), ("tfds:mnist", "tensorflow_datasets")])
def test_without_a_network(tmp_path, name, package):
    """It is said within seconds, in one line. A proxy that nobody answers stands for the missing network."""
    pytest.importorskip(package)
    gone = dict.fromkeys(("HF_ENDPOINT", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = os.environ | gone | {"HF_HOME": str(tmp_path), "TFDS_DATA_DIR": str(tmp_path)}
    words = [sys.executable, "-m", "zoo", "track", "linen/mlp", "--data", name, "--run", str(tmp_path / "run")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(
        f"nngp-zoo: --data: {name!r} cannot be loaded: it is not on this machine"
    )
