"""Training on a Ray cluster of one machine or many: each training process is a Ray actor, supervised as a local one."""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from types import TracebackType
from typing import Self

from expand.config.schema import RunConfig
from expand.data import PreparedData
from expand.errors import ExpandError, Interrupted, RunError, UsageError
from expand.executors.fork_server import start_program
from expand.executors.supervisor import POLL_S, Executor, Finished, Listener, Worker
from expand.rundir.files import TEMPORARY, write_atomic
from expand.rundir.paths import RunPaths
from expand.training.job import Job
from expand.training.runtime import Runtime

logger = logging.getLogger(__name__)

START_S = 300.0
"""Seconds that a cluster may take to start: Ray's processes, and torch's import on every node."""
END_S = 5.0
"""Seconds that it may take to end."""
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


class RayExecutor(Executor[Worker]):
    """Trains jobs in Ray actors on the cluster of RAY_ADDRESS, or the one that `ray start` began here, or one that it
    starts on this machine and ends; each with `runtime.threads` CPUs, and on GPUs one or a share of one.

    A process of its own speaks with Ray (`expand.executors.ray_cluster`) and starts an actor for each pipe that it is
    handed, so that a worker is a pipe as with every executor.

    The nodes are checked when it is entered. That raises `UsageError` and `RunError` for a node that cannot train for
    this run, and where Ray is not installed. `run` raises `RunError` where the cluster is lost.
    """

    def __init__(self, data: PreparedData, runtime: Runtime, run: RunConfig, paths: RunPaths,
                 listener: Listener) -> None:
        check_installed()
        super().__init__(data, runtime, run, listener)
        self.root = paths.root
        self._token = self.root / f"{TEMPORARY}{secrets.token_hex(16)}-ray"
        self._sharers = 1
        self._failed_starts = 0

    def __enter__(self) -> Self:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process; what it prints is Ray's
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process: subprocess.Popen = start_program("expand.executors.ray_cluster", "main", theirs,
                                                                self._output)
        except OSError as error:
            raise RunError(f"no process can be started to speak with Ray: {error.strerror}",
                           fix="free memory, or raise `ulimit -u` or `ulimit -n`, then start again") from error
        self._control = Connection(ours.detach())
        try:
            write_atomic(self._token, "")
            self._connect()
        except BaseException:
            self._close()
            raise
        return self

    def _connect(self) -> None:
        """Have the cluster found or started, and every node checked."""
        with suppress(OSError):  # it has ended, which is told below
            self._control.send({
                "workers": self.config.workers, "threads": self.runtime.threads,
                "on_gpu": self.runtime.device.type == "cuda", "token": self._token, "folder": os.getcwd(),
                "clip": pickle.dumps(self.data.train[0]) if self.data.train else None})
        end = time.monotonic() + START_S
        while not self._control.poll(POLL_S):
            if self.listener.stop():
                raise Interrupted("stopped")
            if time.monotonic() > end:
                raise RunError(f"the Ray cluster did not answer within {START_S:g} s", where="ray",
                               fix="look at it with `ray status`")
        try:
            answer = self._control.recv()
        except (EOFError, OSError) as error:
            raise RunError(f"the connection to Ray was lost ({self._find_last_words()})", where="ray",
                           fix="look at the cluster with `ray status`; docs/cluster.md") from error
        if isinstance(answer, ExpandError):
            raise answer
        self._sharers, remarks = answer
        for remark in remarks:
            logger.info(remark)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._close()

    def _close(self) -> None:
        self._control.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        with suppress(OSError):
            self._token.unlink(missing_ok=True)

    def run(self, jobs: Sequence[Job]) -> Iterator[Finished]:
        """Between two calls no place of the cluster is taken."""
        try:
            yield from super().run(jobs)
        finally:
            for worker in [worker for worker in self._workers if worker.job is None]:
                self._remove(worker)

    def _start(self, number: int) -> Worker:
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                send_handle(self._control, theirs.fileno(), self._process.pid)
        except OSError as error:
            raise self._lose_cluster() from error
        return Worker(number, Connection(ours.detach()))

    def _runtime_of(self, worker: Worker) -> Runtime:
        self._failed_starts = 0
        if self.runtime.device.type != "cuda":
            return self.runtime
        import torch

        return replace(self.runtime, device=torch.device("cuda", 0), sharers=self._sharers)  # Ray shows it no other GPU

    def _find_reason(self, worker: Worker) -> tuple[str, bool]:
        """A training's end is a message; a pipe ends only with the process that speaks with Ray."""
        raise self._lose_cluster()

    def _react_to_failed_start(self, worker: Worker) -> None:
        self._failed_starts += 1
        if self._failed_starts == FAILED_STARTS:
            raise RunError("training processes end, or hang, before they begin on the Ray cluster",
                           where=str(self.root), fix="`ray logs` or the logs of the nodes say why; `x3d-expand doctor` "
                                                     "there looks at the installation")

    def _lose_cluster(self) -> ExpandError:
        for worker in list(self._workers):
            self._remove(worker)
        if self.listener.stop():
            return Interrupted("stopped")  # Slurm, for one, ends Ray's processes at the same time
        return RunError(f"the Ray cluster was lost ({self._find_last_words()}); all work so far is kept",
                        where=str(self.root), fix=f"go on with: x3d-expand resume {self.root}, when it is back, or "
                                                  "with --executor local")

    def _find_last_words(self) -> str:
        """Return why the process that speaks with Ray ended, as far as its output tells."""
        output = os.pread(self._output.fileno(), MAX_OUTPUT, 0).decode("utf-8", "replace")
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        return next((meaning for words, meaning in RAYS_WORDS.items() if words in output),
                    lines[-1] if lines else "no reason was given")
