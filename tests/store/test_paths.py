"""Links, and names that lead or might lead outside of a store."""

import json
import os

import numpy as np
import pytest
from helpers.arrays import gram

import nngp_plugins as nngp

pytestmark = pytest.mark.once


def move_and_link(path, target):
    path.rename(target)
    path.symlink_to(target, target_is_directory=target.is_dir())


@pytest.mark.parametrize("name", ["kernel", "kernel/c", "kernel/c/1", "kernel/c/1/2", "kernel/zarr.json"])
def test_links_in_a_kernel(written, tmp_path, name):
    move_and_link(written.path / name, tmp_path / "outside")
    for use in (written.open, written.write):
        with pytest.raises(ValueError, match=rf"^{written.path / name} is a symbolic link, which a store has none of"):
            use()


@pytest.mark.parametrize("name", ["ledger.jsonl", "job.json", "zarr.json", ".lock"])
def test_links_beside_a_kernel(written, tmp_path, name):
    (written.path / name).touch()
    move_and_link(written.path / name, tmp_path / "outside")
    for use in (written.open, written.write):
        with pytest.raises(ValueError, match=rf"^{written.path / name} is a symbolic link, which a store has none of"):
            use()


@pytest.mark.parametrize("name", ["ledger.jsonl", "job.json", "zarr.json", ".lock", "kernel/zarr.json", "kernel/c/1/2"])
def test_pipes_are_not_waited_for(written, name):
    (written.path / name).unlink(missing_ok=True)
    os.mkfifo(written.path / name)
    for use in (written.open, written.write):
        with pytest.raises(
            ValueError, match=rf"^{written.path / name} is not a regular file, and a store has no others"
        ):
            use()


def test_a_link_in_its_place(written, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(written.path)
    for use in (lambda: nngp.open_kernel(link), lambda: written.write(path=link)):
        with pytest.raises(ValueError, match=rf"^{link} is a symbolic link; pass the folder .* to, {written.path}\.$"):
            use()
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match=r"link' exists and holds no kernel; name another folder"):
        written.write(path=link)


OUTSIDE = ["../x", "..", ".", "", "/etc", "a/b", "a\\b", "../k.zarr/kernel", "~", "a\0", "kernel\n", " ", ".lock"]
OUTSIDE += [None, 1.5, ["x"]]


@pytest.mark.parametrize("component", OUTSIDE, ids=repr)
def test_a_job_that_names_another_folder(written, component):
    job = json.loads(written.job.read_text())
    job["arrays"][0]["component"] = component
    written.job.write_text(json.dumps(job))
    files = written.files()
    with pytest.raises(ValueError, match=r"job\.json names the folder .*, which is not one of this store\.$"):
        written.open()
    with pytest.raises(ValueError, match=r"holds a kernel of other arrays \(stored "):
        written.write()
    assert written.files() == files


NAMES = ["../../etc/x", "a b", "ü", "é", "a/b", "a.b", "a.b-2", "a.b-3", "A.B", "/root", "..", "c", "kernel"]
NAMES += ["job.json", "zarr.json", "ledger.jsonl", ".lock", "x.__lock", "con\n", "--", "*?", "a\\b", "zarr.json.new"]


def test_outputs_of_any_name(small, tmp_path):
    others = set(tmp_path.iterdir())
    factors = dict(zip(NAMES, range(1, 100), strict=False))

    def f(params, x):
        return {name: (x @ params) * factor for name, factor in factors.items()}

    store = small.write(f)
    assert set(tmp_path.iterdir()) == {*others, small.path}
    folders = [path.name.lower() for path in small.path.iterdir() if path.is_dir()]
    assert len(folders) == len(set(folders)) == len(NAMES)
    assert set(store.arrays) == set(NAMES)
    kernel = gram(small.x1.astype(np.float64) @ small.params)
    for name, factor in factors.items():
        np.testing.assert_allclose(store[name][...] / factor**2, kernel, rtol=0, atol=1e-5)
    small.tile(0, 0, name="kernel").unlink()
    small.write(f).verify()


@pytest.mark.parametrize("name", ["../up.zarr", "./here.zarr", "a b/ü?#*.zarr", "a/../k.zarr/", "%2e%2e/k.zarr"])
def test_folders_of_any_name(small, finished, files_of, tmp_path, monkeypatch, name):
    here = tmp_path / "here"
    (here / "a").mkdir(parents=True)
    monkeypatch.chdir(here)
    small.write(path=name).verify()
    assert nngp.open_kernel(name)[0, 0] == small.write(path=here / name)[0, 0]
    assert files_of(here / name) == finished


def test_a_folder_that_is_taken_by_the_name_of_another_output(small):
    store = small.write(lambda params, x: {"a.b": x, "a.b-2": x @ params, "a/b": x[:, :1]})
    store.verify()
    np.testing.assert_allclose(store["a/b"][...], small.x1[:, :1] * small.x1[:, 0], rtol=1e-6)
    assert len([path for path in small.path.iterdir() if path.is_dir()]) == 3


def test_names_longer_than_a_file_name(small):
    """Cross terms have names twice as long."""
    names = ["layer/" * 50 + "a", "layer/" * 50 + "b", "LAYER/" * 50 + "a", "x" * 256]
    factors = dict(zip(names, (1, 2, 3, 4), strict=True))
    kernel_fn = nngp.empirical_nngp_fn(lambda params, x: {name: x * factors[name] for name in names}, cross_terms=True)
    store = small.write(x2=small.x2, kernel_fn=kernel_fn)
    kernel = small.x1.astype(np.float64) @ small.x2.T / 5
    for one in names:
        for other in names:
            expected = factors[one] * factors[other] * kernel
            np.testing.assert_allclose(store[f"{one}--{other}"][...], expected, rtol=0, atol=1e-4)
    folders = [path.name for path in small.path.iterdir() if path.is_dir()]
    assert len({folder.lower() for folder in folders}) == len(folders) == 16
    assert max(map(len, folders)) <= 255
    small.tile(0, 0, name=folders[3]).unlink()
    small.write(x2=small.x2, kernel_fn=kernel_fn).verify()
