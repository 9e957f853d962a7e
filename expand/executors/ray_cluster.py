"""The process that speaks with Ray for a search: it finds or starts the cluster, has every node checked before anything
is trained there, and starts an actor for each pipe that the driver hands it.

It is a process of its own because Ray ends its caller's process where the cluster goes away, takes SIGTERM, and writes
to the terminal. It receives the fields of a `Request`, then pipes. It answers with the trainings that share a GPU and
remarks, or with an `ExpandError`. It ends with its connection to the driver, and the cluster's trainings end with it.

Ray passes on the names of `check_node` and `Trainer` and no code, so that every node runs its own installation.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import platform
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from expand.errors import ExpandError, RunError, UsageError, first_line
from expand.executors.fork_server import ignore_group_signals
from expand.version import __version__

NODES_S = 1.0
"""Seconds between two checks of this machine's node, and of what waits for a place."""
WAITS_S = 60.0
"""Seconds after which the log says that a training waits for a place."""
LOOK_S = 120.0
"""Seconds that nodes may take to answer: their first process imports torch from what may be a slow disk."""
ANSWERS_S = 5.0
"""Seconds that a cluster's first process may take to answer."""
REASON_S = 90.0
"""Seconds that Ray may take to say why a process is gone: it regards a node as dead some 15 s after its loss, and ends
this process 60 s after that of the head."""
STORE_BYTES = 200_000_000
"""Object store of a cluster that this program starts; only the list of clips passes through it."""
PRECISION = 1e-4
"""Of Ray's resources."""
INSTALL = "start the cluster's processes (`ray start`) with the very Python that has x3d-expand; docs/cluster.md"
LOOK_AT_IT = "look at it with `ray status`; `ray stop` on it takes it out of the cluster"


@dataclass(frozen=True)
class Request:
    """What a run asks of a Ray cluster: `workers` trainings at a time, each with `threads` CPUs and, where `on_gpu`, a
    GPU or a share of one."""

    workers: int
    threads: int
    on_gpu: bool
    token: Path
    """An empty file in the run directory whose random name shows whether a node sees the driver's run directory."""
    folder: str
    """Where the command was started: relative paths start there."""
    clip: bytes | None
    """The first clip, pickled, which every node has to read."""
    versions: dict[str, str]
    """Those of the driver's machine."""


def main(control_fd: int) -> None:
    """Serve the driver until it closes the connection or the cluster is lost."""
    ignore_group_signals()
    control = Connection(control_fd)
    try:
        request = Request(**control.recv(), versions=versions())
        is_own = connect(request)
        ignore_group_signals()  # ray.init took them
        nodes = select_nodes(ray.nodes(), request)
        gpus, sharers = plan_share(nodes, request)
        remarks = check_nodes(nodes, request)
        if (places := count_places(nodes, request, sharers)) < request.workers:
            remarks.append(f"the Ray cluster has room for {places} of {request.workers} trainings at a time")
        where = "started on this machine" if is_own else f"of {len(nodes)} nodes"
        control.send((sharers, [f"training on a Ray cluster {where}", *remarks]))
        own = ray.get_runtime_context().get_node_id()
        while any(node["Alive"] for node in ray.nodes() if node["NodeID"] == own):
            if control.poll(NODES_S):
                Relay(Connection(recv_handle(control)), request, gpus)
        print("Ray's processes on this machine ended", file=sys.stderr)
    except EOFError:  # the driver has ended
        pass
    except ExpandError as error:
        with suppress(OSError):
            control.send(error)
    except Exception:  # noqa: BLE001 - Ray raises many kinds where a cluster ends
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        ray.shutdown()
        os._exit(0)  # nothing of Ray's is worth waiting for


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
    none, for which Ray would wait."""
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


def plan_share(nodes: Sequence[dict[str, Any]], request: Request) -> tuple[float, int]:
    """Return the GPUs that Ray sets aside for a training, 0 to 1, and how many trainings share a GPU: one, or, where
    there are more trainings than GPUs, an even number."""
    if not request.on_gpu:
        return 0, 1
    sharers = max(1, math.ceil(request.workers / int(sum(node["Resources"].get("GPU", 0) for node in nodes))))
    return (math.floor(1 / sharers / PRECISION) * PRECISION if sharers > 1 else 1), sharers


def count_places(nodes: Sequence[dict[str, Any]], request: Request, sharers: int) -> int:
    """Return how many trainings fit on `nodes` at a time."""
    return sum(int(min(node["Resources"].get("CPU", 0) // request.threads,
                       node["Resources"].get("GPU", 0) * sharers if request.on_gpu else math.inf)) for node in nodes)


def check_nodes(nodes: Sequence[dict[str, Any]], request: Request) -> list[str]:
    """Check all `nodes` at the same time and return remarks, a line each. Raises `UsageError` or `RunError` for the
    first that cannot train for this run."""
    check = ray.remote(max_retries=1, num_cpus=0)(check_node)
    checks = [check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
              .remote(request) for node in nodes]
    ray.wait(checks, num_returns=len(checks), timeout=LOOK_S)
    found = []
    for node, answer in zip(nodes, checks, strict=True):
        where = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            found.append(ray.get(answer, timeout=0))
        except ray.exceptions.GetTimeoutError as error:
            raise RunError(f"did not answer within {LOOK_S:g} s", where=where, fix=LOOK_AT_IT) from error
        except ray.exceptions.RayTaskError as error:
            raise find_error(error, where) from error
        except ray.exceptions.RayError as error:
            raise RunError(f"cannot be used: {first_line(error)}", where=where, fix=LOOK_AT_IT) from error
    return list_remarks(found)


def find_error(error: ray.exceptions.RayError, where: str) -> ExpandError:
    """Return the error that code on a node raised. Where it is not one of this program's, x3d-expand is missing there,
    or is another version, as a rule."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ExpandError):
        return cause
    return UsageError(f"x3d-expand {__version__} does not run there ({first_line(cause)})", where=where,
                      fix=f"install x3d-expand {__version__} there; {INSTALL}")


@dataclass(frozen=True)
class NodeFacts:
    """What trainings may notice of a node: its compiled kernels, and whether the decoded frames of the clips were found
    there, so that they need not be decoded at each access."""

    host: str
    kernels: str | None
    has_frames: bool


def list_remarks(found: Sequence[NodeFacts]) -> list[str]:
    """Return what a user may want to know of the nodes, a line each."""
    remarks = []
    builds = sorted({facts.kernels or "none" for facts in found})
    if len(builds) > 1:
        remarks.append(f"the nodes have different compiled kernels ({', '.join(builds)}): the last bits of a result "
                       "may depend on the node that it was trained on")
    blind = [facts.host for facts in found if not facts.has_frames]
    if blind:
        remarks.append(f"the decoded frames (data.cache_dir) are not on {', '.join(blind)}: they are decoded at each "
                       "access there, which is slower; a data.cache_dir that all nodes share avoids it")
    return remarks


def check_node(request: Request) -> NodeFacts:
    """Check this node, and enter the folder that the command was started in. Raises `UsageError` where it cannot train
    for the run."""
    from expand.kernels import library

    host = socket.gethostname()
    where = f"node {host} ({ray.util.get_node_ip_address()})"
    with suppress(OSError):  # relative paths mean what they mean to the driver, where its folder exists here too
        os.chdir(request.folder)
    for name, here in versions().items():
        if here != (there := request.versions.get(name)):
            raise UsageError(f"has {name} {here}, and this command {there}", where=where,
                             fix=f"install the same versions on all nodes; {INSTALL}")
    try:
        request.token.stat()
        with tempfile.TemporaryFile(dir=request.token.parent):
            pass
    except OSError as error:
        raise UsageError(f"does not see the run directory {request.token.parent} as this command does, or cannot write "
                         f"there: {error.strerror}", where=where,
                         fix="put the run on a file system that all nodes share (--run-dir), at the same place"
                         ) from error
    has_frames = True
    if request.clip is not None:  # read a frame as a training does
        import numpy as np

        from expand.data.frames.frame_access import read_frames

        clip = pickle.loads(request.clip)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                read_frames(clip, np.zeros(1, dtype=np.int64), 0, clip.height)
            except ExpandError as error:
                raise UsageError("cannot read the clips: " + str(error).replace("\n", " "), where=where,
                                 fix="put the clips on a file system that all nodes share, at the same place"
                                 ) from error
        has_frames = clip.store is None or not caught
    if request.on_gpu:
        import torch

        if not torch.cuda.is_available():
            raise UsageError("offers a GPU that torch cannot use", where=where,
                             fix="check it with `x3d-expand doctor` there, or use --device cpu")
    return NodeFacts(host, library.status().build, has_frames)


def versions() -> dict[str, str]:
    """Return the versions that must be equal on all nodes: torch's without its build, Python's as `3.11`."""
    return {"x3d-expand": __version__, "torch": metadata.version("torch").partition("+")[0],
            "Python": ".".join(platform.python_version_tuple()[:2])}


class Trainer:
    """A training process (`expand.executors.worker`) as a Ray actor."""

    def __init__(self) -> None:
        self._pipe, self._end = Pipe()

    def answers(self, request: Request) -> Iterator[tuple[str, Any]]:
        """Begin to serve, and yield the process's messages. Raises `UsageError` where this node cannot train: it may
        have joined the cluster later than all were checked."""
        yield "heartbeat", None  # it has found a place
        check_node(request)
        threading.Thread(target=self._serve, daemon=True).start()
        while (message := self._pipe.recv()) is not None:
            yield message

    def _serve(self) -> None:
        from expand.executors.worker import serve

        try:
            serve(self._end)
        finally:
            self._end.send(None)

    def tell(self, kind: str, content: Any) -> None:
        """Pass on a message to the training process."""
        self._pipe.send((kind, content))


class Relay:
    """A training process in the cluster, whose messages pass through `pipe`; it ends when the driver closes that.

    Its end is a message: `died` with a reason and whether it lacked memory. While it waits for a place it sends
    heartbeats.
    """

    def __init__(self, pipe: Connection, request: Request, gpus: float) -> None:
        self._pipe = pipe
        actor: Any = ray.remote(Trainer).options(num_cpus=request.threads, num_gpus=gpus, max_concurrency=2)
        self._trainer = actor.remote()
        self._answers = self._trainer.answers.options(num_returns="streaming").remote(request)
        for work in (self._pass_answers, self._pass_messages):
            threading.Thread(target=work, daemon=True).start()

    def _pass_messages(self) -> None:
        try:
            while True:
                self._trainer.tell.remote(*self._pipe.recv())
        except (EOFError, OSError):
            ray.kill(self._trainer)  # also ends a stopped process (SIGSTOP), after some seconds

    def _pass_answers(self) -> None:
        with suppress(OSError):  # the driver wants no more of it
            try:
                self._wait_for_place()
                for answer in self._answers:
                    self._pipe.send(ray.get(answer))
                self._pipe.send(("died", ("its process ended", False)))
            except ray.exceptions.RayTaskError as error:  # errors of a training are its messages
                found = find_error(error, "a node of the Ray cluster")
                self._pipe.send(("error", RunError(found.what, where=found.where, fix=found.fix)))
            except ray.exceptions.RayError as error:
                self._pipe.send(("died", explain(self._find_cause(error))))

    def _find_cause(self, error: ray.exceptions.RayError) -> ray.exceptions.RayError:
        """Wait until Ray knows why a process is gone: it notices that at once, and the loss of a node later. Where the
        cluster itself is lost, this process ends meanwhile: no candidate has failed then."""
        end = time.monotonic() + REASON_S
        while isinstance(error, ray.exceptions.ActorUnavailableError) and time.monotonic() < end:
            time.sleep(NODES_S)
            try:
                ray.get(self._trainer.__ray_ready__.remote(), timeout=NODES_S)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError as now:
                error = now
        if "node has died" in str(error):  # maybe this machine's own, which `main` notices meanwhile
            time.sleep(2 * NODES_S)
        return error

    def _wait_for_place(self) -> None:
        began, is_logged = time.monotonic(), False
        while not ray.wait([self._answers], timeout=NODES_S)[0]:
            self._pipe.send(("heartbeat", None))
            if not is_logged and time.monotonic() - began > WAITS_S:
                is_logged = True
                free = ray.available_resources().get("CPU", 0)
                self._pipe.send(("log", (logging.WARNING, "a training waits for a place on the Ray cluster (free: "
                                                          f"{free:g} CPUs); `ray status` says who has them")))


def explain(error: ray.exceptions.RayError) -> tuple[str, bool]:
    """Return what Ray's `error` means for a training: a reason, and whether it is a lack of memory."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its node ran out of memory", True
    if isinstance(error, ray.exceptions.ActorDiedError):
        return ("its node was lost" if "node has died" in str(error) else "its process died"), False
    return f"Ray lost it ({type(error).__name__}: {first_line(error)})", False
