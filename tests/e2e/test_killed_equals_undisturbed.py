"""However a search is interrupted, it ends as the undisturbed one did: its decisions, its figures, its weights.

First the journal is cut at every event and at every byte of its last line. The driver is the real one there, and the
trainings happen in this process, one after another, so that hundreds of cuts are cheap. Then real processes are asked
to stop, are killed and fall silent, one, two, or on a Ray cluster. Disks that fail are in test_faults.py.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import expand
from expand.config import parse_config
from expand.errors import Interrupted
from expand.executors.supervisor import Finished
from expand.executors.worker import run_job
from expand.expansion.decide import decide
from expand.expansion.events import CandidateFinished, Event, FinalStarted, RunStarted
from expand.expansion.rules import Space
from expand.expansion.state import SearchState
from expand.run import driver
from expand.run import start as session
from expand.rundir.journal import Journal, read_events
from expand.training.job import Hooks, Job
from tests.e2e.faults import (
    alive,
    below,
    build_shim,
    cut,
    hit,
    in_training,
    named,
    until,
)
from tests.e2e.runs import TINY, call, events, kill, start, wait_for
from tests.executors.ray_nodes import QUICK

NEVER = 1 << 60
DAY_S = 86_400
KILLS = int(os.environ.get("X3D_EXPAND_KILLS", "2"))
"""Kills of one run; each costs the start of a process."""
CLUSTER_S = 150.0
"""What a Ray cluster and torch on it may take to start on a busy machine."""


# --- cuts of the journal, with trainings in this process

class Here:
    """An `Executor` that trains in this process. `stop_in` updates and batches later it is asked to stop."""

    stop_in = NEVER
    trained: ClassVar[list[str]] = []

    def __init__(self, run: Any, data: Any, runtime: Any, paths: Any, listener: Any, fork_server: None) -> None:
        self.data, self.runtime, self.listener = data, runtime, listener

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Sequence[Job]) -> Iterator[Finished]:
        """As every executor does."""
        for job in sorted(jobs, key=lambda job: -job.gflops):
            self.listener.begin(job, "here:1")
            is_known = job.outcome.exists()
            yield Finished(job, run_job(job, self.data, self.runtime, Hooks(stop=self._stop)))
            Here.trained += [] if is_known else [job.id]

    def _stop(self) -> bool:
        Here.stop_in -= 1
        return Here.stop_in < 0


@pytest.fixture
def in_this_process(monkeypatch):
    """Without training processes, and without drawing a report at the end of each of so many runs."""
    monkeypatch.setattr(session, "early_start", lambda run: nullcontext())
    monkeypatch.setattr(driver, "make_executor", Here)
    monkeypatch.setattr(session, "write_report", lambda paths: None)


@pytest.fixture
def remade(undisturbed, tmp_path):
    """A copy of the run with `count` events and the first bytes of the one after them in its journal: one copy at a
    time, in the same place."""
    target = tmp_path / "run"

    def remake(count: int, torn: int = 0, *, retrain: bool = False) -> Path:
        shutil.rmtree(target, ignore_errors=True)
        cut(undisturbed, target, count, retrain=retrain)
        with (target / "journal.jsonl").open("ab") as journal:
            journal.write(b"".join(_lines(undisturbed)[count:])[:torn])
        return target

    return remake


def _lines(run_dir: Path) -> list[bytes]:
    return (run_dir / "journal.jsonl").read_bytes().splitlines(keepends=True)


def test_the_run_cut_at_every_event_and_within_the_next_ends_as_the_undisturbed_one(undisturbed, remade, finish,
                                                                                    in_this_process):
    lines = _lines(undisturbed)
    for count in range(len(lines)):
        Here.trained.clear()
        finish(remade(count, random.Random(count).randrange(0, len(lines[count]))))
        assert not Here.trained, "what was on disk had ended, so that nothing was to be trained again"


@settings(max_examples=3, phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink would take minutes
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_run_cut_at_an_event_and_stopped_at_an_update_trains_to_the_same_end(undisturbed, remade, finish,
                                                                                 in_this_process, data):
    lines = _lines(undisturbed)
    count = data.draw(st.integers(1, len(lines) - 1), "events")
    torn = data.draw(st.integers(0, len(lines[count]) - 1), "bytes of the next")
    run_dir = remade(count, torn, retrain=True)
    Here.stop_in = data.draw(st.integers(0, 30), "updates and batches until the stop")
    try:
        expand.resume(run_dir)
    except Interrupted:
        assert named(run_dir, "run_interrupted")
    finally:
        Here.stop_in = NEVER
    finish(run_dir)


def test_every_byte_of_every_last_line_leaves_a_journal_that_goes_on_to_the_same_bytes(undisturbed, tmp_path):
    lines, happened = _lines(undisturbed), read_events(undisturbed / "journal.jsonl")
    space = Space(parse_config((undisturbed / "config.yaml").read_text(), "config.yaml").search,
                  len(happened[0].classes))
    path = tmp_path / "journal.jsonl"
    for count, line in enumerate(lines):
        _decides_as_it_did(decide(SearchState.from_events(happened[:count]), space), happened[count:])
        for torn in range(len(line)):
            path.write_bytes(b"".join(lines[:count]) + line[:torn])
            whole = count + (torn == len(line) - 1)  # only the line end is missing
            assert read_events(path) == happened[:whole]
            if whole < len(happened) and (torn % 16 == 0 or torn > len(line) - 3):  # an append waits for the disk
                written = Journal(path, clock=lambda time=happened[whole].time: time).append(happened[whole])
                assert written == happened[whole] and path.read_bytes() == b"".join(lines[:whole + 1])


def _decides_as_it_did(action: Any, then: list[Event]) -> None:
    """What is decided is the next decision that the undisturbed run wrote down."""
    if isinstance(action, Event):
        written = next(event for event in then
                       if not isinstance(event, RunStarted | FinalStarted | CandidateFinished))
        assert written == replace(action, time=written.time)


# --- processes that are asked to stop, are killed, and fall silent

@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_at_random_moments_changes_nothing(tmp_path, ends_as_undisturbed, workers):
    chance, run_dir = random.Random(workers), tmp_path / "killed"
    process = start("search", *TINY, "--run-dir", run_dir, "--set", f"run.workers={workers}")
    for _ in range(KILLS):
        wait_for(run_dir, process, len(events(run_dir)) + chance.randint(1, 4))
        time.sleep(chance.uniform(0, 0.5))
        kill(process)
        assert json.loads(call("status", run_dir, "--json"))["state"] in ("interrupted", "finished")
        process = start("resume", run_dir)
    out, err = process.communicate()
    assert process.returncode == 0, err + out
    ends_as_undisturbed(run_dir)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_an_interruption_writes_a_checkpoint_and_names_the_way_on(tmp_path, finish, number, workers):
    run_dir = tmp_path / "interrupted"
    process = start("search", *TINY, "--run-dir", run_dir, "--set", f"run.workers={workers}")
    wait_for(run_dir, process, 6)
    until(lambda: in_training(run_dir), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"x3d-expand resume {run_dir}" in err and "Traceback" not in err
    assert events(run_dir)[-1]["event"] == "run_interrupted"
    finish(run_dir)


@pytest.fixture(scope="module")
def battered(tmp_path_factory):
    """A search in two processes that are killed and stopped, under a clock that is set back and ahead."""
    folder = tmp_path_factory.mktemp("battered")
    shim = build_shim(folder)
    if shim is None:
        pytest.skip("there is no C compiler to build the library that makes system calls fail")
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
    clock.write_text(str(900 * DAY_S))
    _, err = process.communicate()
    assert process.returncode == 0 and "Traceback" not in err, err
    return SimpleNamespace(run_dir=run_dir, killed=killed, stopped=stopped)


def test_a_killed_and_a_silent_worker_are_replaced_and_nothing_changes(battered, ends_as_undisturbed):
    first, second = named(battered.run_dir, "candidate_retried")
    assert (first["id"], first["attempt"]) == (battered.killed, 1) and "died" in first["reason"]
    assert second["id"] == battered.stopped and "no heartbeat for 3 s" in second["reason"]
    for name in {battered.killed, battered.stopped}:
        again = [event for event in named(battered.run_dir, "candidate_started") if event["id"] == name]
        assert again[0]["worker"] != again[-1]["worker"] and again[-1]["resumed"]
    ends_as_undisturbed(battered.run_dir)


def test_a_clock_that_jumps_changes_no_result_and_no_report(battered, ends_as_undisturbed):
    times = [event["time"] for event in events(battered.run_dir)]
    steps_s = [after - before for before, after in pairwise(times)]
    assert min(steps_s) < -300 * DAY_S and max(steps_s) > 800 * DAY_S
    ends_as_undisturbed(battered.run_dir)
    summary = expand.status(battered.run_dir)
    assert summary["remaining_s"] == 0 and 0 < summary["elapsed_s"] < 1301 * DAY_S
    assert all(0 < candidate["wall_s"] < 100 for step in summary["steps"] for candidate in step["candidates"])


def test_kill_9_of_the_driver_ends_its_workers_and_frees_the_run_to_one_of_two_that_come_at_once(undisturbed, finish,
                                                                                                 tmp_path):
    run_dir = cut(undisturbed, tmp_path / "run", 6)
    process = start("resume", run_dir, "--workers", "2")
    until(lambda: len(in_training(run_dir)) == 2, process)
    children = below(process.pid)
    kill(process)
    until(lambda: not alive(children), seconds=60)
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
    silent = until(lambda: in_training(run_dir), at_work)
    os.kill(next(iter(silent.values())), signal.SIGSTOP)
    children = below(at_work.pid)
    at_work.send_signal(signal.SIGTERM)
    out, err = at_work.communicate(timeout=60)
    assert at_work.returncode == 130 and "Traceback" not in err + out, err + out
    assert f"x3d-expand resume {run_dir}" in err
    until(lambda: not alive(children), seconds=60)
    assert events(run_dir)[-1]["event"] == "run_interrupted" and events(run_dir)[:len(before)] == before
    finish(run_dir)


# --- Ray

@pytest.fixture
def own_ray(monkeypatch):
    """A place for Ray's files that no other cluster of this machine has noted itself in."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets lie in it, whose paths cannot be long
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _of_cluster(folder: str) -> list[str]:
    """The processes of a cluster whose files are in `folder`."""
    found = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if folder in line]


@pytest.mark.timeout(600)
def test_a_search_on_ray_that_is_stopped_loses_its_cluster_and_is_killed_ends_locally(own_ray, own_cache, tmp_path,
                                                                                       ends_as_undisturbed):
    pytest.importorskip("ray")
    run_dir = tmp_path / "ray"
    process = start("search", *TINY, "--run-dir", run_dir, "--workers", "2", "--executor", "ray")
    until(lambda: len(events(run_dir)) >= 6, process, CLUSTER_S)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err + out
    assert f"x3d-expand resume {run_dir}" in err and len(err.splitlines()) == 2, "and nothing of Ray's"
    assert events(run_dir)[-1]["event"] == "run_interrupted"
    assert not _of_cluster(own_ray), "the command ends what it started"

    process = start("resume", run_dir)
    before = len(events(run_dir))
    until(lambda: len(events(run_dir)) >= before + 2, process, CLUSTER_S)
    [raylet] = [line.split()[0] for line in _of_cluster(own_ray) if "/raylet/raylet " in line]
    os.kill(int(raylet), signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == 1, err + out
    assert "the Ray cluster was lost (" in err  # whether Ray's last words or their absence are met first is chance
    assert f"x3d-expand resume {run_dir}" in err and len(err.splitlines()) == 2
    assert events(run_dir)[-1]["event"] == "run_failed"
    until(lambda: not _of_cluster(own_ray))

    process = start("resume", run_dir)
    before = len(events(run_dir))
    until(lambda: len(events(run_dir)) >= before + 2, process, CLUSTER_S)
    kill(process)
    assert json.loads(call("status", run_dir, "--json"))["state"] in ("interrupted", "finished")
    until(lambda: not _of_cluster(own_ray))

    call("resume", run_dir, "--executor", "local")
    ends_as_undisturbed(run_dir)
