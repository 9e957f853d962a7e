"""Reading untrusted files within bounds: no more memory than allowed, and no endless wait for a pipe."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LARGEST_YAML = 1_000_000
"""Largest size in bytes of a configuration, a network's description, or anything else in YAML."""
KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
         (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))


def file_type(mode: int) -> str:
    """Return the type of a file with this `st_mode`, in words."""
    return next((name for is_kind, name in KINDS if is_kind(mode)), "a file")


def read_bounded(path: Path | str, most: int) -> bytes:
    """Return the content of the regular file `path`, which may be untrusted.

    Raises `OSError` if it cannot be read, is not a regular file (a pipe would block for ever), or has more than `most`
    bytes; the error's `strerror` says which.
    """
    # a pipe without a writer opens at once with O_NONBLOCK; for a regular file the flag means nothing
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"it is {file_type(found.st_mode)}, not a file", str(path))
    with open(handle, "rb", buffering=0) as file:
        if found.st_size <= most:
            content = bytearray()
            while part := file.read(most + 1 - len(content)):  # it may grow meanwhile
                content += part
            if len(content) <= most:
                return bytes(content)
        raise OSError(errno.EFBIG, f"it is larger than {size_text(most)}", str(path))


def size_text(count: int) -> str:
    """Return a number of bytes in words: `1 MB`, `64 kB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"
