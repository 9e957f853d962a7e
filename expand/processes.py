"""A child process that carries out calls: a decoder that crashes or hangs on an untrusted file ends only the child.

A `Child` carries out one call after another and is restarted after it died; `process_map` shares work among several.
Threads would not help: PyAV and NumPy hold the interpreter lock too long.
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
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Self, cast
from weakref import WeakSet

from expand.errors import DataError, ExpandError

# Children do not use torch, so forking is safe where the system's own libraries allow it, and a caller's script needs
# no `if __name__ == "__main__"`.
CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
HUNG = "the decoder gave no frame for"
"""The beginning of the reason of a hang."""
AHEAD = 1024
"""Items that `process_map` begins before an earlier one is done: as many results wait in memory while a clip hangs."""

_ITEM, _END, _ERROR = range(3)
_heartbeat_limit_s = 0.0  # of this process, if it is a child
_parents_ends: WeakSet[Connection] = WeakSet()


class ChildDied(DataError):
    """A child that ended during a call; `what` is the reason, as a sentence about the file it worked on."""


def died_of(reason: str) -> str:
    """Return "hang" or "crash" for `reason`, the `what` of a `ChildDied`."""
    return "hang" if reason.startswith(HUNG) else "crash"


def heartbeat() -> None:
    """Report that the work goes on. The system ends a child that does not call this for its `timeout_s`.

    Call it at every frame (it takes a microsecond). In a process that is not a `Child` it does nothing.
    """
    if _heartbeat_limit_s:
        signal.setitimer(signal.ITIMER_REAL, _heartbeat_limit_s)


@dataclass(frozen=True)
class _Running:
    """The process of a `Child`, this end of its pipe, and the number of the process that started it."""

    process: Any
    pipe: Connection
    owner: int


class Child:
    """One process that carries out calls; the first call starts it, and the next one after it died.

    A `state` is the first argument of every call (inherited, not pickled, where processes are forked). Functions are
    those of modules; arguments and results can be pickled. `timeout_s` is the longest time without a `heartbeat` or an
    item, in seconds; 0: no limit. It does not limit the reader. The process ends with `close`, with the process that
    owns this object, and soon after that one was killed.
    """

    def __init__(self, state: Any = None, timeout_s: float = 60.0) -> None:
        self._state, self._timeout_s = state, timeout_s
        self._running: _Running | None = None
        self._calls = 0
        self._open_call = 0  # the number of the call whose last answer has not come

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(*arguments)`; its exceptions are raised here. Raises `ChildDied`, and `DataError` if the
        system cannot start a process."""
        self.begin(function, *arguments)
        return self.result()

    def stream(self, function: Callable[..., Iterable], *arguments: Any) -> Iterator:
        """Yield the items of the generator `function(*arguments)`, which waits while the pipe is full.

        Its exceptions are raised here. Raises `ChildDied`. The next call ends the stream.
        """
        self._send(True, function, arguments)
        call = self._open_call
        try:
            while call == self._open_call and (answer := self._receive())[0] == _ITEM:
                yield answer[1]
        finally:
            if call == self._open_call:
                self._abandon_call()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Start a call and return at once. `multiprocessing.connection.wait` can then wait for this object, and
        `result` gives the answer."""
        self._send(False, function, arguments)

    def result(self) -> Any:
        """Return the answer of the call that `begin` started; raises as `call`."""
        try:
            return self._receive()[1]
        finally:
            self._abandon_call()

    @property
    def pid(self) -> int | None:
        """The number of the process; None while there is none."""
        return self._running.process.pid if self._running else None

    def fileno(self) -> int:
        """Return the handle that becomes readable when an answer or the child's end has come."""
        if self._running is None:
            raise ValueError("no call was started")
        return self._running.pipe.fileno()

    def close(self) -> None:
        """End the process, whatever it is doing; a later call starts another."""
        running, self._running, self._open_call = self._running, None, 0
        if running is None:
            return
        if running.owner == os.getpid():  # a fork of the owner must not end the owner's child
            running.process.kill()
            running.process.join()
        running.pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, many: bool, function: Callable, arguments: tuple) -> None:
        self._abandon_call()
        if self._running and self._running.owner != os.getpid():
            self.close()
        running = self._running or self._start()
        message = (many, function, arguments)
        try:
            running.pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):  # it was killed while it waited for work
            self.close()
            self._start().pipe.send(message)
        self._calls += 1
        self._open_call = self._calls

    def _start(self) -> _Running:
        owner = os.getpid()
        # Python forbids daemons, loader processes for instance, to have children, as these could outlive them. Ours
        # do not (`exit_with_parent`), but there is no public way to say so.
        marks = multiprocessing.current_process()._config  # type: ignore[attr-defined]
        is_daemon = marks.pop("daemon", None)
        try:
            pipe, childs_end = CONTEXT.Pipe()
            _parents_ends.add(pipe)
            process = CONTEXT.Process(target=_serve, args=(childs_end, self._state, self._timeout_s, owner),
                                      daemon=True)
            with quiet_fork():
                process.start()
        except OSError as error:
            raise DataError(f"no process can be started to decode clips in: {error.strerror}",
                            fix="free memory, or raise `ulimit -u` or `ulimit -n`, and start again; what was done is "
                                "kept") from error
        finally:
            if is_daemon is not None:
                marks["daemon"] = is_daemon
        childs_end.close()
        self._running = _Running(process, pipe, owner)
        return self._running

    def _receive(self) -> tuple[int, Any]:
        running = self._running
        if running is None:
            raise ValueError("no call was started")
        try:
            kind, value = running.pipe.recv()
        except (EOFError, OSError) as error:  # between two messages or inside one
            raise ChildDied(self._reason_of_death(running)) from error
        if kind != _ITEM:
            self._open_call = 0
        if kind == _ERROR:
            raise value
        return kind, value

    def _reason_of_death(self, running: _Running) -> str:
        running.process.join(5)
        code = running.process.exitcode
        self.close()
        if code is None or code >= 0:
            return f"the process that worked on it died (exit {code})"
        name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
        if -code == signal.SIGALRM:
            return f"{HUNG} {self._timeout_s:g} s"
        if -code == signal.SIGKILL:
            return f"the process that worked on it was killed ({name}), most likely because memory ran out"
        return f"crashes the decoder ({name})"

    def _abandon_call(self) -> None:
        """End the process if a call still has answers to come, which the next call would read as its own."""
        if self._open_call:
            self.close()


def process_map(function: Callable[[Any, Any], Any], state: Any, items: Iterable, workers: int, *,
                timeout_s: float = 60.0, died: Callable[[Any, str], Any] | None = None) -> Iterator:
    """Yield `function(state, item)` for every item, in order, computed by `workers` (at least one) child processes.

    `function` is a module's, results can be pickled; `state` may hold `CONTEXT.Value`s. If a child dies over an item,
    or sends no `heartbeat` for `timeout_s`, the result is `died(item, reason)`, and another child takes the rest;
    without `died` that is a `DataError` that names the item. The exceptions of a call are raised here in its turn.
    """
    idle = [Child((function, state), timeout_s) for _ in range(max(1, workers))]
    busy: dict[Any, tuple[int, Any]] = {}  # by the Child, which `wait` takes for its `fileno`, unknown to its type
    done: dict[int, tuple[Any, Exception | None]] = {}
    numbered, given = enumerate(items), 0
    try:
        while True:
            while idle and len(busy) + len(done) < AHEAD and (job := next(numbered, None)):
                child = idle.pop()
                busy[child] = job
                child.begin(_call, job[1])
            if not busy:
                return
            for child in cast("list[Child]", wait(list(busy))):
                number, item = busy.pop(child)
                idle.append(child)
                try:
                    done[number] = child.result(), None
                except ChildDied as death:
                    if died:
                        done[number] = died(item, death.what), None
                    else:
                        done[number] = None, DataError(death.what, where=str(getattr(item, "path", item)),
                                                       fix="take it away and start again; what was done is kept")
                except Exception as error:  # noqa: BLE001 - raised below, in its turn
                    done[number] = None, error
            while given in done:
                result, failure = done.pop(given)
                if failure:
                    raise failure
                given += 1
                yield result
    finally:
        for child in (*idle, *busy):
            child.close()


def _call(job: tuple[Callable, Any], item: Any) -> Any:
    function, state = job
    return function(state, item)


@contextmanager
def quiet_fork() -> Iterator[None]:
    """Suppress Python's warning about forks of a process with threads; `CONTEXT` says why that is safe."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        yield


def _serve(pipe: Connection, state: Any, timeout_s: float, parent: int) -> None:
    global _heartbeat_limit_s
    _heartbeat_limit_s = timeout_s
    for end in _parents_ends:  # else a sibling would keep a pipe open whose other end is gone
        end.close()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even while C code holds the interpreter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # so does Ctrl-Z, and time would go on
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

    def exit_with_parent() -> None:  # if it was killed, this process would wait for work for ever
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    while True:
        try:
            many, function, arguments = pipe.recv()
        except (EOFError, ConnectionResetError):  # the parent has no more work, or is gone
            return
        _carry_out(pipe, many, function, arguments if state is None else (state, *arguments))


def _carry_out(pipe: Connection, many: bool, function: Callable, arguments: tuple) -> None:
    try:
        heartbeat()
        result = function(*arguments)
        for item in result if many else ():
            _send_answer(pipe, _ITEM, item)
        _send_answer(pipe, _END, None if many else result)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        if not isinstance(error, ExpandError):  # an internal error: say where it came from
            error.add_note("".join(traceback.format_exception(error)))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - an exception of a kind that takes other arguments than it keeps
            error = RuntimeError(f"{type(error).__name__}: {error}")
        _send_answer(pipe, _ERROR, error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _send_answer(pipe: Connection, kind: int, value: Any) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)  # the reader may take its time
    try:
        pipe.send((kind, value))
    except (BrokenPipeError, ConnectionResetError):  # the parent has gone
        raise SystemExit from None
    heartbeat()
