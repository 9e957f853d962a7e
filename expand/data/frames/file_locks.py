"""Locks between processes, which the system releases when their process dies, however it dies (`flock`).

A temporary file of the cache is locked itself, not a file beside it: the process that holds the lock writes through the
same file handle and then renames the file. filelock keeps its handle to itself, so it cannot do this
(docs/decisions/010-frame-cache.md).
"""

from __future__ import annotations

import fcntl
import io
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from expand.processes import heartbeat

POLL_S = 0.02
TEMPORARY = ".tmp"
STALE_S = 3600.0
"""Age in seconds at which a temporary file counts as left behind, on a file system without locks."""


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of `path` for as long as the block runs. On a file system without locks this does nothing."""
    try:
        file = io.FileIO(path, "ab")
    except OSError:  # a folder of another user, where this process writes nothing that needs the lock
        yield
        return
    with file:
        while _try_lock(file) is False:
            heartbeat()
            time.sleep(POLL_S)
        try:
            yield
        finally:
            _unlock(file)


def claim(path: Path) -> io.FileIO | None:
    """Open `path` empty, locked and for writing; return None if another process has it.

    The file is new, or was left by a dead process. The caller renames or removes it before `release`. On a file system
    without locks this is `claim_another`. Raises `OSError`.
    """
    while True:
        file = io.FileIO(path, "ab")
        try:
            if (is_ours := _try_lock(file)) is None:
                release(file, remove=True)  # without locks, this shared name is not used
                return claim_another(path)
            if not is_ours:
                file.close()
                return None
            if _is_at(file, path):
                file.truncate(0)
                return file
        except OSError:
            file.close()
            raise
        file.close()  # renamed or removed between the opening and the locking


def claim_another(path: Path) -> io.FileIO:
    """Open a file with a unique name beside `path`, as `claim` does."""
    while True:
        another = path.with_name(f"{path.stem}.{uuid.uuid4().hex}{TEMPORARY}")
        file = io.FileIO(another, "ab")
        is_ours = _try_lock(file)
        if is_ours is None or (is_ours and _is_at(file, another)):
            return file
        file.close()  # a `sweep` saw it before it was locked


def release(file: io.FileIO, remove: bool) -> None:
    """Unlock and close a claimed file. With `remove` it is removed first, while no other process can claim it."""
    if remove:
        with suppress(OSError):
            os.unlink(file.name)
    _unlock(file)
    file.close()


def sweep(folder: Path) -> None:
    """Remove the temporary files of dead processes."""
    for leftover in folder.glob(f"*{TEMPORARY}"):
        with suppress(OSError), io.FileIO(leftover, "ab") as file:
            is_ours = _try_lock(file)
            if is_ours is None:
                is_ours = time.time() - os.fstat(file.fileno()).st_mtime > STALE_S
            if is_ours and _is_at(file, leftover):
                leftover.unlink()


def _try_lock(file: io.FileIO) -> bool | None:
    """Lock `file` and return True, or False if another process has it, or None if the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _unlock(file: io.FileIO) -> None:
    with suppress(OSError):  # explicitly: a process forked meanwhile would keep the lock with its copy of the file
        fcntl.flock(file, fcntl.LOCK_UN)


def _is_at(file: io.FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
