"""Runs a benchmark's stages one after another: each in a process of its own with a time limit, each figure on disk as
soon as there is one.

A stage is a module with a function `checks(setting, note)`, which returns what there is to measure by name, in order.
A check returns a `Result`; `note` takes what it has measured so far. The process of a stage is killed at its limit. It
is started again for the checks that are left where one has ended it, or has left the GPU unusable for this process.

This process forks the stages after it has imported torch, which saves each the seconds of the import. It must therefore
never use the GPU itself, and nor may a stage before it forks its `Worker`s: CUDA cannot be used after a fork.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from benchmarking import BenchmarkFailed, say, table

OK, WRONG, FAILED, SKIPPED, KILLED = "ok", "WRONG", "failed", "skipped", "killed"
"""States of a check: measured, and right where there is something to be right about; measured and not right; ended by
an error; not for this machine; ended by its stage's limit."""
FORK = multiprocessing.get_context("fork")
DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG, Linux's prctl.h."""
LEAST_S = 5.0
"""A stage is not begun with less time than this."""

warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)


@dataclass(frozen=True)
class Setting:
    """What all stages need to know. `device`: `cpu` or `cuda:0`; `is_tiny`: the smallest sizes, to try the script out;
    `scratch`: a folder for files; `networks` and `rounds` for the stages that measure; `seconds` of one measurement at
    the least; `is_full`: more kinds of each, for which eight minutes do not suffice; `mps`: whether NVIDIA's MPS may be
    started."""

    device: str
    is_tiny: bool
    scratch: Path
    networks: tuple[str, ...]
    rounds: int
    seconds: float
    is_full: bool = False
    mps: bool = True

    @property
    def is_gpu(self) -> bool:
        """Whether there is a GPU to measure."""
        return self.device != "cpu"

    def wait(self) -> None:
        """Let the device finish."""
        if self.is_gpu:
            import torch
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Stage:
    """`name`, the module in this package that has its checks, and its limit in seconds."""

    name: str
    module: str
    limit_s: float


@dataclass
class Result:
    """Of a check: `line`, the figures for people; `figures`, for the JSON; `is_right`, unless it shows a mistake."""

    line: str
    figures: dict[str, Any] = field(default_factory=dict)
    is_right: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"state": OK if self.is_right else WRONG, "line": self.line, **self.figures}


class NotHere(Exception):
    """A check is not for this machine; the text says why."""


Note = Callable[[Mapping[str, Any]], None]
Check = Callable[[], Result]


# --- the process of a stage

def die_with_parent() -> None:
    """Have the kernel kill this process when the one that forked it ends, whatever ends it (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def _run_checks(module: str, setting: Setting, done: Sequence[str], answers: Connection) -> None:
    """The process of a stage: runs the checks that are not `done`, and sends what comes of each."""
    os.setpgid(0, 0)
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    current = ""

    def note(figures: Mapping[str, Any]) -> None:
        answers.send(("noted", current, dict(figures)))

    try:
        checks = importlib.import_module(f"gpu_bench.{module}").checks(setting, note)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other stages go on
        answers.send(("found", "start", {"state": FAILED, "line": _told(error)}))
        return
    for current, check in checks.items():
        if current in done:
            continue
        answers.send(("began", current, {}))
        is_broken = False
        try:
            found = check().as_dict()
        except NotHere as reason:
            found = {"state": SKIPPED, "line": str(reason)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the other checks go on
            found = {"state": FAILED, "line": _told(error), "traceback": traceback.format_exc()}
            is_broken = _has_broken_gpu(error)
        answers.send(("found", current, found))
        if is_broken:
            os._exit(3)
    answers.send(("ended", "", {}))


def _told(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package {error.name} is missing; --wheels says how to bring it along"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def _has_broken_gpu(error: Exception) -> bool:
    """Whether nothing on the GPU will work in this process any more. A lack of memory is none of these."""
    kinds = {kind.__name__ for kind in type(error).__mro__}  # torch's, which may not be imported
    return ("AcceleratorError" in kinds or "CUDA error" in str(error)) and "OutOfMemoryError" not in kinds


class Worker:
    """A process that is forked from a stage's and makes the object `make(*arguments)` there; `ask` calls one of its
    methods. `environment` is set first. A context manager, which ends the process."""

    def __init__(self, make: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None) -> None:
        self._mine, theirs = FORK.Pipe()
        self._process = FORK.Process(target=self._serve, args=(theirs, make, arguments, environment or {}))
        self._process.start()
        theirs.close()

    def _serve(self, requests: Connection, make: Callable[..., Any], arguments: Sequence[Any],
               environment: Mapping[str, str]) -> None:
        die_with_parent()
        self._mine.close()
        os.environ.update(environment)
        made = None
        with suppress(EOFError):
            while True:
                method, fields = requests.recv()
                try:
                    made = make(*arguments) if made is None else made
                    requests.send((True, getattr(made, method)(**fields)))
                except Exception as error:  # noqa: BLE001 - told to who asked
                    requests.send((False, _told(error)))

    def send(self, method: str, **fields: Any) -> None:
        """Ask without waiting; `answer` waits."""
        with suppress(OSError):  # it has died: there is no answer then
            self._mine.send((method, fields))

    def answer(self) -> Any:
        """Return what the method returned. Raises `BenchmarkFailed` where it failed or the process died."""
        try:
            is_well, answer = self._mine.recv()
        except (EOFError, OSError):
            self._process.join()
            raise BenchmarkFailed(f"its process ended with exit code {self._process.exitcode}") from None
        if not is_well:
            raise BenchmarkFailed(answer)
        return answer

    def ask(self, method: str, **fields: Any) -> Any:
        """`send` and `answer`."""
        self.send(method, **fields)
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._mine.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


# --- all stages, and what is on disk of them

@dataclass
class Record:
    """What was measured so far. Every change is written to `path` at once, as a whole or not at all."""

    path: Path
    about: dict[str, Any]
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self) -> None:
        """Write all of it."""
        from expand.rundir.files import write_json
        write_json(self.path, {**self.about, "stages": self.stages})

    def update(self, stage: str, check: str, found: Mapping[str, Any]) -> None:
        """Add `found` to what is known of a check."""
        self.stages[stage]["checks"].setdefault(check, {}).update(found)
        self.write()

    def rows(self) -> dict[str, dict[str, str]]:
        """A line for each check."""
        rows = {}
        for name, stage in self.stages.items():
            if not stage["checks"]:
                rows[name] = {"state": stage["state"], "": ""}
            for check, found in stage["checks"].items():
                rows[f"{name}: {check}"] = {"state": found["state"], "": found.get("line", "")}
        return rows

    def is_good(self) -> bool:
        """Whether every stage came to its end and nothing was wrong."""
        return all(stage["state"] == OK and all(found["state"] in (OK, SKIPPED) for found in stage["checks"].values())
                   for stage in self.stages.values())


def run_stages(stages: Sequence[Stage], setting: Setting, record: Record, until: float) -> None:
    """Run them in order, all before the moment `until` of `time.monotonic`; print the table. An interruption ends the
    stage at work and leaves what was measured."""
    try:
        for stage in stages:
            left = until - time.monotonic()
            record.stages[stage.name] = {"state": SKIPPED, "seconds": 0.0, "checks": {}}
            if left >= LEAST_S:
                say(f"{stage.name} (at most {min(stage.limit_s, left):.0f} s)")
                run_stage(stage, setting, min(stage.limit_s, left), record)
            else:
                record.stages[stage.name]["line"] = "no time was left of --budget-s"
                record.write()
    finally:
        print(table("stage", record.rows()), flush=True)


def run_stage(stage: Stage, setting: Setting, limit_s: float, record: Record) -> None:
    """Run one stage, in a process for as long as it lasts and in another one for the checks that are left."""
    began, until = time.monotonic(), time.monotonic() + limit_s
    kept = record.stages[stage.name] = {"state": "running", "seconds": 0.0, "checks": {}}
    record.write()
    state = FAILED
    try:
        while state == FAILED and time.monotonic() < until:
            known = len(kept["checks"])
            state = _follow(stage, setting, until, record)
            if len(kept["checks"]) == known:
                break  # it cannot even begin
    finally:
        kept.update(state=state, seconds=round(time.monotonic() - began, 2))
        record.write()


def _follow(stage: Stage, setting: Setting, until: float, record: Record) -> str:
    """Run a stage's process to its end or its limit; return the state that the stage is in then."""
    kept = record.stages[stage.name]["checks"]
    answers, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_run_checks, args=(stage.module, setting, list(kept), theirs))
    process.start()
    theirs.close()
    current, state = "start", FAILED
    try:
        while answers.poll(max(0.0, until - time.monotonic())):
            kind, name, found = answers.recv()
            if kind == "ended":
                state = OK
                continue
            current = name
            record.update(stage.name, name, {"state": "running", **found} if kind == "began" else found)
            if kind == "found":
                say(f"{stage.name}: {name}: {found['state']}: {found['line']}")
        state = state if state == OK else KILLED
        ending = {"state": KILLED, "line": f"stopped at the limit of stage {stage.name}"}
    except EOFError:  # the process has ended, or has died
        process.join(5)
        ending = {"state": FAILED, "line": f"its process ended with exit code {process.exitcode}"}
    finally:
        _end(process)
        answers.close()
    if state != OK and kept.get(current, {}).get("state", "running") == "running":
        record.update(stage.name, current, ending)
    if state == FAILED and current == "start":
        return FAILED
    return state


def _end(process: Any) -> None:
    """End a stage's process and all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        process.kill()
    process.join()


def preload() -> None:
    """Import what the stages need, so that they have it from the start. A stage tells itself what it misses."""
    for module in ("torch", "expand.training.candidate", "expand.model.folded_batch_norm",
                   "expand.kernels.triton_depthwise"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"  {module} cannot be imported: {error}", file=sys.stderr)
