"""What this process has of the machine, and keeps. No torch in here."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's options (malloc.h)."""


def available_cores() -> int:
    """Cores that this process may use (affinity respected)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def user_cache() -> Path:
    """The folder of this project in the user's cache: `$XDG_CACHE_HOME/x3d-expand` or `~/.cache/x3d-expand`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "x3d-expand"


def keep_freed_memory() -> None:
    """Let this process keep what it frees for what it takes next, up to its peak, in place of giving pages back to the
    system and faulting in others at every batch. For glibc; elsewhere it does nothing."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    set_option(M_MMAP_THRESHOLD, 1 << 30) or set_option(M_MMAP_THRESHOLD, 1 << 25)  # older ones take 32 MiB at most
    set_option(M_TRIM_THRESHOLD, (1 << 31) - 1)
