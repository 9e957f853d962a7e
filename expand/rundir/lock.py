"""One process at a time works on a run.

The lock is the system's (`flock`), so it ends with its process however that ends: there is no stale lock to remove. The
file's content only says who holds it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
import weakref
from types import TracebackType
from typing import Any, Self

from expand.errors import RunError
from expand.rundir.files import cannot_write, clear_leftovers, from_json, to_json
from expand.rundir.paths import RunPaths

WAIT_S = 1.0
"""How long to try: `holder` of another process takes the lock for an instant when it looks."""

_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """`with RunLock(paths):` this process alone works on the run. `RunError` naming the holder where another does.

    Taking the lock also deletes temporary files that a killed process left. The lock does not pass to forked workers,
    so that a run whose main process was killed can be resumed while they die.
    """

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self._handle: int | None = None

    def __enter__(self) -> Self:
        handle = self._open()
        try:
            if not _take(handle):
                raise _is_held(self.paths, _read_holder(handle))
            _write_holder(handle)
        except OSError as error:
            os.close(handle)
            raise cannot_write(self.paths.lock, error) from error
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        _held.add(self)
        clear_leftovers([self.paths.root, self.paths.final, *self.paths.candidates.glob("*/")])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._handle is not None:
            _held.discard(self)
            os.ftruncate(self._handle, 0)
            self._drop()

    def _open(self) -> int:
        try:
            return os.open(self.paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunError("there is no run directory here", where=str(self.paths.root),
                           fix="Name the directory of a run, as in: x3d-expand resume runs/NAME") from error
        except OSError as error:
            raise cannot_write(self.paths.lock, error) from error

    def _drop(self) -> None:
        """Closes this process's copy of the handle; the lock goes with the last copy."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def holder(paths: RunPaths) -> dict[str, Any] | None:
    """Who works on the run now: `{"pid", "host", "started"}` (unix seconds; values None where unknown), or None."""
    try:
        handle = os.open(paths.lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read_holder(handle)
    else:
        return None
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    end = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        else:
            return True


def _write_holder(handle: int) -> None:
    content = to_json({"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}).encode("utf-8")
    os.pwrite(handle, content, 0)
    os.ftruncate(handle, len(content))


def _read_holder(handle: int) -> dict[str, Any]:
    try:
        value = from_json(os.pread(handle, 4096, 0))
    except ValueError:
        value = None
    value = value if isinstance(value, dict) else {}
    return {key: value.get(key) for key in ("pid", "host", "started")}


def _is_held(paths: RunPaths, who: dict[str, Any]) -> RunError:
    started = who["started"]
    since = time.strftime(", since %Y-%m-%d %H:%M:%S", time.localtime(started)) if isinstance(started, float) else ""
    name = f"process {who['pid']} on {who['host']}" if who["pid"] else "another process"
    return RunError(f"{name} works on this run{since}", where=str(paths.root),
                    fix=f"Wait until it ends, or watch it with: x3d-expand status {paths.root}")


def _close_in_child() -> None:
    for lock in list(_held):
        lock._drop()
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
