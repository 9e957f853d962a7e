"""docs/python.md, as a reader runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import expand

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "python.md"


def code_of(guide: str) -> str:
    """The guide's Python blocks; all else is blank, so that a line has the guide's own number in a traceback."""
    lines, within = [], False
    for line in guide.splitlines():
        if line.startswith("```"):
            within = line == "```python"
            line = ""
        lines.append(line if within else "")
    return "\n".join(lines)


def test_the_guide_for_python_runs_as_it_stands(tmp_path: Path) -> None:
    code = code_of(GUIDE.read_text(encoding="utf-8"))
    unused = [name for name in expand.__all__ if f"expand.{name}" not in code and not name.startswith("_")]
    assert not unused, f"the guide shows nothing of {unused}"
    script = f"exec(compile({code!r}, {str(GUIDE)!r}, 'exec'))"
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=tmp_path, text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == "", "the guide warns its reader"
