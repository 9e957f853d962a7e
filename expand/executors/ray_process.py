"""The process that speaks with Ray for a search: it starts tasks, ends them, and tells the driver why one was lost.

It is a process of its own because Ray ends its caller's process where the cluster goes away, takes SIGTERM, and writes
to the terminal. The trainings themselves are connected to the driver, so that nothing they say goes through here.

Messages to it, after a `Request`: `start` (number, address and key of the driver), `connected` (number, node, process)
and `kill` (number). Its own, as (kind, number, content): `ready` with the address of this machine in the cluster, the
trainings that share a GPU, and remarks; `alive`; `log`; `lost` with a reason and whether a task lacked memory, or, with
no number, with the reason why the cluster was lost; `error` with an `ExpandError`. It ends with its pipe, and the
cluster's tasks end with it.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import ray

from expand.errors import ExpandError, RunError, first_line
from expand.executors import cluster
from expand.executors.program import ignore_group_signals
from expand.executors.ray_node import Request, Token, kill, train
from expand.version import __version__

POLL_S = 0.1
"""Seconds between two checks of the tasks."""
NODES_S = 1.0
"""Seconds between two checks of the nodes."""
WAITS_S = 60.0
"""Seconds after which the log says that a training waits for a place."""


@dataclass(eq=False)
class _Task:
    """A training process in the cluster. Its node and process are known once it is connected to the driver."""

    result: Any
    node: str | None = None
    process: tuple[int, str] | None = None
    started: float = field(default_factory=time.monotonic)
    is_wait_logged: bool = False


class ClusterTasks:
    """The tasks of a run in the cluster."""

    def __init__(self, control: Connection, request: Request, token: Token, share: cluster.Share) -> None:
        self._control, self._request, self._token = control, request, token
        self._own_node = ray.get_runtime_context().get_node_id()
        self._train = ray.remote(max_retries=0, num_cpus=share.cpus, num_gpus=share.gpus)(train)
        self._kill = ray.remote(max_retries=0, num_cpus=0)(kill)
        self._tasks: dict[int, _Task] = {}

    def run(self) -> str | None:
        """Carry out the driver's messages until it closes the pipe (None) or the cluster is lost (the reason)."""
        next_look = 0.0
        while True:
            while self._control.poll(POLL_S):
                try:
                    kind, content = self._control.recv()
                except (EOFError, OSError):
                    return None
                self._handle(kind, *content)
            self._report_ended_tasks()
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + NODES_S
                self._control.send(("alive", None, None))
                if (reason := self._check_nodes()) is not None:
                    return reason

    def _handle(self, kind: str, number: int, *content: Any) -> None:
        if kind == "start":
            self._tasks[number] = _Task(self._train.remote(number, self._request.folder, self._token, *content))
        elif number not in self._tasks:  # it has ended
            return
        elif kind == "connected":
            self._tasks[number].node, self._tasks[number].process = content
        elif kind == "kill":
            task = self._tasks.pop(number)
            ray.cancel(task.result, force=True)
            if task.node is not None and task.process is not None:
                self._kill.options(scheduling_strategy=cluster.pin_to(task.node)).remote(*task.process)

    def _report_ended_tasks(self) -> None:
        for number, task in list(self._tasks.items()):
            if not ray.wait([task.result], timeout=0)[0]:
                continue
            del self._tasks[number]
            try:
                ray.get(task.result)
                self._control.send(("lost", number, ("its process ended", False)))
            except ray.exceptions.RayTaskError as error:  # the task itself; errors of a training are its messages
                cause = getattr(error, "cause", None) or error
                self._control.send(("error", number, cause if isinstance(cause, ExpandError) else RunError(
                    f"a training could not begin on a node of the Ray cluster: {first_line(cause)}", where="ray",
                    fix=f"install x3d-expand {__version__} on every node; {cluster.INSTALL}")))
            except ray.exceptions.RayError as error:
                self._control.send(("lost", number, explain(error)))

    def _check_nodes(self) -> str | None:
        """Report tasks on nodes that are gone, of which Ray itself may say nothing for minutes, and log what waits.
        Return a reason where this machine's node is gone, without which nothing can go on."""
        gone = {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
        if self._own_node in gone:
            return "Ray's processes on this machine ended"
        for number, task in list(self._tasks.items()):
            if task.node in gone:
                del self._tasks[number]
                self._control.send(("lost", number, ("its node was lost", False)))
            elif task.node is None and not task.is_wait_logged and time.monotonic() - task.started > WAITS_S:
                task.is_wait_logged = True
                free = ray.available_resources().get("CPU", 0)
                text = (f"a training waits for a place on the Ray cluster (free: {free:g} CPUs); `ray status` says "
                        "who has them")
                self._control.send(("log", number, text))
        return None


def explain(error: ray.exceptions.RayError) -> tuple[str, bool]:
    """Return what Ray's `error` means for a training: a reason, and whether it is a lack of memory."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its node ran out of memory", True
    if isinstance(error, (ray.exceptions.WorkerCrashedError, ray.exceptions.TaskCancelledError)):
        return "its process died", False
    if isinstance(error, ray.exceptions.NodeDiedError):
        return "its node was lost", False
    return f"Ray lost it ({type(error).__name__}: {first_line(error)})", False


def main(control_fd: int) -> None:
    """Serve the driver until it closes the pipe or the cluster is lost."""
    ignore_group_signals()
    control = Connection(control_fd)
    token = None
    try:
        request = control.recv()
        is_own = cluster.connect(request)
        ignore_group_signals()  # ray.init took them
        nodes = cluster.select_nodes(ray.nodes(), request)
        share = cluster.plan_share(nodes, request)
        token = cluster.write_token(request.root)
        remarks = cluster.check_nodes(nodes, request, token)
        if (places := cluster.count_places(nodes, share)) < request.workers:
            remarks.append(f"the Ray cluster has room for {places} of {request.workers} trainings at a time")
        where = "started on this machine" if is_own else f"of {len(nodes)} nodes"
        control.send(("ready", None, (ray.util.get_node_ip_address(), share.sharers,
                                      [f"training on a Ray cluster {where}", *remarks])))
        if (reason := ClusterTasks(control, request, token, share).run()) is not None:
            control.send(("lost", None, reason))
    except ExpandError as error:
        with suppress(OSError):
            control.send(("error", None, error))
    except Exception as error:  # noqa: BLE001 - Ray raises many kinds where a cluster ends
        traceback.print_exc()
        with suppress(OSError):
            control.send(("lost", None, f"{type(error).__name__}: {first_line(error)}"))
    finally:
        if token is not None:
            with suppress(OSError):
                token.path.unlink(missing_ok=True)
        ray.shutdown()
        sys.stdout.flush()
        os._exit(0)  # nothing of Ray's is worth waiting for
