import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

pytestmark = pytest.mark.once
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CHEAP = {"import_time": 1, "rectangular": 1, "spatial": 2, "symmetric": 1}  # with the number of cases


BROKEN = """
import atexit
import os
from functools import partial
from pathlib import Path

from harness import Case, Contender, ratio

def same(number, n):
    atexit.register(Path("%s", f"ended {number}").touch)
    return lambda: [number] * n

def ends(n):
    return lambda: os._exit(3)

def refuses(n):
    raise ValueError("no such kernel")

CASES = [
    Case(
        "{n} numbers",
        {
            "floor": Contender(partial(same, 1.0), "of {n}"),
            "once": Contender(partial(same, 1.0), "", rounds=1),
            "other": Contender(partial(same, 2.0), "", fresh=True),
            "ends": Contender(ends, "", fresh=True),
            "refuses": Contender(refuses, ""),
            "peer": Contender(refuses, "", peer=True),
        },
        [ratio("other", "floor", at_least=0), ratio("refuses", "floor"), ratio("once", "other", of="peak")],
        sizes={"n": 1000},
    )
]
"""


def harness(*arguments):
    command = [sys.executable, str(BENCHMARKS / "harness.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def modules(monkeypatch):
    """The harness's own files, to import."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = ("harness", "_process", "_results", "accelerator")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in ("harness", "_process", "_results", "_device", "accelerator", "accelerator._compare", "broken"):
        sys.modules.pop(name, None)


@pytest.mark.exhaustive
def test_the_cheap_ones(tmp_path):
    """Ratios are those of the medians to the fastest floor; results of others stay, old ones of the same go."""
    stale = {"date": "", "machine": "an old one", "quick": True, "cases": []}
    (tmp_path / "results.json").write_text(json.dumps({"symmetric": stale, "zebra": stale}))
    done = harness(*CHEAP, "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == sorted([*CHEAP, "zebra"])
    assert results.pop("zebra") == stale
    assert {name: len(record["cases"]) for name, record in results.items()} == CHEAP
    assert {record["machine"] for record in results.values()} == {results["spatial"]["machine"]} != {"an old one"}
    for case in (case for record in results.values() for case in record["cases"]):
        check(case)
    page = (tmp_path / "results.md").read_text()
    assert "symmetric contraction, N=256, D=64, float32 | ours / floor | ≤ 0.58 |" in page
    # two tables; a target for each case; contenders
    assert sum(line.startswith("|") for line in page.splitlines()) == 2 * 2 + 5 + 3 * 2 + 2 * 5
    assert page.count("quick: Python") == 1


def check(case):
    assert case["disagree"] is None
    for entry in case["contenders"].values():
        assert len(entry["samples"]) == 2
        assert all(0 < sample["seconds"] < 20 for sample in entry["samples"])
        assert all(sample["peak"] >= sample["growth"] for sample in entry["samples"])
        assert {"Python", "jax", "numpy"} <= set(entry["versions"])
    seconds = {who: [sample["seconds"] for sample in entry["samples"]] for who, entry in case["contenders"].items()}
    medians = {who: sum(pair) / 2 for who, pair in seconds.items()}
    floor = min((who for who in seconds if who.startswith("floor")), key=medians.get)
    (target,) = case["targets"]
    assert target["value"] == pytest.approx(medians["ours"] / medians[floor])
    assert target["rounds"] == pytest.approx([a / b for a, b in zip(seconds["ours"], seconds[floor], strict=True)])
    assert target["reached"] == (target["value"] <= target["at_most"])


def test_what_fails_or_disagrees_is_reported_and_the_others_go_on(modules, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(BROKEN % tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    case = importlib.import_module("broken").CASES[0]
    monkeypatch.setattr(modules.harness, "peer_python", lambda say: ("", "not here"))
    result = modules.harness.compare("broken", 0, case, 3, False, lambda text: None)
    entries = result["contenders"]
    assert [len(modules._results.taken(entry["samples"])) for entry in entries.values()] == [3, 1, 3, 0, 0, 0]
    assert entries["floor"]["about"] == "of 1000"
    assert entries["ends"]["failed"].endswith("(exit status 3)")
    assert entries["refuses"]["failed"] == "ValueError: no such kernel (exit status 1)"
    assert result["disagree"] == "floor 1, once 1, other 2"
    other, refused, once = result["targets"]
    assert (other["reached"], len(other["rounds"])) == (True, 3)
    assert (refused["value"], refused["reached"]) == (None, None)
    assert (once["reached"], len(once["rounds"])) == (None, 1)  # no limit; the one round that it took part in
    lines, bad = modules._results.summary(result)
    assert bad
    # Processes end by themselves, so that they remove their files.
    assert {path.name for path in tmp_path.glob("ended *")} == {"ended 1.0", "ended 2.0"}
    assert lines[0] == "1000 numbers"
    assert "  peer: – skipped: not here" in lines
    assert any("the results are not the same" in line for line in lines)


@pytest.mark.parametrize("there", [True, False])
def test_a_peer_that_cannot_be_built_is_left_out(modules, there, tmp_path, monkeypatch):
    python = tmp_path / "python3.11"
    python.write_text("#!/bin/sh\n[ $1 = -c ] && echo True || { echo no room >&2; exit 1; }\n")
    python.chmod(0o755)
    monkeypatch.setattr(modules._process, "PEER", tmp_path / "peer")
    monkeypatch.setattr(modules._process, "candidates", lambda: ["absent", str(python)] if there else ["absent"])
    said = []
    missing = "the environment of the peer could not be built: no room"
    if not there:
        missing = "the peer needs Python 3.11, which is not here"
    assert modules._process.peer_python(said.append) == ("", missing)
    assert said == ["building peer for neural-tangents, which takes minutes"] * there


def test_the_peak_is_that_of_the_run(modules):
    size = 200_000_000

    def run():
        return {"bytes": len(b"\1" * size)}

    sample = modules._process.measured(run)
    if Path("/proc/self/clear_refs").exists():
        assert 150_000_000 < sample["growth"] < 450_000_000
    assert sample["bytes"] == size


def test_a_benchmark_that_is_not_there_is_refused():
    done = harness("symetric")
    assert done.returncode == 2
    assert "no benchmark symetric; there are" in done.stderr


@pytest.fixture
def no_accelerator(monkeypatch):
    """Whatever this machine has."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.exhaustive
def test_the_rows_of_an_accelerator_in_small(modules, tmp_path):
    """All of them run in one process on the CPU; the rows and the page name the device."""
    (tmp_path / "results.md").write_text("those of make bench")
    done = harness("--accelerator", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    results = json.loads((tmp_path / "results-accelerator.json").read_text())
    assert set(results) == set(modules.accelerator.ROWS)
    number_of_cases = {"tracking": 3, "symmetric": 4, "sizes": 6, "resnet50": 2, "layers": 2, "spatial": 2}
    for name, record in results.items():
        assert len(record["cases"]) == number_of_cases.get(name, 1)
        for case in record["cases"]:
            check_row(case)
    printed = done.stdout.splitlines()
    assert [line for line in printed if line.endswith(")") and "(cpu, JAX" in line and not line.startswith(" ")] == [
        f"{name} (cpu, JAX {jax.__version__})" for name in modules.accelerator.ROWS
    ]
    assert printed[-1].startswith("total: ")
    page = (tmp_path / "results-accelerator.md").read_text()
    assert page.startswith("# Benchmarks on an accelerator")
    assert "- cpu, " in page
    assert (tmp_path / "results.md").read_text() == "those of make bench"


def check_row(case):
    assert case["disagree"] is None
    for who, entry in case["contenders"].items():
        assert "failed" not in entry
        if "skipped" in entry:
            assert who.startswith(("TF32", "BF16")), entry["skipped"]
            assert entry["skipped"].startswith("the backend refuses it")
        else:
            assert all(0 < sample["seconds"] < 20 for sample in entry["samples"])
    for target in case["targets"]:
        assert target["value"] > 0
        assert target["rounds"]


@pytest.mark.usefixtures("no_accelerator")
def test_machines_without_an_accelerator_and_rows_without_their_library_or_time_are_named():
    """In one process, which has no Haiku."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); sys.modules['haiku'] = None; import harness\n"
    script += "for line in sys.argv[2:]: print('exit code', harness.main(['--accelerator', *line.split()]), flush=True)"
    lines = ("", "--quick layers", "--quick symmetric cka --budget 0")
    done = subprocess.run([sys.executable, "-c", script, BENCHMARKS, *lines], capture_output=True, text=True)
    nothing, missing, over, _ = re.split(r"exit code \d\n", done.stdout)
    assert nothing == "JAX finds no accelerator here; --accelerator --quick runs tiny sizes on the CPU.\n"
    assert missing.startswith("layers: skipped, because haiku is not installed\n")
    skipped = "skipped, because 0 s were over: "
    assert over.startswith(f"{skipped}symmetric\n{skipped}cka\n")
    assert re.findall(r"exit code (\d)", done.stdout) == ["1", "0", "0"]


def test_after_the_deadline_no_second_round_starts(modules, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(BROKEN % tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    case = importlib.import_module("broken").CASES[0]
    del case.contenders["ends"]  # it would end this process, too
    compare_here = importlib.import_module("accelerator._compare").compare_here
    for deadline, rounds in ((0, 1), (float("inf"), 3)):
        result = compare_here(case, 3, False, deadline)
        entries = result["contenders"]
        taken = {who: len(modules._results.taken(entry["samples"])) for who, entry in entries.items()}
        assert taken == {"floor": rounds, "once": 1, "other": rounds, "refuses": 0, "peer": 0}
        assert entries["refuses"]["failed"] == "ValueError: no such kernel"


@pytest.mark.usefixtures("modules")
def test_results_are_the_same_whatever_they_are_scaled_by():
    fingerprint = importlib.import_module("accelerator._compare").fingerprint
    kernel = jnp.arange(400.0).reshape(20, 20)
    assert fingerprint(kernel) == pytest.approx(fingerprint(kernel / 64))
    assert abs(fingerprint(kernel) - fingerprint(kernel.at[10].set(0))) > 1e-3
    assert fingerprint({"seconds": 1.0}) is None


def limit(path):
    if path.parent != BENCHMARKS:
        return 300
    return 250 if path.stem == "harness" else 100


BENCHMARK_FILES = sorted({*BENCHMARKS.glob("[!_]*.py"), *BENCHMARKS.glob("*/*.py")})


@pytest.mark.parametrize("path", BENCHMARK_FILES, ids=lambda path: path.stem)
def test_benchmarks_are_short(path):
    assert len(path.read_text().splitlines()) <= limit(path)
