"""Features on the disk, against plain NumPy: what a reader and a second call may rely on."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import normal

import nngp_plugins as nngp

X, PARAMS, IDS = normal(0, 11, 5), normal(2, 5, 6), [f"example {i}" for i in range(11)]


def network(params, x):
    hidden = jnp.tanh(x @ params)
    return {"hidden": hidden, "head": [jnp.stack([hidden, 2 * hidden], axis=1), hidden[:, :2]]}


def write(path, f=network, x=X, params=PARAMS, **options):
    """Three blocks of two batches."""
    options = {"batch_size": 2, "block_size": 4, "ids": IDS, "progress": False, **options}
    return nngp.write_features(f, x, params, path, **options)


def expected():
    hidden = np.tanh(X.astype(float) @ PARAMS.astype(float))
    wide = np.hstack([hidden, 2 * hidden])
    return {"hidden": hidden / np.sqrt(6), "head/0": wide / np.sqrt(12), "head/1": hidden[:, :2] / np.sqrt(2)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, files_of):
    """The files of the features, written without interruption."""
    path = tmp_path_factory.mktemp("finished") / "phi.zarr"
    write(path)
    return files_of(path)


@pytest.fixture
def path(tmp_path, finished):
    """The features, finished."""
    path = tmp_path / "phi.zarr"
    for name, content in finished.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def keep(path, count):
    """Leaves what a writer that was killed after some blocks leaves."""
    ledger = path / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:count]))
    names = "hidden", "head.0", "head.1"
    order = {array["name"]: array["component"] for array in json.loads((path / "job.json").read_text())["arrays"]}
    assert set(order.values()) == set(names)
    for line in lines[count:]:
        array, *chunk = json.loads(line)[1]
        path.joinpath(list(order.values())[array], "c", *map(str, chunk)).unlink()


def test_features_ids_and_structure(path):
    store = nngp.open_features(path)
    assert store.complete
    assert store.ids.tolist() == IDS
    assert store["hidden"].block_rows == 4
    for name, phi in expected().items():
        np.testing.assert_allclose(store[name][:], phi, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(store[name][[9, 0]], store[name][:][[9, 0]])
    tree = store.as_outputs()
    assert jax.tree.structure(tree) == jax.tree.structure({"hidden": 0, "head": [0, 0]})
    assert tree["head"][1].shape == (11, 2)
    store.verify()


def test_every_example_goes_through_the_network_once(tmp_path):
    rows = []

    def f(params, x):
        jax.debug.callback(lambda x: rows.append(len(x)), x)
        return network(params, x)

    store = write(tmp_path / "once.zarr", f, x=np.tile(X, (4, 1)), ids=None)
    jax.effects_barrier()
    # The check of one batch runs a few rows more.
    assert 44 <= sum(rows) <= 44 + 8
    assert store.ids.tolist() == list(range(44))


@pytest.mark.parametrize("count", [0, 4, 8])
def test_a_resumed_job_gives_the_same_bytes(path, finished, files_of, count):
    keep(path, count)
    with pytest.raises(ValueError, match=rf"is unfinished, {count / 9:.0%} of its blocks are written, as "):
        nngp.open_features(path)["hidden"][0]
    assert write(path).complete
    files = files_of(path)
    assert sorted(files.pop("ledger.jsonl").splitlines()) == sorted(finished["ledger.jsonl"].splitlines())
    assert files == {name: content for name, content in finished.items() if name != "ledger.jsonl"}


OTHER = {
    "x": ({"x": X + 1}, "x"),
    "params": ({"params": 2 * PARAMS}, "params"),
    "ids": ({"ids": list(range(11))}, "ids"),
    "dtype": ({"dtype": jnp.bfloat16}, "dtype (stored"),
    "outputs": ({"f": lambda params, x: x @ params}, "outputs (stored"),
    "batches": ({"batch_size": 4}, "batch_size (stored 2, asked 4)"),
    "blocks": ({"block_size": 2}, "block_size (stored 4, asked 2)"),
}


@pytest.mark.parametrize(("other", "said"), OTHER.values(), ids=OTHER)
def test_features_of_something_else_are_refused_by_name(path, other, said):
    with pytest.raises(ValueError, match=rf"holds features of other {re.escape(said)}"):
        write(path, **other)


def test_another_f_with_other_numbers(path):
    keep(path, 4)
    message = r"holds blocks of another f: one of them, computed again, has other numbers"
    with pytest.raises(ValueError, match=message):
        write(path, lambda params, x: jax.tree.map(lambda y: y * 1.5, network(params, x)))


def test_nan_is_named_with_layer_and_examples(tmp_path):
    x = X.copy()
    x[[3, 9], 0] = np.nan
    with pytest.raises(ValueError, match=r"output 'head/0' of f is NaN or infinite for x examples 3\."):
        write(tmp_path / "nan.zarr", x=x)
    store = nngp.open_features(tmp_path / "nan.zarr")
    assert store.fraction == 0


@pytest.mark.parametrize("damage", ["bit", "truncated", "foreign", "missing"])
def test_damage_is_refused_by_name(path, damage):
    file = path / "hidden" / "c" / "1" / "0"
    data = bytearray(file.read_bytes())
    if damage == "bit":
        data[5] ^= 1
    elif damage == "truncated":
        data = data[:-7]
    elif damage == "foreign":
        data = (path / "hidden" / "c" / "0" / "0").read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(data)
    store = nngp.open_features(path)
    with pytest.raises(ValueError, match=r"^features 'hidden' of .* are damaged: "):
        store["hidden"][4:6]
    with pytest.raises(ValueError, match=rf"^1 of 9 blocks are damaged or missing: {file};"):
        store.verify()
    np.testing.assert_allclose(store["head/1"][:], expected()["head/1"], rtol=1e-5, atol=1e-6)
    file.unlink(missing_ok=True)
    write(path).verify()


def test_damaged_ids_are_refused(path):
    file = path / "ids.json"
    for content in (file.read_text().replace("example 7", "example 8"), "[1, 2", '["a"]'):
        file.write_text(content)
        with pytest.raises(ValueError, match=rf"{file} is damaged or missing: .*; delete it and run write_features ag"):
            _ = nngp.open_features(path).ids
    file.unlink()
    assert write(path).ids.tolist() == IDS


def test_bfloat16_takes_half(tmp_path, path):
    store = write(tmp_path / "half.zarr", dtype=jnp.bfloat16)
    assert store["hidden"].dtype == jnp.bfloat16
    phi = nngp.open_features(path)["hidden"][:]
    np.testing.assert_array_equal(store["hidden"][:], phi.astype(jnp.bfloat16))
    sizes = [(folder / "hidden" / "c" / "0" / "0").stat().st_size - 4 for folder in (store.path, path)]
    assert sizes[0] * 2 == sizes[1]


def test_kernels_and_features_are_not_mixed_up(path, small):
    small.write()
    with pytest.raises(ValueError, match=r"holds features, and no kernel; open it with nngp\.open_features\."):
        nngp.open_kernel(path)
    with pytest.raises(ValueError, match=r"holds a kernel, and no features; open it with nngp\.open_kernel\."):
        nngp.open_features(small.path)
    with pytest.raises(FileNotFoundError, match=r"holds no features \(no job\.json\); write them with nngp\.write_fe"):
        nngp.open_features(path / "hidden")


BAD = {
    "ids": ({"ids": [1.5] * 11}, "must be an id for each of the N=11 examples"),
    "too few ids": ({"ids": [1]}, "must be an id for each of the N=11 examples"),
    "dtype": ({"dtype": int}, r"dtype='int\d\d' must be a dtype of real numbers"),
    "block_size": ({"block_size": 0}, "block_size=0 must be a positive number of examples"),
    "part": ({"part": (2, 2)}, r"part=\(2, 2\) must be \(i, n\): part i of n parts"),
    "a single number": ({"part": 2}, "part=2 must be"),
}


@pytest.mark.parametrize(("bad", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_the_folder_is_made(tmp_path, bad, said):
    with pytest.raises(ValueError, match=said):
        write(tmp_path / "bad.zarr", **bad)
    assert not (tmp_path / "bad.zarr").exists()
