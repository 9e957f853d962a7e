"""A command imports what it needs and no more, so that a look at a run costs little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NEEDLESS = ("yaml", "pydantic", "pandas", "numpy", "torch", "expand.run", "expand.cli.data",
            "expand.cli.networks")


def test_status_imports_no_yaml_and_no_other_command(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    code = ("import sys; from expand.cli import cli; cli.main(['status', sys.argv[1]], standalone_mode=False); "
            f"print([name for name in {NEEDLESS!r} if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "interrupted" in done.stdout and done.stdout.splitlines()[-1] == "[]"


def test_a_command_that_is_misspelt_is_told_its_name() -> None:
    done = subprocess.run([sys.executable, "-m", "expand", "statu"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "status" in done.stderr
