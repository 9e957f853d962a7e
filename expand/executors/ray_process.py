"""The process that speaks with Ray for a search: it finds or starts the cluster, checks the nodes before anything is
trained there, starts and ends tasks, and tells the driver why one was lost.

It is a process of its own because Ray ends its caller's process where the cluster goes away, takes SIGTERM, and writes
to the terminal. The trainings themselves are connected to the driver, so that nothing they say goes through here.

Messages to it, after a `Request`: `start` (number, address and key of the driver), `connected` (number, node, process)
and `kill` (number). Its own, as (kind, number, content): `ready` with the address of this machine in the cluster, the
trainings that share a GPU, and remarks; `alive`; `log` with a level and a text; `lost` with a reason and whether a task
lacked memory, or, with no number, with the reason why the cluster was lost; `error` with an `ExpandError`. It ends with
its pipe, and the cluster's tasks end with it.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from expand.errors import ExpandError, RunError, UsageError, first_line
from expand.executors.fork_server import ignore_group_signals
from expand.executors.ray_node import NodeFacts, Request, Token, kill, look, train, versions
from expand.rundir.files import TEMPORARY, write_atomic
from expand.version import __version__

POLL_S = 0.1
"""Seconds between two checks of the tasks."""
NODES_S = 1.0
"""Seconds between two checks of the nodes."""
WAITS_S = 60.0
"""Seconds after which the log says that a training waits for a place."""
LOOK_S = 120.0
"""Seconds that nodes may take to answer: their first process imports torch from what may be a slow disk."""
ANSWERS_S = 5.0
"""Seconds that a cluster's first process may take to answer."""
SHOWS_S = 15.0
"""Seconds that a shared file system may take to show here what a node wrote."""
STORE_BYTES = 100_000_000
"""Object store of a cluster that this program starts; next to nothing is kept in it."""
PRECISION = 1e-4
"""Of Ray's resources."""
INSTALL = "start the cluster's processes (`ray start`) with the very Python that has x3d-expand; docs/cluster.md"
LOOK_AT_IT = "look at it with `ray status`; `ray stop` on it takes it out of the cluster"


def main(control_fd: int) -> None:
    """Serve the driver until it closes the pipe or the cluster is lost."""
    ignore_group_signals()
    control = Connection(control_fd)
    token = None
    try:
        request = control.recv()
        is_own = connect(request)
        ignore_group_signals()  # ray.init took them
        nodes = select_nodes(ray.nodes(), request)
        share = plan_share(nodes, request)
        token = write_token(request.root)
        remarks = check_nodes(nodes, request, token)
        if (places := count_places(nodes, share)) < request.workers:
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


@dataclass(frozen=True)
class Share:
    """The resources that Ray sets aside for a training: `gpus` of 0 to 1, of which `sharers` make up one GPU."""

    cpus: int
    gpus: float
    sharers: int


def connect(request: Request) -> bool:
    """Connect to the cluster of RAY_ADDRESS, or to the one that `ray start` began on this machine. Where there is none,
    start one on this machine that ends with this process, and return True.

    A private cluster of another program on this machine is not used (`ray.init("auto")` would): it may end at any
    moment. Raises `UsageError` with Ray's reason.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = find_address()
    if address is None:  # "local", since without an address Ray would try a cluster that is gone
        options |= {"address": "local", "num_cpus": request.workers * request.threads, "include_dashboard": False,
                    "num_gpus": None if request.on_gpu else 0, "object_store_memory": STORE_BYTES}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError, AssertionError, ray.exceptions.RayError) as error:
        raise _no_connection(first_line(error), address) from error
    return address is None


def find_address() -> str | None:
    """Return the address (host:port) of RAY_ADDRESS, or the one that `ray start` left on this machine; None where there
    is none.

    Raises `UsageError` where nothing answers at RAY_ADDRESS: Ray would try for minutes and then end its process.
    """
    named = os.environ.get("RAY_ADDRESS") or None
    if named == "local":
        os.environ.pop("RAY_ADDRESS")  # else Ray takes it for the address of a cluster in all its processes
        return None
    if named is not None and "://" in named:
        raise UsageError("is an address of Ray's client, and a search is started on a node of the cluster",
                         where=f"RAY_ADDRESS={named}", fix="give host:port, on a node that `ray start` made one")
    if named in (None, "auto"):
        folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
        try:  # the file that `ray.init` documents; it stays there after a crash
            left = Path(folder, "ray", "ray_current_cluster").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return left if _answers(left) else None
    if not _answers(named):
        raise _no_connection(f"nothing answers within {ANSWERS_S:g} s", named)
    return named


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWERS_S):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def _no_connection(what: str, address: str | None) -> UsageError:
    return UsageError(f"no connection to a Ray cluster: {what}", where=address or "ray",
                      fix="`ray status` says whether it is up; one with a token wants RAY_AUTH_MODE=token. Without "
                          "RAY_ADDRESS and after `ray stop`, x3d-expand starts one on this machine (docs/cluster.md)")


def select_nodes(nodes: Sequence[dict[str, Any]], request: Request) -> list[dict[str, Any]]:
    """Return those of `nodes` (as `ray.nodes()` lists them) that a training fits on. Raises `UsageError` where there is
    none."""
    alive = [node for node in nodes if node["Alive"]]
    fitting = [node for node in alive if node["Resources"].get("CPU", 0) >= request.threads
               and (not request.on_gpu or node["Resources"].get("GPU", 0) > 0)]
    if not fitting:
        most = max((node["Resources"].get("CPU", 0) for node in alive), default=0)
        if request.on_gpu and most >= request.threads:
            raise UsageError("no node of the Ray cluster offers a GPU", where="run.device",
                             fix="use --device cpu, or say `--num-gpus` to `ray start` on the nodes that have one")
        raise UsageError(f"no node of the Ray cluster offers {request.threads} CPUs; the largest has {most:g}",
                         where="run.threads", fix=f"use --threads {max(1, int(most))} or less")
    return fitting


def plan_share(nodes: Sequence[dict[str, Any]], request: Request) -> Share:
    """Return the resources of each training: a GPU, or an even share of one where there are more trainings than GPUs.
    """
    if not request.on_gpu:
        return Share(request.threads, 0, 1)
    gpus = int(sum(node["Resources"].get("GPU", 0) for node in nodes))
    sharers = max(1, math.ceil(request.workers / gpus))
    return Share(request.threads, math.floor(1 / sharers / PRECISION) * PRECISION if sharers > 1 else 1, sharers)


def count_places(nodes: Sequence[dict[str, Any]], share: Share) -> int:
    """Return how many trainings fit on `nodes` at a time."""
    return sum(int(min(node["Resources"].get("CPU", 0) // share.cpus,
                       node["Resources"].get("GPU", 0) * share.sharers if share.gpus else math.inf))
               for node in nodes)


def write_token(root: Path) -> Token:
    """Write a token into the run directory. Where a kill leaves it there, it is removed with all temporary files."""
    token = Token(root / f"{TEMPORARY}{secrets.token_hex(4)}-ray", secrets.token_hex(16))
    write_atomic(token.path, token.content)
    return token


def pin_to(node: str) -> NodeAffinitySchedulingStrategy:
    """Return the scheduling that allows this node alone."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def check_nodes(nodes: Sequence[dict[str, Any]], request: Request, token: Token) -> list[str]:
    """Check all `nodes` at the same time and return remarks, a line each. Raises `UsageError` or `RunError` for the
    first that cannot train for this run."""
    own = ray.get_runtime_context().get_node_id()
    task = ray.remote(max_retries=1, num_cpus=0)(look)
    names = [node["NodeID"] for node in nodes]
    replies = {name: None if name == own else f"{token.path.name}-{name[:12]}" for name in names}
    looks = {name: task.options(scheduling_strategy=pin_to(name)).remote(request, token, replies[name])
             for name in names}
    ray.wait(list(looks.values()), num_returns=len(looks), timeout=LOOK_S)
    found = []
    for node in nodes:
        facts = _get_facts(node, looks[node["NodeID"]])
        found.append(facts)
        where = f"node {facts.host} ({node['NodeManagerAddress']})"
        if (error := find_obstacle(where, facts, request.root)) is not None:
            raise error
        if (reply := replies[node["NodeID"]]) is not None:
            _check_reply(where, token, token.path.with_name(reply))
    return list_remarks(found)


def _get_facts(node: dict[str, Any], answer: Any) -> NodeFacts:
    where = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    try:
        return ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError as error:
        raise RunError(f"did not answer within {LOOK_S:g} s", where=where, fix=LOOK_AT_IT) from error
    except ray.exceptions.RayTaskError as error:  # x3d-expand is missing there, or another version, as a rule
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, ExpandError):
            raise cause from error
        raise UsageError(f"x3d-expand {__version__} does not run there ({first_line(cause)})", where=where,
                         fix=f"install x3d-expand {__version__} there; {INSTALL}") from error
    except ray.exceptions.RayError as error:
        raise RunError(f"cannot be used: {first_line(error)}", where=where, fix=LOOK_AT_IT) from error


def find_obstacle(where: str, facts: NodeFacts, root: Path) -> ExpandError | None:
    """Return what keeps a node with these `facts` from training for this driver's run; None: nothing."""
    for name, ours in versions().items():
        if (there := facts.versions.get(name)) != ours:
            return UsageError(f"has {name} {there}, and this command {ours}", where=where,
                              fix=f"install the same versions on all nodes; {INSTALL}")
    if facts.run_dir is not None:
        return UsageError(f"does not see the run directory {root} as this command does: {facts.run_dir}", where=where,
                          fix="put the run on a file system that all nodes share (--run-dir), at the same place")
    if facts.clip is not None:
        return UsageError(f"cannot read the clips: {facts.clip}", where=where,
                          fix="put the clips on a file system that all nodes share, at the same place")
    if not facts.gpu:
        return UsageError("offers a GPU that torch cannot use", where=where,
                          fix="check it with `x3d-expand doctor` there, or use --device cpu")
    return None


def _check_reply(where: str, token: Token, reply: Path) -> None:
    """Wait until the file that a node wrote shows here. Raises `RunError` where it does not."""
    end = time.monotonic() + SHOWS_S
    try:
        while token.find_mistake(reply) is not None:
            if time.monotonic() < end:
                time.sleep(0.05)
                continue
            raise RunError(f"wrote into the run directory, which did not show here within {SHOWS_S:g} s", where=where,
                           fix="put the run on a file system that all nodes share (--run-dir)")
    finally:
        with suppress(OSError):
            reply.unlink(missing_ok=True)


def list_remarks(found: Sequence[NodeFacts]) -> list[str]:
    """Return what a user may want to know of the nodes, a line each."""
    said = []
    builds = sorted({facts.kernels or "none" for facts in found})
    if len(builds) > 1:
        said.append(f"the nodes have different compiled kernels ({', '.join(builds)}): the last bits of a result may "
                    "depend on the node that it was trained on")
    blind = [facts.host for facts in found if not facts.has_frames]
    if blind:
        said.append(f"the decoded frames (data.cache_dir) are not on {', '.join(blind)}: they are decoded at each "
                    "access there, which is slower; a data.cache_dir that all nodes share avoids it")
    return said


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

    def __init__(self, control: Connection, request: Request, token: Token, share: Share) -> None:
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
                self._kill.options(scheduling_strategy=pin_to(task.node)).remote(*task.process)

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
                    fix=f"install x3d-expand {__version__} on every node; {INSTALL}")))
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
                self._control.send(("log", number, (logging.WARNING, text)))
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
