"""Locks that the system lets go when their process dies, however it dies: `flock` on files beside what they guard."""

from __future__ import annotations

import fcntl
import io
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from expand.processes.child import beat

POLL_S = 0.02
TEMPORARY = ".tmp"
STALE_S = 3600.0
"""Where the file system knows no locks, a temporary file that was not written to for so long, seconds, is nobody's."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone in the block among all processes that lock `path`; not where the file system knows no locks."""
    try:
        file = io.FileIO(path, "ab")
    except OSError:  # somebody else's folder: whoever cannot write there has nothing to guard
        yield
        return
    with file:
        while _try_lock(file) is False:
            beat()
            time.sleep(POLL_S)
        try:
            yield
        finally:
            _unlock(file)


def claim(path: Path) -> io.FileIO | None:
    """`path`, new or left by a dead process, empty, locked and open for writing; None where a process is at work on it.

    Whoever has it renames or removes it before `release`. Where the file system knows no locks, as `claim_another`.
    Raises `OSError`.
    """
    while True:
        file = io.FileIO(path, "ab")
        try:
            if (is_ours := _try_lock(file)) is None:
                release(file, remove=True)  # where there are no locks, nobody writes under this name
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
    """As `claim`, a file beside `path` that nobody else asks for."""
    while True:
        another = path.with_name(f"{path.stem}.{uuid.uuid4().hex}{TEMPORARY}")
        file = io.FileIO(another, "ab")
        is_ours = _try_lock(file)
        if is_ours is None or (is_ours and _is_at(file, another)):
            return file
        file.close()  # a `sweep` saw it before it was locked


def release(file: io.FileIO, remove: bool) -> None:
    """Let go of a claimed file; with `remove` it is removed first, while nobody else can have taken it over."""
    if remove:
        with suppress(OSError):
            os.unlink(file.name)
    _unlock(file)
    file.close()


def sweep(folder: Path) -> None:
    """Remove temporary files whose process is dead."""
    for leftover in folder.glob(f"*{TEMPORARY}"):
        with suppress(OSError), io.FileIO(leftover, "ab") as file:
            is_ours = _try_lock(file)
            if is_ours is None:
                is_ours = time.time() - os.fstat(file.fileno()).st_mtime > STALE_S
            if is_ours and _is_at(file, leftover):
                leftover.unlink()


def _try_lock(file: io.FileIO) -> bool | None:
    """Whether `file` is ours now; None where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _unlock(file: io.FileIO) -> None:
    with suppress(OSError):  # said aloud: a process forked meanwhile would keep the lock with its copy of the file
        fcntl.flock(file, fcntl.LOCK_UN)


def _is_at(file: io.FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
