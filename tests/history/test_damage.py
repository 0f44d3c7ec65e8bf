"""Run folders that are damaged, that others wrote, or that somebody has prepared: what is read is right or refused."""

import contextlib
import json
import os
import re
import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.lines import as_version_0_1_0, line_of, write_lines

import nngp_plugins as nngp
from nngp_plugins.history import StoredRun

pytestmark = pytest.mark.once

X = np.cos(np.arange(20.0).reshape(5, 4)).astype(np.float32)
METRICS = {"scale": nngp.metrics.DEFAULT["scale"]}
NAMES = ["run.json", "metrics.jsonl", "reference.npz", "last.npz"]


def tracker(run, **options):
    def f(w, x):
        return {"a": w * x, "b": w * x + 1}

    options = {"schedule": nngp.every(1), "metrics": METRICS, **options}
    return nngp.KernelTracker(f, X, run=run, targets=np.arange(5), **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = tmp_path_factory.mktemp("made") / "run"
    with tracker(run, keep_kernels=True) as seen:
        for step in range(3):
            seen(step, 1.0 + step, loss=0.5)
    return run


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def flip(file, position, bit):
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(data)


class TestLines:
    def test_every_byte(self, run):
        """A bit that flips is noticed, and the message names the file and the line."""
        file, rows = run / "metrics.jsonl", nngp.History.load(run).rows
        whole = file.read_bytes()
        for position in range(len(whole) - 1):
            flip(file, position, position % 8)
            where = whole[:position].count(b"\n") + 1
            # A flip may make the end of a line of another byte, or another byte of the end of a line.
            where = rf"{where}|{where + 1}" if whole[position : position + 1] == b"\n" else where
            with pytest.raises(ValueError, match=rf"{run}/metrics\.jsonl is damaged in line ({where}): "):
                nngp.History.load(run)
            file.write_bytes(whole)
        assert nngp.History.load(run).rows == rows

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"step": 0}, "step 0 does not come after step 0"),
            ({"step": -1}, "step -1 does not come after step 0"),
            ({"step": 1.5}, "step 1.5 is not a whole number"),
            ({"step": "1"}, "step '1' is not a whole number"),
            ({"step": True}, "step True is not a whole number"),
            ({"step": 2**63}, "step 9223372036854775808 is not a whole number"),
            ({"seconds": None}, "'seconds' is not a number"),
            ({"loss": [1]}, "'loss' is not a number"),
            ({"loss": 10**400}, "'loss' is not a number"),
            ({"diverged": "a"}, "diverged is not a list of layers"),
            ({"reference_of": [1]}, "reference_of is not a list of layers"),
        ],
        ids=str,
    )
    def test_what_no_tracker_writes(self, run, change, reason):
        rows = nngp.History.load(run).rows
        write_lines(run, [rows[0], {**rows[1], **change}])
        for read in (nngp.History.load, nngp.write_report, lambda run: tracker(run, keep_kernels=True)):
            with pytest.raises(ValueError, match=re.escape(f"{run}/metrics.jsonl is damaged in line 2: {reason}")):
                read(run)

    @pytest.mark.parametrize("line", ["{}", "[]", "1", "", '{"step": 1}', "[" * 100_000, "\ud800"], ids=lambda v: v[:9])
    def test_what_is_no_row(self, run, line):
        as_version_0_1_0(run)
        with (run / "metrics.jsonl").open("ab") as file:
            file.write(line.encode(errors="surrogatepass") + b"\n")
        with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged in line 4: "):
            nngp.History.load(run)

    def test_a_line_without_its_checksum(self, run):
        rows = nngp.History.load(run).rows
        text = "".join(map(line_of, rows[:2])) + json.dumps(rows[2]) + "\n"
        (run / "metrics.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged in line 3: it has no checksum"):
            nngp.History.load(run)

    def test_a_folder_of_version_0_1_0_goes_on(self, run):
        """Its lines have no checksums, and those that are added have."""
        as_version_0_1_0(run)
        before = (run / "metrics.jsonl").read_text()
        with tracker(run, keep_kernels=True) as seen:
            seen(3, 4.0, loss=0.5)
        after = (run / "metrics.jsonl").read_text()
        assert after == before + line_of(seen.history.rows[3])
        assert nngp.History.load(run).steps.tolist() == [0, 1, 2, 3]
        (run / "metrics.jsonl").write_text(before + json.dumps(seen.history.rows[3]) + "\n")
        with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged in line 4: it has no checksum"):
            nngp.History.load(run)

    def test_a_scalar_may_not_have_the_name_of_the_checksum(self, tmp_path):
        with tracker(tmp_path) as seen, pytest.raises(ValueError, match="'crc32' has a name of the tracker's own"):
            seen(0, 1.0, crc32=1)


class TestFiles:
    def reads(self, run):
        return {
            "report": lambda: nngp.write_report(run),
            "resume": lambda: tracker(run, keep_kernels=True).close(),
        }

    @pytest.mark.parametrize("name", ["run.json", "reference.npz", "last.npz"])
    def test_cut_anywhere(self, run, name):
        whole = (run / name).read_bytes()
        for size in range(0, len(whole) - 2, max(1, len(whole) // 25)):
            (run / name).write_bytes(whole[:size])
            for read in self.reads(run).values():
                with pytest.raises(ValueError, match=rf"^{run / name} is damaged or missing: "):
                    read()

    @pytest.mark.parametrize("name", ["reference.npz", "last.npz"])
    def test_flipped_anywhere(self, run, name):
        """What is read is what was written, or an error names the file."""
        whole, good = (run / name).read_bytes(), StoredRun.load(run)
        found = 0
        for position in range(0, len(whole), 7):
            flip(run / name, position, position % 8)
            loaded = None
            with contextlib.suppress(ValueError):
                loaded = StoredRun.load(run)
            if loaded is None:
                found += 1
                with pytest.raises(ValueError, match=rf"^{run / name} is damaged"):
                    StoredRun.load(run)
            else:
                for array in ("before", "before_steps", "after", "targets"):
                    np.testing.assert_array_equal(getattr(loaded, array), getattr(good, array))
                assert (loaded.layers, loaded.after_step) == (good.layers, good.after_step)
            (run / name).write_bytes(whole)
        assert found > len(whole) / 7 / 2

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"1"], ids=lambda c: repr(c[:5]))
    def test_run_json_that_says_nothing(self, run, content):
        (run / "run.json").write_bytes(content)
        for read in (*self.reads(run).values(), lambda: nngp.History.load(run)):
            with pytest.raises(ValueError, match=rf"^{run}/run\.json is damaged or missing: "):
                read()

    @pytest.mark.parametrize(
        ("name", "value"), [("probe", 1), ("probe", {"n": 6}), ("versions", []), ("config", None), ("created", 1)]
    )
    def test_run_json_that_says_something_else(self, run, name, value):
        about = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**about, name: value}))
        with pytest.raises(ValueError, match=rf"^{run}/run\.json is damaged: "):
            nngp.write_report(run)

    def saved(self, run, **changes):
        with np.load(run / "reference.npz") as saved:
            arrays = {**saved, **changes}
        return {name: array for name, array in arrays.items() if array is not None}

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"layers": np.array(["a", "a"])}, "layers are not names, or one is there twice"),
            ({"layers": np.array(["a"])}, "there are 2 kernels of 1 layers"),
            ({"layers": np.array([b"a", b"b"])}, "layers are not names"),
            ({"kernels": np.zeros((2, 5, 4))}, r"kernels have the shape \(2, 5, 4\)"),
            ({"kernels": np.zeros((0, 0, 0))}, r"kernels have the shape \(0, 0, 0\)"),
            ({"centered": np.zeros((2, 5, 4))}, r"centered have the shape \(2, 5, 4\)"),
            ({"centered": np.array("x")}, r"centered have the shape \(\)"),
            ({"centered": None}, "centered or targets do not fit"),
            ({"steps": np.zeros(3)}, r"steps have the shape \(3,\)"),
            ({"step": np.array(1.5)}, "step is not a whole number"),
            ({"targets": np.zeros(4)}, "targets do not fit"),
            ({"targets": None}, "KeyError"),
        ],
    )
    def test_arrays_that_do_not_belong_together(self, run, changes, reason):
        np.savez(run / "reference.npz", **self.saved(run, **changes))
        for read in self.reads(run).values():
            with pytest.raises(ValueError, match=rf"reference\.npz is damaged or missing: .*{reason}"):
                read()

    def test_no_more_memory_than_the_file_takes(self, run):
        """A compressed file of zeros, and a header that says more than there is."""
        arrays = self.saved(run)
        np.savez_compressed(run / "reference.npz", **{**arrays, "kernels": np.zeros((2, 2000, 2000), np.float32)})
        with pytest.raises(ValueError, match=r"reference\.npz is damaged or missing: its arrays are larger than the"):
            nngp.write_report(run)
        np.savez_compressed(run / "reference.npz", noise=np.random.default_rng(0).bytes(10**6), **arrays)
        with pytest.raises(ValueError, match="is compressed or encrypted"):
            nngp.write_report(run)
        header = BytesIO()
        large = {"descr": "<f4", "fortran_order": False, "shape": (2, 10**6, 10**6)}
        np.lib.format.write_array_header_1_0(header, large)
        with zipfile.ZipFile(run / "reference.npz", "w") as members:
            members.writestr("kernels.npy", header.getvalue())
        with pytest.raises(ValueError, match=r"kernels\.npy is not of the size that it says"):
            nngp.write_report(run)

    def test_no_objects(self, run):
        np.savez(run / "last.npz", **self.saved(run, layers=np.array(["a", "b"], dtype=object)))
        with pytest.raises(ValueError, match=r"last\.npz is damaged or missing: layers\.npy holds objects"):
            nngp.write_report(run)


class TestOthers:
    @pytest.mark.parametrize(
        ("files", "told"),
        [
            ({"run.json": '{"my": "config"}', "reference.npz": "mine"}, "holds a run.json that no tracker wrote"),
            ({"run.json": '{"my": "config"}', "metrics.jsonl": '{"a": 1}\n{"b'}, "holds a run.json that no tracker"),
            ({"metrics.jsonl": '{"loss": 1}\n{"loss": 2}'}, "holds metrics.jsonl without run.json"),
            ({"metrics.jsonl": ""}, "holds metrics.jsonl without run.json"),
            ({"last.npz": "mine"}, "holds last.npz without run.json"),
        ],
    )
    def test_files_of_another_program(self, tmp_path, files, told):
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        with pytest.raises(FileExistsError, match=rf"^run='{tmp_path}' {told}.*; name another folder"):
            tracker(tmp_path)
        assert files_of(tmp_path) == {name: content.encode() for name, content in files.items()}

    def test_other_names_do_not_matter(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / "link").symlink_to("notes.txt")
        with tracker(tmp_path) as seen:
            seen(0, 1.0)
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_a_torn_run_that_is_refused_is_left_as_it_is(self, run):
        lines = (run / "metrics.jsonl").read_bytes()
        (run / "metrics.jsonl").write_bytes(lines[:-9])
        files = files_of(run)
        with pytest.raises(ValueError, match="is a run with other keep_kernels"):
            tracker(run)
        assert files_of(run) == files

    @pytest.mark.parametrize("name", [*NAMES, ".lock", "next.npz", "last.npz.new", "kernels"])
    def test_links(self, run, name, tmp_path):
        path = run / name
        if not path.exists():
            shutil.copy(run / "last.npz", path)
        path.rename(tmp_path / "outside")
        path.symlink_to(tmp_path / "outside")
        before = Path.stat(tmp_path / "outside").st_mtime_ns
        for use in (nngp.History.load, nngp.write_report, lambda run: tracker(run, keep_kernels=True)):
            with pytest.raises(ValueError, match=rf"^{path} is a symbolic link, which a run folder has none of"):
                use(run)
        assert Path.stat(tmp_path / "outside").st_mtime_ns == before

    @pytest.mark.parametrize("name", [*NAMES, ".lock", "next.npz"])
    def test_pipes_are_not_waited_for(self, run, name):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
        for use in (nngp.History.load, nngp.write_report, lambda run: tracker(run, keep_kernels=True)):
            with pytest.raises(ValueError, match=rf"^{run / name} is not a regular file"):
                use(run)

    @pytest.mark.parametrize("name", ["kernels/a", "kernels/a/zarr.json", "kernels/a/c", "kernels/a/c/1/0/0"])
    def test_links_among_the_kernels(self, run, name, tmp_path):
        (run / name).rename(tmp_path / "outside")
        (run / name).symlink_to(tmp_path / "outside")
        with pytest.raises(ValueError, match=r"is a symbolic link|is not a regular file"):
            nngp.History.load(run).kernel("a", 1)
        files = files_of(run)
        with pytest.raises(ValueError, match=rf"^{run / name} is a symbolic link"):
            tracker(run, keep_kernels=True)
        assert files_of(run) == files


class TestOrder:
    def test_the_kernels_of_a_file_by_name(self, run):
        with np.load(run / "last.npz") as saved:
            arrays, kernels = dict(saved), dict(zip(saved["layers"], saved["kernels"], strict=True))
        turned = nngp.history.in_order(arrays, ["b", "a"])
        assert turned["layers"].tolist() == ["b", "a"]
        np.testing.assert_array_equal(turned["kernels"], [kernels["b"], kernels["a"]])
        np.testing.assert_array_equal(turned["targets"], arrays["targets"])
        with pytest.raises(ValueError, match="layer 'c' is in the model alone"):
            nngp.history.in_order(arrays, ["a", "b", "c"])
        with pytest.raises(ValueError, match="layer 'b' is in the saved kernels alone"):
            nngp.history.in_order(arrays, ["a"])

    def test_the_report_finds_layers_by_name(self, run):
        """The layers of a run that went on may be in another order than those of its reference."""
        good = StoredRun.load(run)
        with np.load(run / "last.npz") as saved:
            arrays = dict(saved)
        for name in ("layers", "kernels", "centered"):
            arrays[name] = arrays[name][::-1]
        np.savez(run / "last.npz", **arrays)
        np.testing.assert_array_equal(StoredRun.load(run).after, good.after)
        assert StoredRun.load(run).layers == good.layers

    def test_the_report_labels_kernels_by_their_own_step(self, run):
        old = (run / "last.npz").read_bytes()
        with tracker(run, keep_kernels=True) as seen:
            seen(7, 8.0, loss=0.5)
        new = (run / "last.npz").read_bytes()

        def steps():
            page = nngp.write_report(run).read_text()
            return re.findall(r'"name":"(references|step \d+)"', page)

        assert steps() == ["references", "step 7"]
        (run / "last.npz").write_bytes(old)  # as a full disk leaves it
        assert steps() == ["references", "step 2"]
        (run / "next.npz").write_bytes(new)  # as a kill before the last rename leaves it
        assert steps() == ["references", "step 7"]
        np.testing.assert_allclose(StoredRun.load(run).after[0], 64 * StoredRun.load(run).before[0], rtol=1e-4)
