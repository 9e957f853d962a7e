"""The limit on the size of the frame cache, one for all data sets and processes; old files are removed for new ones."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from expand.data.frames.file_locks import lock
from expand.data.frames.frame_file import FRAMES, INDEX
from expand.processes.child import CONTEXT

LOCK = "lock"
LOOK_AGAIN = 0.02
"""Share of the limit by which one process may fill the folder before it looks at what others have put there, and by
which it removes more than needed, so that the folder is not read for every clip."""
SPARED_BYTES, SPARED_SHARE = 1e9, 0.05
"""Space that frames leave free on their disk, the smaller of these bytes and this share of the disk: the run writes
its checkpoints, most often to the same one."""


class SizeLimit:
    """The count of the bytes in `folder`, held below `limit_bytes` and below what its disk has room for.

    The processes of one `process_map` share the count. Files of other programs are found by reading the folder: at the
    start, when the count reaches the limit, and after every 2 % of it. Descriptions alone (`.index`) are counted and
    removed as frames are, so that those of old sets and formats do not stay for ever.

    A file's modification time says when a set that it belongs to was last prepared. Files marked since this object was
    made belong to the current set, or to one that is prepared at the same time: they are never removed.
    """

    def __init__(self, folder: Path, limit_bytes: float) -> None:
        self._folder, self.limit_bytes = folder, limit_bytes
        self._started_ns = time.time_ns()
        # without the lock of `CONTEXT.Value`: a process that is killed with it in hand would stop all the others
        self._used, self._unseen = CONTEXT.RawValue("d", 0.0), CONTEXT.RawValue("d", 0.0)
        with lock(folder / LOCK):
            self._count_folder()

    @property
    def used_bytes(self) -> float:
        """The bytes of all frame files in the folder, as far as is known."""
        return self._used.value

    @property
    def is_disk_full(self) -> bool:
        """True if the disk, and not the setting, is the limit."""
        return self._limit() < self.limit_bytes

    def take(self, count: int, *, evict: bool) -> bool:
        """Count `count` more bytes if they stay within the limit, and return whether they do.

        With `evict`, the files that were not marked for longest are removed if that makes enough room.
        """
        with lock(self._folder / LOCK):
            if not self._fits(count, evict):
                return False
            self._used.value += count
            self._unseen.value += count
            return True

    def has_room(self, count: int, *, evict: bool) -> bool:
        """Return whether `take` would succeed, without counting; with `evict` it removes files as `take` does."""
        with lock(self._folder / LOCK):
            return self._fits(count, evict)

    def mark(self, file: Path | int) -> None:
        """Mark `file` as used by the set that is prepared now."""
        now_ns = max(time.time_ns(), self._started_ns)  # this machine's clock, also where a file server has its own
        with suppress(OSError):  # a file of another user
            os.utime(file, ns=(now_ns, now_ns))

    def _fits(self, count: int, evict: bool) -> bool:
        if self._used.value + count > self._limit() or self._unseen.value > LOOK_AGAIN * self.limit_bytes:
            files = self._count_folder()
            if evict and self._used.value + count > self._limit():
                self._evict(files, self._limit() - count)
        return self._used.value + count <= self._limit()

    def _limit(self) -> float:
        try:
            disk = os.statvfs(self._folder)
        except OSError:
            return self.limit_bytes
        spared = min(SPARED_BYTES, SPARED_SHARE * disk.f_blocks * disk.f_frsize)
        most = self._used.value + disk.f_bavail * disk.f_frsize - spared
        return min(self.limit_bytes, most) if disk.f_blocks else self.limit_bytes  # some disks do not say

    def _count_folder(self) -> list[tuple[int, int, str]]:
        """Count all files of frames and descriptions anew; return (mark, bytes, path) of each."""
        files = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith((FRAMES, INDEX)):
                    with suppress(OSError):
                        stat = entry.stat()
                        files.append((stat.st_mtime_ns, stat.st_size, entry.path))
        self._used.value, self._unseen.value = float(sum(size for _, size, _ in files)), 0.0
        return files

    def _evict(self, files: list[tuple[int, int, str]], most_bytes: float) -> None:
        """Remove files, longest unmarked first, until 2 % less than `most_bytes` is left; none at all if not even
        `most_bytes` can be reached."""
        old = sorted(file for file in files if file[0] < self._started_ns)
        if self._used.value - sum(size for _, size, _ in old) > most_bytes:
            return
        for marked_ns, size, path in old:
            if self._used.value <= most_bytes - LOOK_AGAIN * self.limit_bytes:
                return
            with suppress(OSError):
                if os.stat(path).st_mtime_ns == marked_ns:  # else another set has just marked it
                    os.unlink(path)
                    self._used.value -= size
