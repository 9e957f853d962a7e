"""The code that runs on the nodes of a Ray cluster: the trainings, the check of a node, and the end of a hung process.

Ray passes on the names of these functions and no code, so that every node runs its own installation. Ray and torch are
imported inside: the driver needs no Ray, and the process that speaks with Ray needs no torch.
"""

from __future__ import annotations

import os
import pickle
import platform
import signal
import socket
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path

from expand.errors import ExpandError, RunError
from expand.machine import process_address
from expand.version import __version__

CONNECT_S = 60.0
"""Seconds that a training may take to connect to the driver."""


@dataclass(frozen=True)
class Request:
    """The places that a run asks of a Ray cluster: `workers` trainings at a time, each with `threads` CPUs and, where
    `on_gpu`, a GPU or a share of one."""

    workers: int
    threads: int
    on_gpu: bool
    root: Path
    """The run directory."""
    folder: str
    """Where the command was started: relative paths start there."""
    clip: bytes | None = None
    """The first clip, pickled, which every node has to read."""


@dataclass(frozen=True)
class Token:
    """A file in the run directory, and its content, which show whether a node sees the driver's run directory."""

    path: Path
    content: str

    def find_mistake(self, path: Path | None = None) -> str | None:
        """Describe what is wrong with the file here, or with a copy of it at `path`; None: nothing."""
        try:
            found = (path or self.path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return getattr(error, "strerror", None) or str(error)
        return None if found == self.content else "its files are others there"


def greeting(key: bytes, number: int) -> bytes:
    """Return the first bytes that task `number` sends to the driver: the secret `key` of the run, and the number."""
    return key + number.to_bytes(8, "big")


def train(number: int, folder: str, token: Token, address: tuple[str, int], key: bytes) -> None:
    """Serve as a training process (`expand.executors.worker`) that is connected to the driver at `address`.

    Raises `RunError` where this node sees another run directory than the driver, or cannot connect to it.
    """
    enter(folder)
    if (mistake := token.find_mistake()) is not None:  # nodes that joined the cluster later were not checked
        raise RunError(f"{process_address()} does not see the run directory: {mistake}", where=str(token.path.parent),
                       fix="put the run on a file system that all nodes of the cluster share (--run-dir)")
    try:
        connection = socket.create_connection(address, CONNECT_S)
        connection.sendall(greeting(key, number))
    except OSError as error:
        raise RunError(f"{process_address()} cannot connect to the command at {address[0]}:{address[1]}: {error}",
                       where="ray", fix="let the nodes connect to each other on all ports, as Ray needs it") from error
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    pipe = Connection(connection.detach())
    import ray

    # A process's number alone may be given to another process later: its start time goes with it.
    process = os.getpid(), read_start_time(os.getpid())
    pipe.send(("connected", (ray.get_runtime_context().get_node_id(), process)))

    from expand.executors.worker import serve  # after that: torch's import takes seconds, in which it may be killed

    if not serve(pipe):
        os._exit(0)  # a thread listens to the pipe and would end a later task of this process


def enter(folder: str) -> None:
    """Let relative paths mean what they mean to the driver, where its folder exists here too."""
    with suppress(OSError):
        os.chdir(folder)


def read_start_time(pid: int) -> str:
    """Return the start time of a process in the system's ticks; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def kill(pid: int, started: str) -> None:
    """End a process of this node, even one that is stopped (SIGSTOP), which Ray's own cancelling does not end."""
    if read_start_time(pid) == started:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class NodeFacts:
    """The state of a node, as `look` found it."""

    host: str
    versions: dict[str, str]
    kernels: str | None
    run_dir: str | None
    """What is wrong with the run directory there; None: nothing."""
    clip: str | None
    """What is wrong with the first clip there."""
    has_frames: bool
    """Whether its decoded frames were found, so that it need not be decoded at each access."""
    gpu: bool
    """Whether torch can use a GPU there, or none is needed."""


def look(request: Request, token: Token, reply: str | None) -> NodeFacts:
    """Check this node; with the file name `reply`, also write a copy of the token beside it."""
    from expand.kernels import library

    enter(request.folder)
    mistake = token.find_mistake()
    if mistake is None and reply is not None:
        try:
            token.path.with_name(reply).write_text(token.content, encoding="utf-8")
        except OSError as error:
            mistake = f"cannot be written there ({error.strerror})"
    clip_mistake, has_frames = None, True
    if request.clip is not None:  # read a frame as a training does
        import numpy as np

        from expand.data.frames.frame_access import read_frames

        clip = pickle.loads(request.clip)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                read_frames(clip, np.zeros(1, dtype=np.int64), 0, clip.height)
                has_frames = clip.store is None or not caught
            except ExpandError as error:
                clip_mistake, has_frames = str(error).replace("\n", " "), False
    gpu = True
    if request.on_gpu:
        import torch

        gpu = torch.cuda.is_available()
    return NodeFacts(socket.gethostname(), versions(), library.status().build, mistake, clip_mistake, has_frames, gpu)


def versions() -> dict[str, str]:
    """Return the versions that must be equal on all nodes: torch's without its build, Python's as `3.11`."""
    return {"x3d-expand": __version__, "torch": metadata.version("torch").partition("+")[0],
            "Python": ".".join(platform.python_version_tuple()[:2])}
