"""Faults that a search of days meets, each made to happen to a real search (docs/faults.md has the table)."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

import expand
from expand import logs
from expand.errors import RunError
from expand.run.display import LogFile
from expand.run.start import renew_report
from expand.rundir.paths import RunPaths
from tests.e2e.faults import (
    TINY,
    Resumed,
    alive,
    below,
    build_shim,
    cut,
    hit,
    in_training,
    named,
    one_fork_server,
    search_here,
    until,
)
from tests.e2e.runs import call, events, kill, results, start

SOON_S = 60.0
"""What "soon" is on an overloaded machine."""
DAY_S = 86_400


@pytest.fixture(scope="module", autouse=True)
def fork_server(own_cache):
    """For all that is carried out in this process."""
    with one_fork_server() as shared:
        yield shared


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run."""
    run_dir = tmp_path_factory.mktemp("faults") / "undisturbed"
    assert search_here(run_dir)["contraction"]["id"], "the run is to have every kind of event"
    return run_dir


@pytest.fixture
def finish(finished):
    """Carries a run on to its end, and compares it with the undisturbed one."""
    def to_the_end(run_dir: Path) -> None:
        assert expand.resume(run_dir)["state"] == "finished"
        assert results(run_dir) == results(finished)
        trained = [event["id"] for event in named(run_dir, "candidate_finished")]
        assert len(trained) == len(set(trained)), "a candidate was trained again"
        assert not list(run_dir.rglob(".tmp-*"))

    return to_the_end


@pytest.fixture
def step_1(finished, tmp_path):
    """A run whose step 1 is about to be trained."""
    return cut(finished, tmp_path / "run", 6)


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


def _ends(process: subprocess.Popen, code: int, seconds: float = SOON_S) -> str:
    """Its error, once it has ended as it must: in time, without a traceback, and with all its processes."""
    children = below(process.pid)
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == code, err + out
    assert "Traceback" not in err + out and "defect" not in err, err
    until(lambda: not alive(children), seconds=5)
    return err


# --- processes

@pytest.fixture(scope="module")
def battered(shim, tmp_path_factory, finished):
    """A search in two processes that are killed and stopped, under a clock that is set back and ahead."""
    folder = tmp_path_factory.mktemp("battered")
    run_dir, clock = folder / "run", folder / "clock"
    clock.write_text("0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(shim))
        patch.setenv("FAULT_CLOCK", str(clock))
        process = start("search", *TINY, "--run-dir", run_dir, "--set", "run.workers=2", "--set", "run.heartbeat_s=3")
    killed = hit(run_dir, process, signal.SIGKILL)
    until(lambda: named(run_dir, "candidate_finished"), process)
    clock.write_text(str(-400 * DAY_S))
    stopped = hit(run_dir, process, signal.SIGSTOP)
    until(lambda: named(run_dir, "candidate_retried")[1:], process)
    clock.write_text(str(900 * DAY_S))
    _, err = process.communicate()
    assert process.returncode == 0 and "Traceback" not in err, err
    return SimpleNamespace(run_dir=run_dir, killed=killed, stopped=stopped)


def test_a_killed_and_a_silent_worker_are_replaced_and_nothing_changes(battered, finished):
    first, second = named(battered.run_dir, "candidate_retried")
    assert (first["id"], first["attempt"]) == (battered.killed, 1) and "died" in first["reason"]
    assert (second["id"], second["attempt"]) == (battered.stopped, 1) and "no heartbeat for 3 s" in second["reason"]
    for name in {battered.killed, battered.stopped}:
        again = [event for event in named(battered.run_dir, "candidate_started") if event["id"] == name]
        assert again[0]["worker"] != again[-1]["worker"] and again[-1]["resumed"]
    assert results(battered.run_dir) == results(finished)


def test_a_clock_that_jumps_changes_no_result_and_no_report(battered, finished):
    times = [event["time"] for event in events(battered.run_dir)]
    steps_s = [after - before for before, after in pairwise(times)]
    assert min(steps_s) < -300 * DAY_S and max(steps_s) > 800 * DAY_S
    assert results(battered.run_dir) == results(finished)
    summary = expand.status(battered.run_dir)
    assert summary["state"] == "finished" and summary["remaining_s"] == 0
    assert 0 < summary["elapsed_s"] < 1301 * DAY_S
    assert all(0 < candidate["wall_s"] < 100 for step in summary["steps"] for candidate in step["candidates"])


def test_a_worker_that_dies_each_time_is_a_failed_candidate_and_a_deleted_run_ends_its_search(step_1):
    config = (step_1 / "config.yaml").read_text()
    (step_1 / "config.yaml").write_text(re.sub(r"retries: \d+", "retries: 1", config))
    process = start("resume", step_1)
    lost = hit(step_1, process, signal.SIGKILL)
    until(lambda: len([event for event in named(step_1, "candidate_started") if event["id"] == lost]) == 2, process)
    assert hit(step_1, process, signal.SIGKILL) == lost
    until(lambda: any(event["id"] == lost for event in named(step_1, "candidate_finished")), process)
    failed = named(step_1, "candidate_finished")[-1]
    assert failed["state"] == "failed" and "died" in failed["reason"]
    assert json.loads((step_1 / "candidates" / lost / "outcome.json").read_text())["state"] == "failed"

    assert lost not in until(lambda: in_training(step_1), process), "the search goes on"
    while step_1.exists():
        shutil.rmtree(step_1, ignore_errors=True)
    err = _ends(process, 1)
    assert str(step_1) in err and "moved or deleted" in err
    assert not step_1.exists(), "what was deleted must not come back in part"


def test_kill_9_of_the_driver_ends_its_workers_and_frees_the_run_to_one_of_two_that_come_at_once(
        finished, finish, tmp_path):
    run_dir = cut(finished, tmp_path / "run", 6)
    process = start("resume", run_dir, "--workers", "2")
    until(lambda: len(in_training(run_dir)) == 2, process)
    children = below(process.pid)
    kill(process)
    until(lambda: not alive(children), seconds=5)
    before = events(run_dir)
    assert (run_dir / "lock").read_bytes(), "the dead one's name is still there"

    rivals = [start("resume", run_dir, "--workers", "2") for _ in range(2)]
    until(lambda: any(rival.poll() is not None for rival in rivals))
    refused, at_work = sorted(rivals, key=lambda rival: rival.poll() is None)
    err = refused.communicate()[1]
    assert refused.returncode == 1 and "Traceback" not in err
    assert re.search(rf"process {at_work.pid} on {re.escape(socket.gethostname())} works on this run, since \d{{4}}-",
                     err), err

    until(lambda: len(events(run_dir)) > len(before), at_work)  # the one refused may have ended long before that
    until(lambda: len(in_training(run_dir)) == 2, at_work)
    stopped = hit(run_dir, at_work, signal.SIGSTOP)
    began = time.monotonic()
    at_work.send_signal(signal.SIGTERM)
    assert f"x3d-expand resume {run_dir}" in _ends(at_work, 130, 30)
    assert time.monotonic() - began < 30
    assert events(run_dir)[-1]["event"] == "run_interrupted" and events(run_dir)[:len(before)] == before
    assert (run_dir / "candidates" / stopped / "checkpoint.pt").exists()
    finish(run_dir)


# --- disks

def _fails(driver: Resumed) -> str:
    """The error of a run in this process, once it has failed as it must, with its training processes ended."""
    trainers = set(in_training(driver.run_dir).values())
    driver.join(SOON_S)
    assert isinstance(driver.error, RunError), driver.error
    until(lambda: not alive(trainers), seconds=5)
    return str(driver.error)


def test_a_disk_that_becomes_full_ends_the_search_and_loses_nothing(finished, finish, small_disk):
    run_dir = cut(finished, small_disk / "run", 6)
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


def test_a_directory_that_becomes_read_only_ends_the_search_and_loses_nothing(finished, finish, small_disk):
    run_dir = cut(finished, small_disk / "run", 6)
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
    until(lambda: not alive(trainers), seconds=5)
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
