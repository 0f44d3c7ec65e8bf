import subprocess

import pytest
from helpers.commands import exit_code


@pytest.fixture
def here(capfd, monkeypatch):
    """The command in this process, with all that it prints, by whatever means."""

    def run(*arguments):
        monkeypatch.setenv("COLUMNS", "200")
        code = exit_code(*arguments)
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run
