"""Faults that a search of days meets, each made to happen to a real search (docs/faults.md has the table)."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

import expand
from expand import logs
from expand.errors import RunError
from expand.run.display import LogFile
from expand.run.start import renew_report
from expand.rundir.paths import RunPaths
from tests.e2e.faults import (
    Resumed,
    alive,
    below,
    build_shim,
    cut,
    hit,
    in_training,
    named,
    until,
)
from tests.e2e.runs import TINY, call, events, start

SOON_S = 60.0
"""What "soon" is on an overloaded machine."""


pytestmark = pytest.mark.usefixtures("fork_server")


@pytest.fixture
def step_1(undisturbed, tmp_path):
    """A run whose step 1 is about to be trained."""
    return cut(undisturbed, tmp_path / "run", 6)


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    library = build_shim(tmp_path_factory.mktemp("shim"))
    if library is None:
        pytest.skip("there is no C compiler to build the library that makes system calls fail")
    return library


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=64m", "x3d-expand-test", folder)
    yield folder
    while subprocess.run(["umount", folder], capture_output=True, check=False).returncode == 0:
        pass  # what was mounted on it, and itself
    subprocess.run(["umount", "-l", folder], capture_output=True, check=False)


def _mount(*words: str | Path) -> None:
    try:
        subprocess.run(["mount", *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user may not mount a file system: {getattr(error, 'stderr', error)}")


# --- processes

def test_a_worker_that_dies_each_time_is_a_failed_candidate_and_a_deleted_run_ends_its_search(tmp_path):
    """Its trainings are long enough to be hit."""
    run_dir = tmp_path / "run"
    process = start("search", *TINY, "--run-dir", run_dir, "--set", "candidate.epochs=100", "--set", "run.retries=1")
    until(lambda: len(events(run_dir)) >= 6, process)
    lost = hit(run_dir, process, signal.SIGKILL)
    os.kill(until(lambda: in_training(run_dir), process)[lost], signal.SIGKILL)
    until(lambda: any(event["id"] == lost for event in named(run_dir, "candidate_finished")), process)
    failed = named(run_dir, "candidate_finished")[-1]
    assert failed["state"] == "failed" and "died" in failed["reason"]
    assert json.loads((run_dir / "candidates" / lost / "outcome.json").read_text())["state"] == "failed"

    assert lost not in until(lambda: in_training(run_dir), process), "the search goes on"
    children = below(process.pid)
    while run_dir.exists():
        shutil.rmtree(run_dir, ignore_errors=True)
    out, err = process.communicate(timeout=SOON_S)
    assert process.returncode == 1 and "Traceback" not in err + out and "defect" not in err, err + out
    until(lambda: not alive(children), seconds=SOON_S)
    assert str(run_dir) in err and "moved or deleted" in err
    assert not run_dir.exists(), "what was deleted must not come back in part"


# --- disks

def _fails(driver: Resumed) -> str:
    """The error of a run in this process, once it has failed as it must, with its training processes ended."""
    trainers = set(in_training(driver.run_dir).values())
    driver.join(SOON_S)
    assert isinstance(driver.error, RunError), driver.error
    until(lambda: not alive(trainers), seconds=SOON_S)
    return str(driver.error)


def test_a_disk_that_becomes_full_ends_the_search_and_loses_nothing(undisturbed, finish, small_disk):
    run_dir = cut(undisturbed, small_disk / "run", 6)
    driver = Resumed(run_dir)
    until(lambda: in_training(run_dir), driver)
    with suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(1 << 16))
    before = events(run_dir)
    error = _fails(driver)
    assert "No space left on device" in error and str(run_dir) in error and "free space" in error
    assert expand.status(run_dir)["state"] in ("failed", "interrupted")
    with pytest.raises(RunError, match="No space left on device"):
        expand.resume(run_dir)
    (small_disk / "filler").unlink()
    assert events(run_dir)[:len(before)] == before
    finish(run_dir)


def test_a_directory_that_becomes_read_only_ends_the_search_and_loses_nothing(undisturbed, finish, small_disk):
    run_dir = cut(undisturbed, small_disk / "run", 6)
    driver = Resumed(run_dir)
    until(lambda: in_training(run_dir), driver)
    _mount("--bind", run_dir, run_dir)
    _mount("-o", "remount,bind,ro", run_dir)
    error = _fails(driver)
    assert "Read-only file system" in error and str(run_dir) in error and "permissions" in error
    assert expand.status(run_dir)["state"] == "interrupted"
    with pytest.raises(RunError, match="Read-only file system"):
        expand.resume(run_dir)
    subprocess.run(["umount", run_dir], check=True)
    finish(run_dir)


def test_a_directory_that_is_moved_ends_the_search_and_works_again_when_it_is_back(step_1, finish):
    driver = Resumed(step_1)
    until(lambda: in_training(step_1), driver)
    trainers = set(in_training(step_1).values())
    away = step_1.with_name("away")
    os.rename(step_1, away)
    error = _fails(driver)
    assert str(step_1) in error and "moved or deleted" in error and f"x3d-expand resume {step_1}" in error
    until(lambda: not alive(trainers), seconds=SOON_S)
    assert not step_1.exists(), "nothing of it may be begun anew in its place"
    os.rename(away, step_1)
    finish(step_1)


def test_a_file_system_without_locks_is_told(step_1, shim, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    monkeypatch.setenv("FAULT_FLOCK", str(errno.ENOSYS))
    before = (step_1 / "journal.jsonl").read_bytes()
    err = call("resume", step_1, code=1)
    assert str(step_1 / "lock") in err and "gives no lock (Function not implemented)" in err and "--run-dir" in err
    assert json.loads(call("status", step_1, "--json"))["state"] == "interrupted"
    assert (step_1 / "journal.jsonl").read_bytes() == before


# --- what is written for people only

@pytest.mark.parametrize("is_there", [False, True])
def test_a_log_that_cannot_be_written_is_said_once(tmp_path, is_there, lines):
    paths = RunPaths(tmp_path / "gone")
    if is_there:
        (paths.root / "log.txt").mkdir(parents=True)
    with logs.received_by(LogFile(paths).write):
        logging.getLogger("expand.run").info("one")
        logging.getLogger("expand.run").info("two")
    assert [text for text in lines if text in ("one", "two")] == ["one", "two"]
    assert len([text for text in lines if "cannot be written" in text and str(paths.root) in text]) == 1
    assert paths.root.exists() == is_there


def test_a_report_that_cannot_be_written_does_not_hide_what_ended_the_work(step_1, lines):
    shutil.rmtree(step_1 / "report", ignore_errors=True)
    (step_1 / "report").write_text("in the way")
    with pytest.raises(RunError, match="the real one"):
        try:
            raise RunError("the real one")
        finally:
            renew_report(RunPaths(step_1))
    assert len(lines) == 1 and "the report was not written" in lines[0] and f"x3d-expand plot {step_1}" in lines[0]
