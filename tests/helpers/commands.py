"""The ``nngp-zoo`` command in the process of the tests, which has imported everything already."""

import subprocess

import pytest

from zoo.__main__ import main


def run(capfd, *arguments):
    """Runs a command; returns its exit code and what it printed."""
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    out, err = capfd.readouterr()
    return subprocess.CompletedProcess(arguments, end.value.code, out, err)
