"""What this process has of the machine, and keeps. No torch in here."""

from __future__ import annotations

import ctypes
import os
import socket
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's options (malloc.h)."""


def available_cores() -> int:
    """Cores that this process may use (affinity respected)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def here() -> str:
    """This process, for people: `host:pid`."""
    return f"{socket.gethostname()}:{os.getpid()}"


def keep_freed_memory() -> None:
    """Let this process keep what it frees for what it takes next, up to its peak, in place of giving pages back to the
    system and faulting in others at every batch. For glibc; elsewhere it does nothing."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    set_option(M_MMAP_THRESHOLD, 1 << 30) or set_option(M_MMAP_THRESHOLD, 1 << 25)  # older ones take 32 MiB at most
    set_option(M_TRIM_THRESHOLD, (1 << 31) - 1)


def give_back_freed_memory() -> None:
    """Returns to the system what this process has freed and kept, and keeps no more large blocks from now on: among
    them, none can be had of another size, nor for code and threads. For glibc; elsewhere it does nothing."""
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 1 << 20)
        library.mallopt(M_TRIM_THRESHOLD, 1 << 20)
        library.malloc_trim(0)


def oom_kills() -> int:
    """How many processes the system has ended so far because memory ran out, as far as this process can tell: of its
    container (cgroup v2), else of the machine (Linux); 0 elsewhere."""
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        with suppress(OSError, ValueError, StopIteration), open(path, encoding="ascii") as file:
            return int(next(line for line in file if line.startswith("oom_kill ")).split()[1])
    return 0
