"""The ``nngp-zoo`` command in the process of the tests, which has imported everything already."""

import io
import subprocess
from contextlib import redirect_stderr, redirect_stdout

import pytest

from zoo.__main__ import main


def exit_code(*arguments):
    """Runs a command; returns its exit code."""
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    return end.value.code


def run(*arguments):
    """Runs a command for fixtures that several tests share; returns its exit code and what Python printed."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = exit_code(*arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
