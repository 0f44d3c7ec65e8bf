import os
import subprocess
import sys
from pathlib import Path

import pytest

import nngp_zoo

ROOT = Path(__file__).parents[1]


def test_the_script_names_another_zoo_that_comes_first(tmp_path):
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import nngp_zoo; nngp_zoo.main()"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"nngp-zoo: {tmp_path}/zoo/__init__.py comes first and hides the package zoo of nngp-plugins; "
        "rename it, or take its folder out of PYTHONPATH"
    ]


def test_the_script_runs_the_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        nngp_zoo.main(["--version"])
    assert capsys.readouterr().out.startswith("nngp-zoo ")
