"""What runs inside a Ray cluster for a search: the trainings, their mailbox, and what looks after a node.

These are plain functions and a class of an installed module, so that Ray passes their names on and no code. Torch is
imported inside, since the process that only hands jobs out needs none.
"""

from __future__ import annotations

import os
import pickle
import platform
import signal
import socket
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import ray

from expand.errors import ExpandError, Interrupted, RunError
from expand.machine import here
from expand.training.job import Job
from expand.version import __version__

Message = tuple[int, str, Any]
"""The number of a task, and what it says: one of the messages of `expand.executors.worker`."""


@dataclass(frozen=True)
class Shared:
    """What all trainings of a run share. `token_path` holds `token`, wherever the run directory is what it is for the
    driver; `folder` is where the driver was started, from which relative paths lead on."""

    content: bytes
    """The pickled pair of clips and runtime."""
    folder: str
    token_path: Path
    token: str
    sharers: int
    """Trainings on a GPU."""


class Mailbox:
    """An actor between the trainings and the process that hands them out: what they have to say, and whether to stop.

    It remembers nothing that either side would not tell it again, so that Ray may start it anew.
    """

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._stop = False

    def say(self, messages: list[Message]) -> bool:
        """From a training. Whether it is to stop."""
        self._messages += messages
        return self._stop

    def collect(self, stop: bool) -> list[Message]:
        """What was said since the last call; from now on trainings are told `stop`."""
        self._stop = stop
        messages, self._messages = self._messages, []
        return messages


class Line:
    """A training's line to the mailbox, which never makes it wait: ticks and remarks go with the next sign of life,
    and the answer to one sign is read at the next."""

    def __init__(self, number: int, mailbox: Any) -> None:
        self._number, self._mailbox = number, mailbox
        self._waiting: list[Message] = []
        self._answer: Any = None
        self._is_to_stop = False

    def say(self, kind: str, content: Any) -> None:
        """Keeps a message for the next sign; of ticks the last one."""
        if kind == "tick":
            self._waiting = [message for message in self._waiting if message[1] != "tick"]
        self._waiting.append((self._number, kind, content))

    def send(self) -> None:
        """A sign of life. Raises `Interrupted` where nobody is left to hear it: then another may train the same
        candidate soon, and nothing more is written."""
        if self._answer is not None:
            ready, _ = ray.wait([self._answer], timeout=0)
            if not ready:
                return
            self._take_answer()
        messages, self._waiting = self._waiting or [(self._number, "alive", None)], []
        self._answer = self._mailbox.say.remote(messages)

    def is_to_stop(self) -> bool:
        """What the last answer said."""
        return self._is_to_stop

    def rest(self) -> list[Message]:
        """What was not sent."""
        return self._waiting

    def _take_answer(self) -> None:
        try:
            self._is_to_stop = ray.get(self._answer)
        except ray.exceptions.ActorDiedError as error:
            raise Interrupted("the search that this training belongs to has ended", where=here()) from error
        except ray.exceptions.RayError:
            pass  # the mailbox is being started anew, or far away; those messages are lost, and the next may arrive
        self._answer = None


def train(number: int, job: Job, shared: Shared, mailbox: Any) -> tuple[str, Any, list[Message]]:
    """One training, as task `number`: how it ended (`done`, `interrupted`, `error` or `fault` with its content), and
    what is left to be said. Only Ray's own errors are raised, so that an `ExpandError` arrives as itself. Ray ends the
    process of a task that had a GPU with the task, so that no other is given one that failed."""
    from expand.executors.base import carry_out
    from expand.executors.worker import SignOfLife, answer
    from expand.training.job import Hooks

    line = Line(number, mailbox)
    begin = {"where": here(), "node": node_id(), "process": this_process()}
    line.say("begin", begin)
    line.send()
    hooks = Hooks(tick=lambda tick: line.say("tick", tick), log=lambda text: line.say("log", text),
                  stop=SignOfLife(line.send, line.is_to_stop))

    def work() -> dict[str, Any]:
        enter(shared.folder)
        check_token(shared)
        data, runtime = pickle.loads(shared.content)
        if runtime.device.type == "cuda":  # the GPU that Ray gave is the only one visible
            import torch

            runtime = replace(runtime, device=torch.device("cuda", 0), sharers=shared.sharers)
        return carry_out(job, data, runtime, hooks)

    kind, content = answer(work, job, hooks.log)
    return kind, content, [(number, "begin", begin), *line.rest()]  # a result may overtake what is in the mailbox


def node_id() -> str:
    """Ray's name of this node."""
    return ray.get_runtime_context().get_node_id()


def enter(folder: str) -> None:
    """Makes relative paths mean what they mean to the driver, where its folder is here too."""
    with suppress(OSError):
        os.chdir(folder)


def check_token(shared: Shared) -> None:
    """Raises `RunError` where the run directory is another one than the driver's, which would lose all results."""
    if (complaint := token_complaint(shared.token_path, shared.token)) is not None:
        raise RunError(f"{here()} does not see the run directory: {complaint}", where=str(shared.token_path.parent),
                       fix="put the run on a file system that all nodes of the cluster share (--run-dir)")


def token_complaint(path: Path, token: str) -> str | None:
    """What is wrong with the file `path` that is to hold `token`."""
    try:
        found = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None if found == token else "its files are others there"


def this_process() -> tuple[int, str]:
    """This process's number, and when it started, in the system's own terms: its number alone may be given again."""
    return os.getpid(), _started(os.getpid())


def _started(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def kill(pid: int, started: str) -> None:
    """Ends a process of this node that hangs, even one that is stopped: such a one does not hear Ray."""
    if _started(pid) == started:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class NodeFacts:
    """What `look` found on a node."""

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


def look(shared: Shared, reply: str | None, on_gpu: bool) -> NodeFacts:
    """Looks at this node; with the name of a file `reply`, leaves one beside the token."""
    from expand.kernels import library

    enter(shared.folder)
    complaint = token_complaint(shared.token_path, shared.token)
    if complaint is None and reply is not None:
        complaint = _left(shared.token_path.with_name(reply), shared.token)
    data, _ = pickle.loads(shared.content)
    clip, has_frames = _seen(data.train[0]) if data.train else (None, True)
    return NodeFacts(socket.gethostname(), versions(), library.status().build, complaint, clip, has_frames,
                     not on_gpu or _has_gpu())


def versions() -> dict[str, str]:
    """Those that must be the same everywhere; of torch without what it was built for, of Python as `3.11`."""
    return {"x3d-expand": __version__, "torch": metadata.version("torch").partition("+")[0],
            "Python": ".".join(platform.python_version_tuple()[:2])}


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _left(path: Path, token: str) -> str | None:
    try:
        path.write_text(token, encoding="utf-8")
    except OSError as error:
        return f"cannot be written there ({error.strerror})"
    return None


def _seen(clip: Any) -> tuple[str | None, bool]:
    """Reads a frame of `clip` as a training does: what is wrong, and whether it was there decoded."""
    from expand.data.frames.frame_access import read_frames

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            read_frames(clip, _first(), 0, clip.height)
        except ExpandError as error:
            return str(error).replace("\n", " "), False
    return None, clip.store is None or not said


def _first() -> Any:
    import numpy as np

    return np.zeros(1, dtype=np.int64)


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    """Whether `is_so` came true in time; a shared file system may take a moment to show a file."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
