"""One process at a time works on a run.

The lock is the system's (`flock`), so it ends with its process however that ends: there is no stale lock to remove. The
file's content only says who holds it.

NFS passes such a lock on to the server (Linux does, unless mounted with `nolock` or `local_lock`), and so does Lustre
mounted with `flock`, so that it keeps machines apart as well. A file system that has none refuses it with an error; a
run is refused then, since a lock made of a file alone cannot tell a dead holder on another machine from a live one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
import weakref
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from expand.errors import RunError
from expand.rundir.files import cannot_write, clear_leftovers, from_json, to_json
from expand.rundir.paths import RunPaths
from expand.untrusted_input import Wrong, matches, number, whole

WAIT_S = 1.0
"""Seconds to try: `holder` of another process takes the lock for an instant when it looks."""

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""The errors of a file system without locks, or of one whose lock server is away."""

HOLDER = {"pid": whole(1, 2**31), "host": matches(re.compile(r"[!-~]{1,253}"), "a host"), "started": number(0, 1e11)}
"""The fields that a lock holds about its holder; anything else in it is passed over."""

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
        try:
            handle = self._handle = os.open(self.paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunError("there is no run directory here", where=str(self.paths.root),
                           fix="Name the directory of a run, as in: x3d-expand resume runs/NAME") from error
        except OSError as error:
            raise cannot_write(self.paths.lock, error) from error
        try:
            if not _take(handle):
                raise _held_error(self.paths, _read_holder(handle))
            self.check()
            content = to_json({"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}).encode()
            os.pwrite(handle, content, 0)
            os.ftruncate(handle, len(content))
        except OSError as error:
            self._drop()
            if error.errno not in NO_LOCKS:
                raise cannot_write(self.paths.lock, error) from error
            raise RunError(f"its file system gives no lock ({error.strerror}), so that two processes could work on one "
                           "run", where=str(self.paths.lock), fix="Keep the run on another (`search` and `train` take "
                           "--run-dir), or have it mounted with locks: Lustre with -o flock, NFS without nolock and "
                           "with its lock daemon.") from error
        except BaseException:
            self._drop()
            raise
        _held.add(self)
        clear_leftovers(self.paths.folders())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._handle is not None:
            _held.discard(self)
            with suppress(OSError):  # the disk became read-only; the lock goes all the same
                os.ftruncate(self._handle, 0)
            self._drop()

    def check(self) -> None:
        """Raise `RunError` where the run's path leads no longer to what this lock was taken on: the directory was
        moved or deleted, or its disk is gone. To write there then would begin another run beside the real one."""
        if self._handle is None:
            return
        what = "the run directory, or the lock in it, was replaced"
        try:
            if os.path.samestat(os.stat(self.paths.lock), os.fstat(self._handle)):
                return
        except (FileNotFoundError, NotADirectoryError):
            what = "the run directory was moved or deleted"
        except OSError as error:
            what = f"the run directory cannot be reached any longer: {error.strerror}"
        raise RunError(f"{what} while this process worked on it; nothing more is written", where=str(self.paths.root),
                       fix=f"Put it back, then go on with: x3d-expand resume {self.paths.root}")

    def _drop(self) -> None:
        """Close this process's copy of the handle; the lock goes with the last copy."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def holder(paths: RunPaths) -> dict[str, Any] | None:
    """Return the process that works on the run now: `{"pid", "host", "started"}` (unix seconds; values None where
    unknown), or None."""
    try:
        handle = os.open(paths.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(handle)
    except OSError:  # there are no locks there, so that no process holds one
        return None
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


def _read_holder(handle: int) -> dict[str, Any]:
    try:
        value = from_json(os.pread(handle, 4096, 0))
    except ValueError:
        value = None
    found: dict[str, Any] = dict.fromkeys(HOLDER)
    for key, check in HOLDER.items():
        with suppress(Wrong):  # what no holder writes is not known
            found[key] = check(value.get(key) if isinstance(value, dict) else None, key)
    return found


def _held_error(paths: RunPaths, who: dict[str, Any]) -> RunError:
    started = who["started"]
    since = time.strftime(", since %Y-%m-%d %H:%M:%S", time.localtime(started)) if started else ""
    name = f"process {who['pid']} on {who['host']}" if who["pid"] else "another process"
    return RunError(f"{name} works on this run{since}", where=str(paths.root),
                    fix=f"Wait until it ends, or watch it with: x3d-expand status {paths.root}")


def _close_in_child() -> None:
    for lock in list(_held):
        lock._drop()
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
