"""The process that speaks with Ray for a search: it hands trainings out as tasks and passes on what they say.

It is a process of its own because Ray ends its caller's where the cluster goes away, takes SIGTERM, and writes to the
terminal. To the driver each training is a pipe with the messages of `expand.executors.worker`, of which `begin` tells
`host:pid`, and one more: `lost` (reason, whether for lack of memory), where Ray lost it. A pipe that the driver closes
ends its training. The process ends with its control socket, and the cluster's tasks with it.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection, wait
from typing import Any

import ray

from expand.errors import ExpandError, RunError
from expand.executors import cluster
from expand.executors.program import ignore_group_signals
from expand.executors.ray_request import Wanted
from expand.executors.ray_task import Mailbox, Shared, kill, train
from expand.training.job import Job
from expand.version import __version__

POLL_S = 0.1
"""Seconds between two looks at tasks and messages."""
NODES_S = 1.0
"""Seconds between two looks at the nodes; a sign of life of what waits for a place is given as often."""
WAITS_S = 60.0
"""Seconds after which it is said that a training waits for a place."""


@dataclass(eq=False)
class _Task:
    """A training in the cluster, and the driver's pipe for it. Where it runs is known once it has begun."""

    number: int
    pipe: Connection
    result: Any
    node: str | None = None
    process: tuple[int, str] | None = None
    began: float = field(default_factory=time.monotonic)
    is_told: bool = False


class Front:
    """Between the driver's pipes and the cluster."""

    def __init__(self, fds: socket.socket, control: Connection, held: Any, share: cluster.Shares) -> None:
        self._fds, self._control, self._held = fds, control, held
        self._node = ray.get_runtime_context().get_node_id()
        self._task = ray.remote(max_retries=0, num_cpus=share.cpus, num_gpus=share.gpus,
                                max_calls=1 if share.gpus else 0)(train)
        self._kill = ray.remote(max_retries=0, num_cpus=0)(kill)
        self._mailbox = ray.remote(num_cpus=0, max_restarts=-1)(Mailbox).options(
            scheduling_strategy=cluster.pinned(self._node)).remote()
        self._collected: Any = None
        self._pipes: list[Connection] = []
        self._tasks: dict[int, _Task] = {}
        self._numbers = count()
        self._kills: list[Any] = []
        self._is_stopping = False
        self._looked = 0.0

    def run(self) -> str | None:
        """Works until the driver ends it, or the cluster is lost: the reason."""
        while True:
            for ready in wait([self._fds, *self._pipes], POLL_S):
                if ready is self._fds:
                    if not self._take_pipe():
                        return None
                elif ready in self._pipes:  # a stop that came on another has closed those without work
                    self._take_message(ready)
            self._collect()
            self._take_results()
            if time.monotonic() - self._looked >= NODES_S:
                self._looked = time.monotonic()
                if (reason := self._look_at_nodes()) is not None:
                    return reason

    def _take_pipe(self) -> bool:
        order, ends, _, _ = socket.recv_fds(self._fds, 1, 1)
        self._pipes += [Connection(end) for end in ends]
        return bool(order)

    def _take_message(self, pipe: Connection) -> None:
        try:
            kind, content = pipe.recv()
        except (EOFError, OSError):
            self._give_up(pipe)
            return
        if kind == "job":
            self._begin(pipe, content)
        elif kind == "stop":
            self._stop()

    def _stop(self) -> None:
        """Trainings hear it with the answer to their next sign of life; what waits for a place is taken back."""
        self._is_stopping = True
        for task in [task for task in self._tasks.values() if task.node is None]:
            ray.cancel(task.result, force=True)
            self._end(task, "interrupted", None)
        busy = {task.pipe for task in self._tasks.values()}
        for pipe in [pipe for pipe in self._pipes if pipe not in busy]:
            self._close(pipe)

    def _close(self, pipe: Connection) -> None:
        self._pipes.remove(pipe)
        pipe.close()

    def _begin(self, pipe: Connection, job: Job) -> None:
        number = next(self._numbers)
        self._tasks[number] = _Task(number, pipe, self._task.remote(number, job, self._held, self._mailbox))

    def _give_up(self, pipe: Connection) -> None:
        """The driver wants no more of a training: one that hangs, as a rule, so that it is ended in every way."""
        self._close(pipe)
        for task in [task for task in self._tasks.values() if task.pipe is pipe]:
            del self._tasks[task.number]
            ray.cancel(task.result, force=True)
            if task.process is not None:
                self._kills.append(self._kill.options(scheduling_strategy=cluster.pinned(task.node))
                                   .remote(*task.process))

    def _collect(self) -> None:
        """Passes on what trainings say through the mailbox."""
        if self._collected is not None:
            if not ray.wait([self._collected], timeout=0)[0]:
                return
            with suppress(ray.exceptions.RayError):  # it is being started anew
                for message in ray.get(self._collected):
                    self._pass_on(*message)
        self._collected = self._mailbox.collect.remote(self._is_stopping)

    def _pass_on(self, number: int, kind: str, content: Any) -> None:
        if (task := self._tasks.get(number)) is None:
            return
        if kind == "begin":
            if task.node is not None:
                return
            task.node, task.process = content["node"], content["process"]
            content = content["where"]
        self._send(task, kind, content)

    def _send(self, task: _Task, kind: str, content: Any) -> None:
        with suppress(OSError):  # the driver has closed it: that is seen in a moment
            task.pipe.send((kind, content))

    def _end(self, task: _Task, kind: str, content: Any) -> None:
        del self._tasks[task.number]
        self._send(task, kind, content)
        if self._is_stopping and task.pipe in self._pipes:
            self._close(task.pipe)

    def _take_results(self) -> None:
        by_result = {task.result: task for task in self._tasks.values()}
        if not by_result:
            return
        ready, _ = ray.wait(list(by_result), num_returns=len(by_result), timeout=0)
        for result in ready:
            task = by_result[result]
            try:
                kind, content, rest = ray.get(result)
            except ray.exceptions.RayTaskError as error:  # not of the training, whose errors are results
                self._end(task, "error", RunError(
                    f"a training could not begin on a node of the Ray cluster: {cluster.first_line(error)}",
                    where="ray", fix=f"install x3d-expand {__version__} on every node; {cluster.FIRST}"))
            except ray.exceptions.RayError as error:
                self._end(task, "lost", why(error))
            else:
                for message in rest:
                    self._pass_on(*message)
                self._end(task, kind, content)

    def _look_at_nodes(self) -> str | None:
        """Gives up trainings on nodes that are gone, of which Ray itself may say nothing for minutes. The reason where
        this one's is, without which nothing is left to do."""
        gone = {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
        if self._node in gone:
            return "Ray's processes on this machine ended"
        if self._tasks:
            self._control.send(("alive", None))
        for task in list(self._tasks.values()):
            if task.node is None:
                self._send(task, *self._still_waits(task))
            elif task.node in gone:
                self._end(task, "lost", ("its node was lost", False))
        self._kills = ray.wait(self._kills, num_returns=len(self._kills), timeout=0)[1] if self._kills else []
        return None

    def _still_waits(self, task: _Task) -> tuple[str, Any]:
        """The sign of life of what has no place yet: others may use the cluster, or it is still growing."""
        if task.is_told or time.monotonic() - task.began < WAITS_S:
            return "alive", None
        task.is_told = True
        return "log", (f"a training waits for a place on the Ray cluster (free: "
                       f"{ray.available_resources().get('CPU', 0):g} CPUs); `ray status` says who has them")


def why(error: ray.exceptions.RayError) -> tuple[str, bool]:
    """What Ray's `error` means for a training: a reason, and whether it is a lack of memory."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its node ran out of memory", True
    if isinstance(error, (ray.exceptions.WorkerCrashedError, ray.exceptions.TaskCancelledError)):
        return "its process died", False
    if isinstance(error, ray.exceptions.NodeDiedError):
        return "its node was lost", False
    return f"Ray lost it ({type(error).__name__}: {cluster.first_line(error)})", False


def main(control_fd: int) -> None:
    """Serves the driver. To a `hello` it sends what it wants, pickled, then the clips; the answer is `ready` with
    remarks, or `error`."""
    ignore_group_signals()
    fds, control = socket.socket(fileno=control_fd), Connection(os.dup(control_fd))
    try:
        control.send(("hello", None))
        wanted, content = pickle.loads(control.recv_bytes()), control.recv_bytes()
    except (EOFError, OSError):
        return
    token_path = None
    try:
        front, token_path = _serve(wanted, content, fds, control)
        if (reason := front.run()) is not None:
            control.send(("lost", reason))
    except ExpandError as error:
        with suppress(OSError):
            control.send(("error", error))
    except Exception as error:  # noqa: BLE001 - what Ray raises where a cluster ends is many things
        traceback.print_exc()
        with suppress(OSError):
            control.send(("lost", f"{type(error).__name__}: {cluster.first_line(error)}"))
    finally:
        if token_path is not None:
            with suppress(OSError):
                token_path.unlink(missing_ok=True)
        ray.shutdown()
        sys.stdout.flush()
        os._exit(0)  # nothing of Ray's is worth waiting for


def _serve(wanted: Wanted, content: bytes, fds: socket.socket, control: Connection) -> tuple[Front, Any]:
    is_own = cluster.connect(wanted, len(content))
    ignore_group_signals()  # Ray took them
    nodes = cluster.fitting_nodes(ray.nodes(), wanted)
    share = cluster.shares(nodes, wanted)
    token_path, token = cluster.new_token(wanted.root)
    try:
        shared = Shared(content, wanted.folder, token_path, token, share.sharers)
        said = cluster.check_nodes(nodes, shared, wanted)
        if (room := cluster.room(nodes, share)) < wanted.workers:
            said.append(f"the Ray cluster has room for {room} of {wanted.workers} trainings at a time")
        front = Front(fds, control, ray.put(shared), share)
    except BaseException:
        token_path.unlink(missing_ok=True)
        raise
    place = "started on this machine" if is_own else f"of {len(nodes)} nodes"
    control.send(("ready", [f"training on a Ray cluster {place}", *said]))
    return front, token_path
