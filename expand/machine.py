"""This process on its machine: cores, memory, its address, and the signals that ask it to stop. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's options (malloc.h)."""


def available_cores() -> int:
    """Return the number of cores that this process may use (affinity respected)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_address() -> str:
    """Return `host:pid` of this process, for messages."""
    return f"{socket.gethostname()}:{os.getpid()}"


def keep_freed_memory() -> None:
    """Let this process keep freed memory, up to its peak, and use it again, which saves page faults at every batch.

    For glibc; elsewhere it does nothing.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    set_option(M_MMAP_THRESHOLD, 1 << 30) or set_option(M_MMAP_THRESHOLD, 1 << 25)  # older ones take 32 MiB at most
    set_option(M_TRIM_THRESHOLD, (1 << 31) - 1)


def give_back_freed_memory() -> None:
    """Return the freed memory to the system, and keep no more large blocks from now on.

    Memory that is kept in large blocks cannot serve other sizes, code or threads. For glibc; elsewhere it does nothing.
    """
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 1 << 20)
        library.mallopt(M_TRIM_THRESHOLD, 1 << 20)
        library.malloc_trim(0)


def oom_kills() -> int:
    """Return how many processes the system has ended so far because memory ran out, as far as this process can see.

    The count is that of the container (cgroup v2) or of the machine (Linux); 0 elsewhere.
    """
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        with suppress(OSError, ValueError, StopIteration), open(path, encoding="ascii") as file:
            return int(next(line for line in file if line.startswith("oom_kill ")).split()[1])
    return 0


@contextmanager
def stop_signals(*, patient: bool = False) -> Iterator[threading.Event]:
    """Return an event that Ctrl-C and SIGTERM set. A second signal ends the process at once, unless `patient`."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        if not patient:
            for each, handler in before.items():
                signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
