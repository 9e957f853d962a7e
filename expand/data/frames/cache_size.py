"""How much the frame files of a folder take, and room among them: one limit for all sets and all processes."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from expand.data.frames.file_locks import locked
from expand.data.frames.frame_file import FRAMES, INDEX
from expand.processes.child import CONTEXT

LOCK = "lock"
LOOK_AGAIN = 0.02
"""Share of the limit by which one process may fill the folder before it looks at what others have put there, and by
which more than needed is removed, so that the folder is not read for every clip."""
SPARED_BYTES, SPARED_SHARE = 1e9, 0.05
"""What frames leave free on their disk, the smaller of bytes and a share of it: the run writes its checkpoints, most
often to the same one."""


class Ledger:
    """The bytes in `folder`, up to `limit_bytes` and as far as its disk has room. The processes of one `process_map`
    share a count; other programs are seen by looking: at the start, when the count reaches the limit, and after every
    2 % of it.

    Descriptions alone (`.index`) count and give way as frames do: those of old sets and formats do not stay for ever.
    A file's modification time says when a set that it belongs to was last prepared. Files marked since this ledger was
    made belong to the set at hand, or to one that is prepared at the same time: they are never removed.
    """

    def __init__(self, folder: Path, limit_bytes: float) -> None:
        self._folder, self.limit_bytes = folder, limit_bytes
        self._started_ns = time.time_ns()
        # without the lock of `CONTEXT.Value`: a process that is killed with it in hand would stop all the others
        self._used, self._unseen = CONTEXT.RawValue("d", 0.0), CONTEXT.RawValue("d", 0.0)
        with locked(folder / LOCK):
            self._look()

    @property
    def used_bytes(self) -> float:
        """All files of the folder that count, as far as is known."""
        return self._used.value

    @property
    def is_disk_full(self) -> bool:
        """Whether it is the disk that sets the limit."""
        return self._limit() < self.limit_bytes

    def take(self, count: int, *, evict: bool) -> bool:
        """Whether `count` more bytes stay within the limit; they are then counted. With `evict` the files that were
        not marked for longest are removed where that makes the room."""
        with locked(self._folder / LOCK):
            if not self._fits(count, evict):
                return False
            self._used.value += count
            self._unseen.value += count
            return True

    def has_room(self, count: int, *, evict: bool) -> bool:
        """As `take`, without counting."""
        with locked(self._folder / LOCK):
            return self._fits(count, evict)

    def mark(self, file: Path | int) -> None:
        """Say that `file` belongs to the set that is prepared now."""
        now_ns = max(time.time_ns(), self._started_ns)  # this machine's clock, also where a file server has its own
        with suppress(OSError):  # somebody else's file
            os.utime(file, ns=(now_ns, now_ns))

    def _fits(self, count: int, evict: bool) -> bool:
        if self._used.value + count > self._limit() or self._unseen.value > LOOK_AGAIN * self.limit_bytes:
            files = self._look()
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

    def _look(self) -> list[tuple[int, int, str]]:
        """(mark, bytes, path) of all files of frames and descriptions, which are counted anew."""
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
        """Remove files, longest unmarked first, until at most `most_bytes` are left, and some more while at it; none
        where that many can never be reached."""
        old = sorted(file for file in files if file[0] < self._started_ns)
        if self._used.value - sum(size for _, size, _ in old) > most_bytes:
            return
        for marked_ns, size, path in old:
            if self._used.value <= most_bytes - LOOK_AGAIN * self.limit_bytes:
                return
            with suppress(OSError):
                if os.stat(path).st_mtime_ns == marked_ns:  # else another set has just claimed it
                    os.unlink(path)
                    self._used.value -= size
