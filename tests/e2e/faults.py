"""What it takes to hurt a run and to look at what is left: runs cut in the middle, processes by number, and a library
that makes the system's calls fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import pytest

import expand
from expand.executors.fork_server import ForkServer
from expand.run import start as session
from tests.e2e.runs import events

SHIM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int flock(int file, int operation) {
    const char *refusal = getenv("FAULT_FLOCK");  /* an errno */
    if (!refusal) return syscall(SYS_flock, file, operation);
    errno = atoi(refusal);
    return -1;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int answer = syscall(SYS_clock_gettime, clock, now);
    const char *path = getenv("FAULT_CLOCK");  /* a file with the seconds that the wall clock is off by */
    FILE *file = path && clock == CLOCK_REALTIME ? fopen(path, "r") : NULL;
    long seconds = 0;
    if (file) {
        if (fscanf(file, "%ld", &seconds) == 1) now->tv_sec += seconds;
        fclose(file);
    }
    return answer;
}
"""


@contextmanager
def one_fork_server() -> Iterator[ForkServer]:
    """Runs that are carried out in this process share a fork server meanwhile: starting one takes some seconds."""
    with ForkServer() as fork_server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "early_start", lambda run: nullcontext(fork_server))
        yield fork_server


class Resumed(threading.Thread):
    """`expand.resume` in a thread of this process; `error` is what ended it."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(daemon=True)
        self.run_dir, self.error = run_dir, None
        self.start()

    def run(self) -> None:
        try:
            expand.resume(self.run_dir)
        except BaseException as error:  # noqa: BLE001 - whatever ended it is what a test asks for
            self.error = error

    def poll(self) -> int | None:
        """As a process's."""
        return None if self.is_alive() else 1

    def communicate(self) -> tuple[str, str]:
        """What it said, for `until`."""
        return "", repr(self.error)


def build_shim(folder: Path) -> Path | None:
    """The library to preload (LD_PRELOAD); None where it cannot be built."""
    compiler = shutil.which("cc")
    if compiler is None or not Path("/proc/self").exists():
        return None
    (folder / "shim.c").write_text(SHIM)
    built = subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c"], check=False)
    return folder / "shim.so" if built.returncode == 0 else None


def until(condition: Callable[[], object], process: subprocess.Popen | Resumed | None = None,
          seconds: float = 300.0) -> object:
    """What `condition` gives once that is true. Fails where `process` ends first, or after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError("it ended too early: " + "".join(process.communicate()))
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)
    return found


def named(run_dir: Path, kind: str) -> list[dict]:
    """The events of that name."""
    return [event for event in events(run_dir) if event["event"] == kind]


def in_training(run_dir: Path) -> dict[str, int]:
    """The process of each candidate that is in training and has a checkpoint, by id."""
    found: dict[str, int] = {}
    for event in events(run_dir):
        if event["event"] == "candidate_started":
            found[event["id"]] = int(event["worker"].rpartition(":")[2])
        elif event["event"] in ("candidate_finished", "candidate_retried"):
            found.pop(event["id"], None)
        elif event["event"] == "run_resumed":
            found.clear()
    return {name: pid for name, pid in found.items() if (run_dir / "candidates" / name / "checkpoint.pt").exists()}


def below(pid: int) -> set[int]:
    """The processes that a process has started, and theirs."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found |= {child, *below(child)}
    return found


def alive(pids: set[int]) -> set[int]:
    """Those of the processes that have not ended."""
    return {pid for pid in pids if _state(pid) not in ("", "Z", "X")}


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def hit(run_dir: Path, process: subprocess.Popen, number: signal.Signals) -> str:
    """Kills or stops a process in the midst of a training, until another one takes the training over; the candidate's
    id. Where the training ended before the signal came, the next one is hit."""
    while True:
        name, pid = next(iter(until(lambda: in_training(run_dir), process).items()))
        retries = [event["id"] for event in named(run_dir, "candidate_retried")]
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            until(partial(_has_left, run_dir, name, pid), process)
            if [event["id"] for event in named(run_dir, "candidate_retried")] != retries:
                return name
            os.kill(pid, signal.SIGCONT)


def _has_left(run_dir: Path, name: str, pid: int) -> bool:
    """True once the process `pid` is no longer the one that trains the candidate."""
    return in_training(run_dir).get(name) != pid


def cut(run_dir: Path, target: Path, count: int, *, retrain: bool = True) -> Path:
    """A copy of a run as it was when its journal had `count` events; with `retrain` the files of what had not ended by
    then are gone too, so that it is trained again."""
    shutil.copytree(run_dir, target)
    lines = (target / "journal.jsonl").read_bytes().splitlines(keepends=True)[:count]
    (target / "journal.jsonl").write_bytes(b"".join(lines))
    if retrain:
        ended = {event["id"] for event in events(target)
                 if event["event"] == "candidate_finished" and event["state"] != "paused"}
        for folder in (target / "candidates").iterdir():
            if folder.name not in ended:
                shutil.rmtree(folder)
        shutil.rmtree(target / "report", ignore_errors=True)
        kinds = {event["event"] for event in events(target)}
        for file in (target / "final").iterdir():
            if "final_finished" not in kinds and not ("winner_chosen" in kinds and file.name == "network.yaml"):
                file.unlink()
    return target
