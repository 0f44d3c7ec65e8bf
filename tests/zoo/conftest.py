import subprocess

import pytest

from zoo.__main__ import main


@pytest.fixture
def here(capfd, monkeypatch):
    """The command in this process, which has imported everything already."""

    def run(*arguments):
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments)])
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, end.value.code, out, err)

    return run
