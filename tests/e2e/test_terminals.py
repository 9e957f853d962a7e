"""A search whose terminal cannot show its names, and whose reader goes away, is carried to its end."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.test_streams import C_LOCALE
from tests.data.clips import steady, write_clip
from tests.e2e.runs import COMMAND, ROOT, events, wait_for

CLASSES = ("tênis 😀", "γ-ray")
QUICK = ["--target-gflops", "0.0026", "--set", "search.axes=[x_fast]",
         "--set", "search.basis={resolution: 32, depth: 0.4}",
         "--set", "candidate={epochs: 1, batch_size: 4, precise_bn_batches: 2, eval_clips: 1}",
         "--set", "final={epochs: 1, batch_size: 4, precise_bn_batches: 2}", "--set", "run.threads=1"]


@pytest.fixture
def clips(tmp_path) -> Path:
    """Two classes with names beyond ASCII, and a clip whose name is no UTF-8."""
    for split, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                write_clip(tmp_path / "clips" / split / name / f"{number}.mp4", steady(12, 1 + label + 0.1 * number))
    first = tmp_path / "clips" / "train" / CLASSES[0] / "0.mp4"
    first.rename(first.with_name(os.fsdecode(b"caf\xe9.mp4")))
    return tmp_path / "clips"


def start(line: str, *words: str | Path, **variables: str) -> subprocess.Popen:
    """`line` in a shell, in which "$@" is the command with `words`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    return subprocess.Popen(["bash", "-c", line, "bash", *COMMAND, *map(str, words)], cwd=ROOT,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=environment | variables)


def test_a_search_whose_reader_has_gone_resumes_under_another_locale_with_closed_output(clips, tmp_path):
    run = tmp_path / "run \N{GREEK SMALL LETTER GAMMA}"
    begun = start('exec "$@"', "search", *QUICK, "--data", clips, "--run-dir", run, **C_LOCALE)
    assert begun.stdout.readline().isascii()
    begun.stdout.close()
    wait_for(run, begun, 4)
    begun.send_signal(signal.SIGINT)
    said = begun.stderr.read()
    assert begun.wait() == 130 and b"Traceback" not in said and b"a defect" not in said
    assert b"Warning: standard output cannot be written (Broken pipe); the work goes on without it" in said
    done = start('exec "$@" >&-', "resume", run, PYTHONIOENCODING="latin-1")
    _, said = done.communicate()
    assert done.returncode == 0, said.decode()
    assert said.decode() == "Warning: standard output cannot be written (it is closed); the work goes on without it\n"
    assert events(run)[-1]["event"] == "run_finished" and sorted(events(run)[0]["classes"]) == sorted(CLASSES)
    assert all(name in (run / "final" / "network.yaml").read_text(encoding="utf-8") for name in CLASSES[1:])
