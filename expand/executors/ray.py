"""Training on a Ray cluster, of one machine or many: each training process is a Ray task, supervised as a local one."""

from __future__ import annotations

import hmac
import importlib.util
import logging
import os
import pickle
import secrets
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from expand.config.schema import RunConfig
from expand.data import PreparedData
from expand.errors import ExpandError, Interrupted, RunError, UsageError
from expand.executors.fork_server import start_program
from expand.executors.ray_node import Request, greeting
from expand.executors.supervisor import POLL_S, Executor, Finished, Listener, Worker
from expand.rundir.paths import RunPaths
from expand.training.job import Job
from expand.training.runtime import Runtime

logger = logging.getLogger(__name__)

START_S = 300.0
"""Seconds that a cluster may take to start: Ray's processes, and torch's import on every node."""
END_S = 5.0
"""Seconds that it may take to end."""
SILENT_S = 120.0
"""Seconds without a message after which the cluster counts as lost; Ray itself waits 60 s for its first process."""
REASON_S = 15.0
"""Seconds that Ray may take to say why a process ended, or to notice that it was lost itself."""
FAILED_STARTS = 3
"""Processes in a row that may end before they are ready until that is an error of the run."""
RAYS_WORDS = {"Failed to connect to GCS": "its head does not answer",
              "Raylet is terminated": "Ray's processes on this machine ended"}
"""What Ray writes before it ends the process of its caller, and what that means."""
MAX_OUTPUT = 1_000_000
"""Bytes that are read of what Ray wrote."""


def check_installed() -> None:
    """Raise `UsageError` where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("Ray is not installed", where="run.executor",
                         fix="pip install 'x3d-expand[ray]', or use --executor local")


@dataclass(eq=False)
class _Task(Worker):
    """A Ray task. Its pipe is a connection that it makes once Ray has found a place for it."""

    task: int = 0
    """Its number among all tasks of the run."""
    ray: _RayProcess | None = None

    def release(self) -> None:
        """End the idle task, so that others can use its place. Ray may use its process again, with torch imported."""
        with suppress(OSError):
            self.send("end", None)
        super().kill()

    def kill(self) -> None:
        """End it at once, even where it is stopped (SIGSTOP) or waits for a place."""
        super().kill()
        if self.ray is not None:
            with suppress(OSError):
                self.ray.send("kill", self.task)


class RayExecutor(Executor[_Task]):
    """Trains jobs in Ray tasks on the cluster of RAY_ADDRESS, or the one that `ray start` began here, or one that it
    starts on this machine and ends; each with `runtime.threads` CPUs, and on GPUs one or a share of one.

    The nodes are checked when it is entered. That raises `UsageError` and `RunError` for a node that cannot train for
    this run, and where Ray is not installed. `run` raises `RunError` where the cluster is lost.
    """

    def __init__(self, data: PreparedData, runtime: Runtime, run: RunConfig, paths: RunPaths,
                 listener: Listener) -> None:
        check_installed()
        super().__init__(data, runtime, run, listener)
        self.paths = paths
        self._ray = _RayProcess()
        self._key = secrets.token_bytes(32)
        self._server = socket.socket()
        self._unidentified: list[socket.socket] = []
        """Connections that have not sent their greeting yet."""
        self._inbox: deque[tuple[str, int, Any]] = deque()
        self._numbers = count()
        self._sharers = 1
        self._failed_starts = 0

    def __enter__(self) -> Self:
        clip = pickle.dumps(self.data.train[0]) if self.data.train else None
        request = Request(self.config.workers, self.runtime.threads, self.runtime.device.type == "cuda",
                          self.paths.root, os.getcwd(), clip)
        self._ray.start(request)
        try:
            host, self._sharers, remarks = self._ray.wait_until_ready(self.listener.stop)
            self._server.close()
            self._server = socket.create_server((host, 0),
                                                family=socket.AF_INET6 if ":" in host else socket.AF_INET)
            self._server.setblocking(False)
            for remark in remarks:
                logger.info(remark)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._close()

    def run(self, jobs: Sequence[Job]) -> Iterator[Finished]:
        """Between two calls no place of the cluster is taken."""
        try:
            yield from super().run(jobs)
        finally:
            for worker in [worker for worker in self._workers if worker.job is None]:
                if worker.place is None:
                    self._remove(worker)
                else:
                    worker.release()
                    self._workers.remove(worker)

    def _close(self) -> None:
        for connection in (*self._unidentified, self._server):
            connection.close()
        self._ray.end()

    def _start(self, number: int) -> _Task:
        worker = _Task(number, None, task=next(self._numbers), ray=self._ray)
        try:
            self._ray.send("start", worker.task, self._server.getsockname()[:2], self._key)
        except OSError as error:
            raise self._lose_cluster() from error
        return worker

    def _runtime_of(self, worker: _Task) -> Runtime:
        self._failed_starts = 0
        if self.runtime.device.type != "cuda":
            return self.runtime
        import torch

        return replace(self.runtime, device=torch.device("cuda", 0), sharers=self._sharers)  # Ray shows it no other GPU

    def _find_reason(self, worker: _Task) -> tuple[str, bool]:
        end = time.monotonic() + REASON_S
        while time.monotonic() < end:
            self._read_messages()
            for message in self._inbox:
                if message[:2] == ("lost", worker.task):
                    return message[2]
            time.sleep(POLL_S)
        return "its process died", False

    def _react_to_failed_start(self, worker: _Task) -> None:
        self._failed_starts += 1
        if self._failed_starts == FAILED_STARTS:
            raise RunError("training processes end, or hang, before they begin on the Ray cluster",
                           where=str(self.paths.root), fix="`ray logs` or the logs of the nodes say why; `x3d-expand "
                                                           "doctor` there looks at the installation")

    def _reset_heartbeats(self) -> None:
        super()._reset_heartbeats()
        self._ray.heard = time.monotonic()

    def _receive(self) -> Iterator[tuple[_Task, str, Any]]:
        self._accept_connections()
        self._read_messages()
        while self._inbox:
            kind, number, content = self._inbox.popleft()
            for worker in [worker for worker in self._workers if worker.task == number]:
                yield worker, kind, content
        yield from super()._receive()

    def _handle(self, worker: _Task, kind: str, content: Any) -> Finished | None:
        if kind == "connected":
            with suppress(OSError):  # Ray's process has ended, which its pipe will tell
                self._ray.send("connected", worker.task, *content)
        elif kind == "lost" and worker.place is None:
            self._replace_starting(worker)
        elif kind == "lost":
            self._remove(worker)
            return self._retry(worker.job, *content) if worker.job is not None else None
        else:
            return super()._handle(worker, kind, content)
        return None

    def _accept_connections(self) -> None:
        """Give each task that has connected its pipe. A connection is read as messages only after it has shown the
        key."""
        with suppress(OSError):  # none is left
            while True:
                connection, _ = self._server.accept()
                connection.setblocking(False)
                self._unidentified.append(connection)
        waiting = {greeting(self._key, worker.task): worker for worker in self._workers if worker.pipe is None}
        size = len(greeting(self._key, 0))
        for connection in list(self._unidentified):
            try:
                shown = connection.recv(size, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            except OSError:
                shown = b""
            if 0 < len(shown) < size:
                continue
            self._unidentified.remove(connection)
            worker = next((waiting[expected] for expected in waiting if hmac.compare_digest(shown, expected)), None)
            if worker is None:
                connection.close()
                continue
            connection.recv(size)
            connection.setblocking(True)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            worker.pipe, worker.heard = Connection(connection.detach()), time.monotonic()

    def _read_messages(self) -> None:
        """Put the messages of Ray's process into the inbox. Raises `RunError` where the cluster was lost."""
        self._inbox += self._ray.read()
        is_silent = bool(self._busy) and time.monotonic() - self._ray.heard > SILENT_S
        if self._workers and (self._ray.is_lost or is_silent):
            raise self._lose_cluster()

    def _lose_cluster(self) -> ExpandError:
        for worker in list(self._workers):
            self._remove(worker)
        if self.listener.stop():
            return Interrupted("stopped")  # Slurm, for one, ends Ray's processes at the same time
        return RunError(f"the Ray cluster was lost ({self._ray.find_reason()}); all work so far is kept",
                        where=str(self.paths.root), fix=f"go on with: x3d-expand resume {self.paths.root}, when it is "
                                                        "back, or with --executor local")


class _RayProcess:
    """The process that speaks with Ray (`expand.executors.ray_process`), and its output, which is Ray's."""

    def __init__(self) -> None:
        self.heard = time.monotonic()
        """Monotonic seconds of its last message."""
        self.is_lost = False
        self._reason: str | None = None
        self._process: subprocess.Popen | None = None

    def start(self, request: Request) -> None:
        """Start it. Raises `RunError` where the system has no process."""
        try:
            self._output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = start_program("expand.executors.ray_process", "main", theirs, self._output)
            self._pipe = Connection(ours.detach())
        except OSError as error:
            raise RunError(f"no process can be started to speak with Ray: {error.strerror}",
                           fix="free memory, or raise `ulimit -u` or `ulimit -n`, then start again") from error
        with suppress(OSError):
            self._pipe.send(request)

    def wait_until_ready(self, stop: Callable[[], bool]) -> tuple[str, int, list[str]]:
        """Wait until the cluster was found and checked. Return this machine's address in it, how many trainings share
        a GPU, and remarks. Raises the `ExpandError` of the check, `Interrupted` when asked to stop, and `RunError`
        where it takes too long."""
        end = time.monotonic() + START_S
        while not self._pipe.poll(POLL_S):
            if stop():
                raise Interrupted("stopped")
            if time.monotonic() > end:
                raise RunError(f"the Ray cluster did not answer within {START_S:g} s", where="ray",
                               fix="look at it with `ray status`")
        for kind, _, content in self.read():
            if kind == "ready":
                return content
            if kind == "error":
                raise content
        raise RunError(f"the connection to Ray was lost ({self.find_reason()})", where="ray",
                       fix="look at the cluster with `ray status`; docs/cluster.md")

    def send(self, kind: str, *content: Any) -> None:
        """Send a message. Raises `OSError` where the process is gone."""
        self._pipe.send((kind, content))

    def read(self) -> list[tuple[str, int, Any]]:
        """Return the messages (kind, task, content) that have arrived; set `is_lost` where the process or the cluster
        is gone."""
        messages = []
        try:
            while not self.is_lost and self._pipe.poll(0):
                kind, task, content = self._pipe.recv()
                self.heard = time.monotonic()
                if kind == "lost" and task is None:
                    self.is_lost, self._reason = True, content
                elif kind != "alive":
                    messages.append((kind, task, content))
        except (EOFError, OSError):
            self.is_lost = True
        return messages

    def find_reason(self) -> str:
        """Return why the cluster was lost, as far as is known: from the process's message or else from Ray's output."""
        if self._reason is None:
            output = os.pread(self._output.fileno(), MAX_OUTPUT, 0).decode("utf-8", "replace")
            lines = [line.strip() for line in output.splitlines() if line.strip()]
            self._reason = next((reason for words, reason in RAYS_WORDS.items() if words in output),
                                lines[-1] if lines else "no reason was given")
        return self._reason

    def end(self) -> None:
        """End it, and what it started in the cluster."""
        if self._process is None:
            return
        self._pipe.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._output.close()
