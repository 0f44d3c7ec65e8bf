"""Kernels that a run keeps: each is read as it was, or an error names its step."""

import json
import shutil

import numpy as np
import pytest
from helpers.disk import largest_file
from helpers.lines import as_version_0_1_0

import nngp_plugins as nngp

# Whole numbers, so that products are exact.
X = (np.arange(40).reshape(5, 8) % 7 - 3).astype(np.float32)
METRICS = {"scale": nngp.metrics.DEFAULT["scale"]}


def tracker(run, layers=("a", "b"), **options):
    def f(w, x):
        return {name: (1 + i) * w * (x if i % 2 else x[:, :4]) for i, name in enumerate(sorted(layers))}

    options = {"schedule": nngp.every(1), "metrics": METRICS, "keep_kernels": True, **options}
    return nngp.KernelTracker(f, X, run=run, **options)


def expected(layers, layer, step):
    i = sorted(layers).index(layer)
    y = (1 + i) * (1.0 + step) * (X if i % 2 else X[:, :4]).astype(np.float64)
    return y @ y.T / y.shape[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = tmp_path_factory.mktemp("made") / "run"
    with tracker(run) as seen:
        for step in range(3):
            seen(step, 1.0 + step)
    return run


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def test_those_that_the_disk_did_not_take(tmp_path):
    with tracker(tmp_path, queue_bytes=1) as seen:  # which is no room to hold them until the disk takes them
        seen(0, 1.0)
        seen.flush()
        with largest_file(50):
            seen(1, 2.0)
            with pytest.warns(UserWarning, match="the kernels of step 1 are not kept|can't be written") as said:
                seen.flush()
        assert len(said) == 2
        seen(2, 3.0)
    history = nngp.History.load(tmp_path)
    for layer in "ab":
        for step in (0, 2):
            np.testing.assert_allclose(history.kernel(layer, step), expected("ab", layer, step), rtol=1e-5)
        with pytest.raises(ValueError, match=rf"lacks the kernel of layer '{layer}' at step 1, which the disk did not"):
            history.kernel(layer, 1)


@pytest.mark.parametrize("layer", ["a", "b"])
def test_those_of_another_step_or_layer(run, layer):
    """The file of another snapshot is whole, so that only what the line says of it tells them apart."""
    assert nngp.History.load(run).rows[0].keys() >= {"kept_crc32"}
    folder = run / "kernels" / layer
    (chunk,) = (path.relative_to(folder / "c" / "1") for path in (folder / "c" / "1").rglob("*") if path.is_file())
    shutil.copy(folder / "c" / "1" / chunk, folder / "c" / "2" / chunk)
    history = nngp.History.load(run)
    file = folder / "c" / "2" / chunk
    with pytest.raises(
        ValueError, match=f"{file} is not what was written there, so that the kernel of layer '{layer}'"
    ):
        history.kernel(layer, 2)
    np.testing.assert_allclose(history.kernel(layer, 1), expected("ab", layer, 1), rtol=1e-5)


@pytest.mark.parametrize("later", [True, False], ids=["before a later one", "by close"])
def test_those_that_the_disk_takes_in_the_end(tmp_path, later):
    with tracker(tmp_path) as seen:
        seen(0, 1.0)
        seen.flush()
        with largest_file(50):
            for step in (1, 2):
                seen(step, np.float32(1e-30 if step == 2 else 2.0))  # the second one has an exponent
            with pytest.warns(UserWarning, match="the kernels of step 1 are not kept|can't be written"):
                seen.flush()
        with pytest.raises(ValueError, match="lacks the kernel of layer 'a' at step 1, which the disk did not take"):
            seen.history.kernel("a", 1)
        if later:
            seen(3, 4.0)
            seen.flush()
            np.testing.assert_allclose(seen.history.kernel("a", 1), expected("ab", "a", 1), rtol=1e-5)
    history = nngp.History.load(tmp_path)
    for layer in "ab":
        for step in (0, 1, 3)[: 2 + later]:
            np.testing.assert_allclose(history.kernel(layer, step), expected("ab", layer, step), rtol=1e-5)
        small = expected("ab", layer, 0) * float(np.float32(1e-30)) ** 2
        np.testing.assert_allclose(history.kernel(layer, 2), small, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:the kernels? of layers?:UserWarning")
def test_those_that_are_not_finite(tmp_path):
    with tracker(tmp_path) as seen:
        seen(0, 1.0)
        seen(1, np.float32("nan"))
    history = nngp.History.load(tmp_path)
    assert np.isnan(history.kernel("a", 1)).all()
    assert np.isnan(history.kernel("b", 1)).all()
    for file in tmp_path.glob("kernels/*/c/1/0/0"):
        file.unlink()
    with pytest.raises(ValueError, match="lacks the kernel of layer 'a' at step 1"):
        history.kernel("a", 1)
    # Version 0.1.0 did not write a chunk that is nan all over, and its array of steps has another fill value.
    meta = tmp_path / "kernels/step/zarr.json"
    meta.write_text(meta.read_text().replace("-9223372036854775808", "0"))
    assert np.isnan(history.kernel("b", 1)).all()


@pytest.mark.parametrize("old", [False, True])
def test_rows_of_a_process_that_was_killed_do_not_count(run, old, tmp_path):
    """The line of step 2 never became whole, and the disk then refuses the kernels of the snapshot in its place."""
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:2]))
    if old:
        as_version_0_1_0(run)
    with tracker(run) as seen:
        (run / "kernels/a/c/2").rename(tmp_path / "away")
        (run / "kernels/a/c/2").write_text("in the way")
        seen(2, 30.0)
        with pytest.warns(UserWarning, match="the kernels of step 2 are not kept"):
            seen.flush()
        for layer in "ab":
            with pytest.raises(ValueError, match=f"lacks the kernel of layer '{layer}' at step 2"):
                seen.history.kernel(layer, 2)


@pytest.mark.parametrize("size", [0, 50, 103, 105, 10_000])
def test_a_chunk_of_another_size(run, size):
    (run / "kernels/b/c/1/0/0").write_bytes(b"\0" * size)
    with pytest.raises(ValueError, match=r"kernels/b/c/1/0/0 is damaged, so that the kernel of layer 'b' at step 1"):
        nngp.History.load(run).kernel("b", 1)
    np.testing.assert_allclose(nngp.History.load(run).kernel("b", 2), expected("ab", "b", 2), rtol=1e-5)


def test_a_chunk_with_another_bit(run):
    file = run / "kernels/b/c/1/0/0"
    whole = file.read_bytes()
    for position in range(0, len(whole), 9):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=r"kernels/b/c/1/0/0 is damaged, so that the kernel .* at step 1 is lost"):
            nngp.History.load(run).kernel("b", 1)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3, 10**6, 10**6]},
        {"shape": [3, 5, -1]},
        {"shape": "5"},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}]},
        {"attributes": {"name": ["b"]}},
        {"attributes": None},
        {"data_type": "string"},
    ],
    ids=str,
)
def test_a_description_that_no_tracker_wrote(run, change):
    file = run / "kernels/b/zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=r"kernels/b/.* is damaged"):
        nngp.History.load(run).kernel("b", 1)


LONG = ["layer/" * 50 + "a", "layer/" * 50 + "b", "L" + "ayer/" * 60, "ö" * 200, "short"]


def test_names_longer_than_a_file_name(tmp_path):
    with tracker(tmp_path, LONG) as seen:
        seen(0, 1.0)
    with tracker(tmp_path, LONG) as seen:
        seen(1, 2.0)
    history = nngp.History.load(tmp_path)
    for layer in LONG:
        for step in (0, 1):
            np.testing.assert_allclose(history.kernel(layer, step), expected(LONG, layer, step), rtol=1e-5, atol=1e-6)
    folders = [path.name for path in (tmp_path / "kernels").iterdir() if path.is_dir()]
    assert len(folders) == len(LONG) + 1
    assert max(map(len, folders)) <= 255


def test_an_array_belongs_to_the_layer_of_its_name(tmp_path):
    """The folders of a.b and a/b have names by the order in which the layers came first."""

    x, options = X, {"schedule": nngp.every(1), "metrics": METRICS, "keep_kernels": True, "run": tmp_path}
    with nngp.KernelTracker(lambda w, x: {"a.b": w * x, "a/b": 2 * w * x}, x, **options) as seen:
        seen(0, 1.0)
    names = {
        json.loads((path / "zarr.json").read_text())["attributes"]["name"]: path
        for path in (tmp_path / "kernels").iterdir()
        if path.is_dir()
    }
    first, second = names["a.b"], names["a/b"]
    first.rename(tmp_path / "kernels/other")
    second.rename(first)
    with nngp.KernelTracker(lambda w, x: {"a.b": w * x, "a/b": 2 * w * x}, x, **options) as seen:
        seen(1, 2.0)
    for step in (0, 1):
        kernel = (1.0 + step) ** 2 * X.astype(np.float64) @ X.T / 8
        np.testing.assert_allclose(seen.history.kernel("a.b", step), kernel, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(seen.history.kernel("a/b", step), 4 * kernel, rtol=1e-5, atol=1e-6)


def test_exponents_of_layers_by_name(tmp_path):
    """Kernels that leave the range of float32 are held with an exponent, by layer, from some row on."""
    options = {"schedule": nngp.every(1), "metrics": METRICS, "keep_kernels": True, "run": tmp_path}
    w = np.float32(1)
    with nngp.KernelTracker(lambda w, x: {"far": w * x, "near": x}, X, **options) as seen:
        seen(0, w)
        seen(1, w * np.float32(1e-30))
    history = nngp.History.load(tmp_path)
    kernel = X.astype(np.float64) @ X.T / 8
    np.testing.assert_allclose(history.kernel("far", 0), kernel, rtol=1e-6)
    np.testing.assert_allclose(history.kernel("far", 1), kernel * np.float64(np.float32(1e-30)) ** 2, rtol=1e-5)
    np.testing.assert_allclose(history.kernel("near", 1), kernel, rtol=1e-6)
    exponents = tmp_path / "kernels" / "-exponent"
    assert json.loads((exponents / "zarr.json").read_text())["attributes"]["first_row"] == 1
    (exponents / "c/1/0").unlink()
    np.testing.assert_allclose(history.kernel("far", 0), kernel, rtol=1e-6)
    with pytest.raises(ValueError, match="lacks a row, so that the kernel of layer 'far' at step 1 is lost"):
        history.kernel("far", 1)
