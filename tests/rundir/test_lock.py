from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expand.errors import RunError
from expand.rundir import lock
from expand.rundir.lock import RunLock, holder
from expand.rundir.paths import RunPaths


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WAIT_S", 0.05)


HOLD = """
import sys, time
from pathlib import Path
from expand.rundir.lock import RunLock
from expand.rundir.paths import RunPaths
with RunLock(RunPaths(Path(sys.argv[1]))):
    print("ready", flush=True)
    time.sleep(60)
"""

HOLD_WITH_WORKER = """
import os, sys, time
from pathlib import Path
from expand.rundir.lock import RunLock
from expand.rundir.paths import RunPaths
with RunLock(RunPaths(Path(sys.argv[1]))):
    if os.fork() == 0:
        os.close(1)
        Path(sys.argv[2]).write_text(str(os.getpid()))
        time.sleep(60)
        os._exit(0)
    while not Path(sys.argv[2]).exists() or not Path(sys.argv[2]).read_text():
        time.sleep(0.01)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path,
                                                                start_python: Callable[..., Any]) -> None:
    paths = RunPaths(tmp_path)
    process = start_python(HOLD, tmp_path)
    who = holder(paths)
    assert who is not None
    assert who["pid"] == process.pid
    with pytest.raises(RunError, match=f"process {process.pid} on .* works on this run, since") as caught, \
            RunLock(paths):
        pytest.fail("two processes work on one run")
    assert f"x3d-expand status {tmp_path}" in str(caught.value)


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path, start_python: Callable[..., Any]) -> None:
    paths = RunPaths(tmp_path)
    process = start_python(HOLD, tmp_path)
    process.kill()
    process.wait()
    assert paths.lock.read_bytes()
    assert holder(paths) is None
    with RunLock(paths):
        who = holder(paths)
        assert who is not None
        assert who["pid"] == os.getpid()


def test_a_worker_that_outlives_its_killed_run_does_not_keep_the_lock(tmp_path: Path,
                                                                      start_python: Callable[..., Any]) -> None:
    note = tmp_path / "worker"
    process = start_python(HOLD_WITH_WORKER, tmp_path, note)
    assert holder(RunPaths(tmp_path)) is not None
    process.kill()
    process.wait()
    worker = int(note.read_text())
    try:
        os.kill(worker, 0)
        with RunLock(RunPaths(tmp_path)):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_lock_is_free_after_its_block_and_after_an_exception(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    with RunLock(paths), pytest.raises(RunError, match="works on this run"), RunLock(paths):
        pytest.fail("taken twice")
    assert holder(paths) is None
    with pytest.raises(ZeroDivisionError), RunLock(paths):
        raise ZeroDivisionError
    with RunLock(paths):
        assert holder(paths) is not None


def test_asking_who_holds_it_creates_nothing(tmp_path: Path) -> None:
    assert holder(RunPaths(tmp_path)) is None
    assert holder(RunPaths(tmp_path / "nothing")) is None
    assert os.listdir(tmp_path) == []


def test_a_holder_that_left_no_name_is_still_a_holder(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    with RunLock(paths):
        paths.lock.write_bytes(b"")
        assert holder(paths) == {"pid": None, "host": None, "started": None}
        with pytest.raises(RunError, match="another process works on this run"), RunLock(paths):
            pytest.fail("taken twice")


def test_a_folder_that_does_not_exist_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run directory here") as caught, RunLock(RunPaths(tmp_path / "mien")):
        pytest.fail("locked nothing")
    assert "mien" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_taking_the_lock_clears_what_a_kill_left_but_no_report_in_the_making(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    folders = [tmp_path, paths.candidate("s00-basis").dir, paths.final, paths.report]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".tmp-0123abcd-checkpoint.pt").touch()
        (folder / "kept").touch()
    with RunLock(paths):
        left = [sorted(entry.name for entry in folder.iterdir() if entry.is_file()) for folder in folders]
    assert left == [["kept", "lock"], ["kept"], ["kept"], [".tmp-0123abcd-checkpoint.pt", "kept"]]
