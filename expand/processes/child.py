"""Work on strangers' files in processes of their own: a decoder that crashes or hangs takes nothing else down.

A `Child` carries out one call after another and is started anew after it died (`expand.processes.pool` keeps several at
work). It is also where threads would not help: PyAV and NumPy hold the interpreter lock too long.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Self
from weakref import WeakSet

from expand.errors import DataError, ExpandError

# Children touch no torch, so forking is safe where the system's own libraries allow it, and a caller's script needs
# no `if __name__ == "__main__"`.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
HUNG = "the decoder gave no frame for"
"""How the reason of a hang begins."""

_ITEM, _END, _ERROR = range(3)
_patience_s = 0.0  # of this process, if it is a child
_parents_ends: WeakSet[Connection] = WeakSet()


class ChildDied(DataError):
    """A child that ended amid a call; `what` is the reason, as a sentence about the file it worked on."""


def died_of(reason: str) -> str:
    """"hang" or "crash": what `reason`, the `what` of a `ChildDied`, says."""
    return "hang" if reason.startswith(HUNG) else "crash"


def beat() -> None:
    """Say that the work goes on: a child that is silent for longer than its patience is ended by the system.

    To be called at every frame (a microsecond); in a process that is no `Child` it does nothing.
    """
    if _patience_s:
        signal.setitimer(signal.ITIMER_REAL, _patience_s)


class Child:
    """One process that carries out calls, started at the first and anew after it died.

    With a `state` (inherited, not pickled, where processes are forked), it is the first argument of every call.
    Functions are modules' own; arguments and results can be pickled. `timeout_s`: longest time without a `beat` or
    an item, seconds; 0: no limit. It is no limit on the reader, however slow. The process ends with `close`, with
    this object's process, and soon after that was killed.
    """

    def __init__(self, state: Any = None, timeout_s: float = 60.0) -> None:
        self._state, self._timeout_s = state, timeout_s
        self._process: Any = None
        self._pipe: Connection | None = None
        self._owner = 0
        self._calls = 0
        self._amid = 0  # the number of the call whose last answer has not come

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)`; its exceptions come back as themselves. Raises `ChildDied`, and `DataError` where the
        system has no process to give."""
        self.begin(function, *arguments)
        return self.result()

    def stream(self, function: Callable[..., Iterable], *arguments: Any) -> Iterator:
        """What the generator `function(*arguments)` gives: it waits while the last items (of a size) are not taken.

        Its exceptions come back as themselves. Raises `ChildDied`. It ends with the next call.
        """
        self._send(True, function, arguments)
        call = self._amid
        try:
            while call == self._amid and (answer := self._received())[0] == _ITEM:
                yield answer[1]
        finally:
            if call == self._amid:
                self._leave()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """The first half of `call`: returns at once. This object can then be waited for (`multiprocessing.connection`)
        and gives its `result`."""
        self._send(False, function, arguments)

    def result(self) -> Any:
        """The second half of `call`."""
        try:
            return self._received()[1]
        finally:
            self._leave()

    def fileno(self) -> int:
        """What becomes readable when an answer or the child's end has come."""
        return self._pipe.fileno()

    def close(self) -> None:
        """End the process, whatever it does; a later call starts another."""
        if self._process is None:
            return
        if self._owner == os.getpid():  # a fork of its owner has no say over it
            self._process.kill()
            self._process.join()
        self._pipe.close()
        self._process, self._pipe, self._amid = None, None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, many: bool, function: Callable, arguments: tuple) -> None:
        self._leave()
        if self._owner != os.getpid():
            self.close()
        if self._process is None:
            self._start()
        message = (many, function, arguments)
        try:
            self._pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):  # it was killed while it waited for work
            self.close()
            self._start()
            self._pipe.send(message)
        self._calls += 1
        self._amid = self._calls

    def _start(self) -> None:
        self._owner = os.getpid()
        try:
            pipe, childs_end = CONTEXT.Pipe()
            _parents_ends.add(pipe)
            process = CONTEXT.Process(target=_serve, args=(childs_end, self._state, self._timeout_s, self._owner),
                                      daemon=True)
            with quiet_fork(), _children_allowed():
                process.start()
        except OSError as error:
            raise DataError(f"no process can be started to decode clips in: {error.strerror}",
                            fix="free memory, or raise `ulimit -u` or `ulimit -n`, and start again; what was done is "
                                "kept") from error
        childs_end.close()
        self._pipe, self._process = pipe, process

    def _received(self) -> tuple[int, Any]:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError) as error:  # between two messages or amid one
            raise ChildDied(self._reason()) from error
        if kind != _ITEM:
            self._amid = 0
        if kind == _ERROR:
            raise value
        return kind, value

    def _reason(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        self.close()
        if code is None or code >= 0:
            return f"the process that worked on it died (exit {code})"
        name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
        if -code == signal.SIGALRM:
            return f"{HUNG} {self._timeout_s:g} s"
        if -code == signal.SIGKILL:
            return f"the process that worked on it was killed ({name}), most likely because memory ran out"
        return f"crashes the decoder ({name})"

    def _leave(self) -> None:
        """A call that is given up amid its answers costs the process: nobody would take the rest of them."""
        if self._amid:
            self.close()


@contextmanager
def quiet_fork() -> Iterator[None]:
    """Without Python's warning about forks of a process with threads: see `CONTEXT`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        yield


@contextmanager
def _children_allowed() -> Iterator[None]:
    """Python forbids daemons, a loader's workers for instance, to have children, as they could outlive it: ours do not.
    """
    own = multiprocessing.current_process()._config
    daemon = own.pop("daemon", None)
    try:
        yield
    finally:
        if daemon is not None:
            own["daemon"] = daemon


def _serve(pipe: Connection, state: Any, timeout_s: float, parent: int) -> None:
    global _patience_s
    _patience_s = timeout_s
    for end in _parents_ends:  # else a sibling would keep a pipe open whose other end is gone
        end.close()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even while C code holds the interpreter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # so does Ctrl-Z, and time would go on
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    while True:
        try:
            many, function, arguments = pipe.recv()
        except (EOFError, ConnectionResetError):  # the parent has no more work, or is gone
            return
        _carry_out(pipe, many, function, arguments if state is None else (state, *arguments))


def _leave_with(parent: int) -> None:
    """End this process soon after its parent was killed: it would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _carry_out(pipe: Connection, many: bool, function: Callable, arguments: tuple) -> None:
    try:
        beat()
        result = function(*arguments)
        for item in result if many else ():
            _give(pipe, _ITEM, item)
        _give(pipe, _END, None if many else result)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
        _give(pipe, _ERROR, _portable(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _give(pipe: Connection, kind: int, value: Any) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)  # the reader may take its time
    try:
        pipe.send((kind, value))
    except (BrokenPipeError, ConnectionResetError):  # nobody listens any more
        raise SystemExit from None
    beat()


def _portable(error: Exception) -> Exception:
    """`error` as it arrives on the other side of a pipe, with where it came from if it is no answer to a user."""
    if not isinstance(error, ExpandError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - an exception of a kind that takes other arguments than it keeps
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
