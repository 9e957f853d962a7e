"""The command line, called in this process."""

import pytest

from expand.cli import main


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command line as a shell would; gives exit code, standard output, standard error."""
    def run(*words):
        monkeypatch.setattr("sys.argv", ["x3d-expand", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run
