"""Training on a Ray cluster, of one machine or many: a task a candidate, looked after as on this machine."""

from __future__ import annotations

import importlib.util
import os
import pickle
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from expand.config.schema import RunConfig
from expand.data import PreparedData
from expand.errors import ExpandError, Interrupted, RunError, UsageError
from expand.executors.base import Finished, Listener
from expand.executors.program import start_program
from expand.executors.ray_request import Wanted
from expand.executors.supervisor import Supervisor, Worker
from expand.rundir.paths import RunPaths
from expand.training.runtime import Runtime

START_S = 300.0
"""What a cluster may take to be there: Ray's processes, and torch's import on every node."""
END_S = 5.0
"""What it may take to end."""
RAYS_WORDS = {"Failed to connect to GCS": "its head does not answer",
              "Raylet is terminated": "Ray's processes on this machine ended"}
"""What Ray writes before it ends the process of its caller, and what that means."""
MOST_SAID = 1_000_000
"""Bytes that are read of what Ray wrote."""


def check_installed() -> None:
    """Raises `UsageError` where Ray is not."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("Ray is not installed", where="run.executor",
                         fix="pip install 'x3d-expand[ray]', or use --executor local")


class RayExecutor(Supervisor):
    """Trains jobs as Ray tasks on the cluster of RAY_ADDRESS, or the one that `ray start` began here, or one that it
    starts on this machine and ends; each with `runtime.threads` CPUs, and on GPUs one or a share of one. An `Executor`.

    The nodes are looked at when it is entered. That raises `UsageError` and `RunError` for a node that cannot train
    for this run, and where Ray is not installed. `run` raises `RunError` where the cluster is lost.
    """

    def __init__(self, data: PreparedData, runtime: Runtime, run: RunConfig, paths: RunPaths,
                 listener: Listener) -> None:
        check_installed()
        super().__init__(data, runtime, run, listener)
        self.paths = paths
        self._front = _FrontProcess()

    def __enter__(self) -> Self:
        self._front.start()
        try:
            for remark in self._front.ready(self._wanted(), (self.data, self.runtime), self.listener.stop):
                self.listener.log(remark)
        except BaseException:
            self._front.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._front.end()

    def _wanted(self) -> Wanted:
        return Wanted(self.config.workers, self.runtime.threads, self.runtime.device.type == "cuda", self.paths.root,
                      os.getcwd())

    def _start(self, number: int) -> Worker:
        try:
            return Worker(number, self._front.slot())
        except OSError as error:
            raise self._cluster_lost() from error

    def _died(self, worker: Worker) -> tuple[str, bool]:
        raise self._cluster_lost()

    def _never_began(self, worker: Worker) -> None:
        raise self._cluster_lost()  # it waited for a place

    def _hear_anew(self) -> None:
        super()._hear_anew()
        self._front.hear_anew()

    def _heard(self, worker: Worker, kind: str, content: Any) -> Finished | None:
        if kind == "lost":  # by Ray, which goes on
            self._bury(worker)
            return self._lost(worker, *content)
        return super()._heard(worker, kind, content)

    def _look_after(self) -> Iterator[Finished]:
        yield from super()._look_after()
        if self._busy and self._deadline is None and self._front.is_silent():
            raise self._cluster_lost()

    def _cluster_lost(self) -> ExpandError:
        for worker in list(self._workers):
            self._bury(worker)
        if self.listener.stop():
            return Interrupted("stopped")  # Slurm, for one, ends Ray's processes at the same time
        return RunError(f"the Ray cluster was lost ({self._front.last_words()}); all work so far is kept",
                        where=str(self.paths.root), fix=f"go on with: x3d-expand resume {self.paths.root}, when it is "
                                                        "back, or with --executor local")


class _FrontProcess:
    """The process that speaks with Ray (`expand.executors.ray_driver`), and what it writes, which is Ray's."""

    SILENT_S = 120.0
    """After that it counts as lost; Ray itself waits 60 s for the cluster's first process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._heard = time.monotonic()
        self._reason: str | None = None

    def start(self) -> None:
        """Starts it. Raises `RunError` where the system has no process."""
        try:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = start_program("expand.executors.ray_driver", "main", theirs, self._said)
            self._socket, self._pipe = ours, Connection(os.dup(ours.fileno()))
        except OSError as error:
            raise RunError(f"no process can be started to speak with Ray: {error.strerror}",
                           fix="free memory, or raise `ulimit -u` or `ulimit -n`, then start again") from error

    def ready(self, wanted: Wanted, shared: tuple[PreparedData, Runtime],
              stop: Callable[[], bool]) -> list[str]:
        """Waits until the cluster is there and was looked at; remarks. Raises its `ExpandError`, `Interrupted` when
        asked to stop, and `RunError` where it takes too long."""
        end = time.monotonic() + START_S
        kind, content = self._answer(end, stop)
        if kind == "hello":  # from now on somebody reads: the clips of a large set do not fit into a pipe
            with suppress(OSError):
                self._pipe.send_bytes(pickle.dumps(wanted))
                self._pipe.send_bytes(pickle.dumps(shared))
            kind, content = self._answer(end, stop)
        if kind == "error":
            raise content
        if kind == "lost":
            raise RunError(f"the connection to Ray was lost ({content})", where="ray",
                           fix="look at the cluster with `ray status`; docs/cluster.md")
        return content

    def _answer(self, end: float, stop: Callable[[], bool]) -> tuple[str, Any]:
        while not self._pipe.poll(0.1):
            if stop():
                raise Interrupted("stopped")
            if time.monotonic() > end:
                raise RunError(f"the Ray cluster did not answer within {START_S:g} s", where="ray",
                               fix="look at it with `ray status`")
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return "lost", self.last_words()

    def slot(self) -> Connection:
        """A pipe for one training after another. Raises `OSError` where the process is gone."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._socket, [b"1"], [theirs.fileno()])
        return Connection(ours.detach())

    def hear_anew(self) -> None:
        """Its silence counts from now on."""
        self._heard = time.monotonic()

    def is_silent(self) -> bool:
        """Whether nothing was heard for too long while there was work, or the cluster is lost in its own words."""
        self._listen()
        return self._reason is not None or time.monotonic() - self._heard > self.SILENT_S

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while self._pipe.poll(0):
                kind, content = self._pipe.recv()
                self._heard = time.monotonic()
                if kind == "lost":
                    self._reason = content

    def last_words(self) -> str:
        """Why it ended, as far as is known: by its own message, or else by what Ray wrote before it ended it."""
        self._listen()
        if self._reason is None:
            said = os.pread(self._said.fileno(), MOST_SAID, 0).decode("utf-8", "replace")
            lines = [line.strip() for line in said.splitlines() if line.strip()]
            self._reason = next((reason for words, reason in RAYS_WORDS.items() if words in said),
                                lines[-1] if lines else "no reason was given")
        return self._reason

    def end(self) -> None:
        """Ends it, and what it started in the cluster."""
        if self._process is None:
            return
        self._pipe.close()
        self._socket.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._said.close()
