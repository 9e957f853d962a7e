"""The cache of decoded frames: one file for each clip, found by the clip's content and read in parts.

`FrameCache.get` returns a clip with its frames and decodes them if they are not stored yet. The hash of the clip's
bytes (`content.py`), the file format and the settings that change the frames give the file's name, so a set that was
copied, moved or renamed finds the frames that are already there. `SizeLimit` keeps all sets within one limit.

A process writes to a temporary file that it has locked (`file_locks.py`), and renames it when it is complete. A killed
process leaves no incomplete file, and its lock ends with it.

A file holds the uint8 frames as decoded and resized, one after the other (T x H x W x 3 bytes), then their description
(deflated JSON), then the length of the description and a magic word. It is complete if its length is the one that its
end gives, so nothing else has to be read to check it. An `.index` file is the description alone, for a clip whose
frames are decoded at each access.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import struct
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expand.data.frames.clip_files import UnreadableClip
from expand.data.frames.content import ContentMemo
from expand.data.frames.decode import ClipReader
from expand.data.frames.file_locks import POLL_S, TEMPORARY, claim, claim_another, lock, release, sweep
from expand.data.frames.frame_access import CachedClip
from expand.errors import DataError
from expand.processes import CONTEXT, heartbeat

MEMO, LOCK = "contents.txt", "lock"
ROOM, OVER_LIMIT, DISK_FULL = 0, 1, 2
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class _Request:
    """A clip whose frames are asked for."""

    path: Path
    label: int
    short_side: int
    content: str
    state: str
    stem: str
    """The beginning of the names of its files."""


class FrameCache:
    """Find and build the frame files of one data set in `folder`, up to `limit_bytes`. Can be the state of a
    `process_map`.

    `frame_rate` is the rate of clips that are folders of frames. `timeout_s` is how long to wait for another process
    that builds the same clip and writes nothing. Both are copied into the clips.
    """

    def __init__(self, folder: Path, limit_bytes: float, *, frame_rate: float = 30.0, timeout_s: float = 60.0) -> None:
        self.folder, self.frame_rate, self.timeout_s = folder, frame_rate, timeout_s
        self._full = CONTEXT.RawValue("i", ROOM if limit_bytes > 0 else OVER_LIMIT)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
            self.limit = SizeLimit(folder, limit_bytes)
        except OSError as error:
            raise DataError(f"cannot be made: {error.strerror}", where=str(folder),
                            fix="name a folder that can be written with data.cache_dir") from error
        self.memo = ContentMemo(folder / MEMO)
        with lock(folder / LOCK):
            self.memo.compact()

    @property
    def full_because(self) -> str | None:
        """The reason why no more frames are kept; None while they are."""
        if self._full.value == ROOM:
            return None
        if self._full.value == DISK_FULL or self.limit.is_disk_full:
            return f"the disk of {self.folder} is full"
        return f"data.cache_gb is {self.limit.limit_bytes / 1e9:g}"

    def begin_last_round(self) -> None:
        """Allow the removal of files that this set does not need, after every clip was asked for once."""
        if self._full.value == OVER_LIMIT and self.limit.limit_bytes > 0:
            self._full.value = ROOM

    def get(self, path: Path, label: int, short_side: int, *, last_round: bool = True) -> CachedClip | None:
        """Return the clip with its frames at min(its short side, `short_side`); decode it now unless it is stored.

        A set is asked for in two rounds, so that all of its stored files are marked as used before others are removed.
        In the first one (not `last_round`) the answer is None where another process builds the clip, or where only
        removing other files would make room. Raises `UnreadableClip`.
        """
        try:
            content, state = self.memo.content(path)
        except OSError as error:
            next(iter(ClipReader(path, short_side, frame_rate=self.frame_rate)), None)  # has the better message
            raise UnreadableClip(error.strerror or str(error), where=str(path)) from error
        request = _Request(path, label, short_side, content, state, self._stem(path, content))
        if stored := self._find_frames(request):
            return stored
        if found := self._find(request.stem, short_side, INDEX):
            index_file, about = found
            self.limit.mark(index_file)
            if self._never_fits(frames_bytes(about)):
                return self._cached_clip(request, about, None)
            if not self._full.value and not self.limit.has_room(frames_bytes(about), evict=last_round):
                self._full.value = OVER_LIMIT
            if self._full.value and not self._may_get_room(last_round):
                return self._cached_clip(request, about, None)
        if self._may_get_room(last_round):
            return None
        return self._build(request, last_round)

    def has(self, path: Path, short_side: int, *, hash_it: bool = False) -> bool:
        """Return whether the frames of `path` are stored, without marking them.

        A clip that the memo does not know counts as not stored unless `hash_it`, which reads the clip and raises as
        `content_hash`.
        """
        content = self.memo.content(path)[0] if hash_it else self.memo.known_content(path)
        return content is not None and self._find(self._stem(path, content), short_side, FRAMES) is not None

    def _may_get_room(self, last_round: bool) -> bool:
        """Return whether the folder is full in the first round, so that the last round may still make room."""
        return not last_round and self._full.value == OVER_LIMIT and self.limit.limit_bytes > 0

    def _never_fits(self, count: int) -> bool:
        """Return whether `count` bytes are too many even for an empty cache; then this one clip is not kept."""
        return count > self.limit.limit_bytes

    def _stem(self, path: Path, content: str) -> str:
        rate = f"{self.frame_rate:.9g}" if path.is_dir() else ""
        return hashlib.sha256(f"{FORMAT} {content} {rate}".encode()).hexdigest()[:32]

    def _names(self, stem: str, short_side: int) -> tuple[Path, Path]:
        """The names for frames at `short_side`, and at the source's own size, which serve every larger request."""
        return self.folder / f"{stem}-{short_side}{FRAMES}", self.folder / f"{stem}-full{FRAMES}"

    def _find(self, stem: str, short_side: int, suffix: str) -> tuple[Path, dict[str, Any]] | None:
        """Return the stored file that serves a request, with its description."""
        for name in self._names(stem, short_side):
            file = name.with_suffix(suffix)
            about = read_description(file)
            if about and bool(about["bytes"]) == (suffix == FRAMES) and (
                    not file.stem.endswith("-full") or min(about["height"], about["width"]) <= short_side):
                return file, about
        return None

    def _find_frames(self, request: _Request) -> CachedClip | None:
        """Return the clip if its frames are stored, and mark them as used."""
        if (found := self._find(request.stem, request.short_side, FRAMES)) is None:
            return None
        file, about = found
        self.limit.mark(file)
        return self._cached_clip(request, about, file)

    def _build(self, request: _Request, last_round: bool) -> CachedClip | None:
        """Decode the clip into a new file, unless another process has done so by the time its lock is ours."""
        try:
            file = self._claim(request, last_round)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise self._write_error(error) from error
            self._full.value = DISK_FULL  # not even an empty file can be written
            about = self._write_frames(io.BytesIO(), self._reader(request), last_round=True)
            return self._cached_clip(request, about, None)
        if file is None:
            return None
        is_renamed = False
        try:
            if stored := self._find_frames(request):  # by the process that we waited for
                return stored
            clip, is_renamed = self._decode_into(file, request, last_round)
            return clip
        finally:
            release(file, remove=not is_renamed)

    def _claim(self, request: _Request, last_round: bool) -> io.FileIO | None:
        """Open and lock the temporary file of a clip; None where another process has it.

        In the last round this waits for the other process. One that writes nothing for `timeout_s` is not waited for:
        both then build the clip, and the later rename wins.
        """
        path = self.folder / f"{request.stem}-{request.short_side}{TEMPORARY}"
        if self._full.value:
            return claim_another(path)
        last_size, since = -1, time.monotonic()
        while (file := claim(path)) is None and last_round:
            heartbeat()
            time.sleep(POLL_S)
            try:
                size = path.stat().st_size
            except OSError:  # it has just got its final name
                size = 0
            if size != last_size:
                last_size, since = size, time.monotonic()
            elif time.monotonic() - since > self.timeout_s:
                return claim_another(path)
        return file

    def _decode_into(self, file: io.FileIO, request: _Request, last_round: bool) -> tuple[CachedClip | None, bool]:
        """Decode the clip into `file`. Return it, and whether `file` was given its final name."""
        reader = self._reader(request)
        about, final = None, None
        try:
            about = self._write_frames(file, reader, last_round)
            if not about["bytes"] and self._may_get_room(last_round):
                return None, False
            description = pack_description(about)
            if file.write(description) != len(description):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(file.fileno())  # else a power cut may leave the final name with zeros in place of frames
            self.limit.mark(file.fileno())
            is_full_size = (about["height"], about["width"]) == (reader.source_height, reader.source_width)
            name = self._names(request.stem, request.short_side)[is_full_size]
            final = name if about["bytes"] else name.with_suffix(INDEX)
            os.replace(str(file.name), final)
            if about["bytes"]:
                with suppress(OSError):
                    name.with_suffix(INDEX).unlink(missing_ok=True)
        except OSError as error:
            if about is None or error.errno not in NO_ROOM:
                raise self._write_error(error) from error
            self._full.value = DISK_FULL
            return self._cached_clip(request, about, None), False
        return self._cached_clip(request, about, final if about["bytes"] else None), True

    def _write_frames(self, file: io.FileIO | io.BytesIO, reader: ClipReader, last_round: bool) -> dict[str, Any]:
        """Decode all frames and write them as long as there is room; return the description of what `file` holds."""
        times_s, height, width, written = [], 0, 0, 0
        for time_s, frame_HWC in reader:
            times_s.append(time_s)
            height, width = frame_HWC.shape[:2]
            if not self._full.value and not self._never_fits(written):
                written += self._write(file, frame_HWC)
        is_too_long = self._never_fits(written)
        if not self._full.value and not is_too_long and not self.limit.take(written, evict=last_round):
            self._full.value = OVER_LIMIT
        if self._full.value or is_too_long:
            file.truncate(0)
            written = 0
        stamps = None if reader.stamps is None else reader.stamps.tolist()
        return {"times_s": times_s, "stamps": stamps, "height": height, "width": width, "bytes": written,
                "damaged": reader.damaged, "mirrored": reader.header.mirrored}

    def _write(self, file: io.FileIO | io.BytesIO, frame_HWC: np.ndarray) -> int:
        """Write a frame and return its bytes; 0, and the cache counts as full, where the disk has no room for it."""
        try:
            if file.write(frame_HWC.data) == frame_HWC.nbytes:
                return frame_HWC.nbytes
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
        self._full.value = DISK_FULL
        return 0

    def _reader(self, request: _Request) -> ClipReader:
        return ClipReader(request.path, request.short_side, frame_rate=self.frame_rate)

    def _cached_clip(self, request: _Request, about: dict[str, Any], store: Path | None) -> CachedClip:
        stamps = None if about["stamps"] is None else np.array(about["stamps"], dtype=np.int64)
        return CachedClip(request.path, request.label, np.array(about["times_s"], dtype=np.float64), about["height"],
                          about["width"], store, request.short_side, about["damaged"], stamps, self.frame_rate,
                          self.timeout_s, request.content, request.state, about["mirrored"])

    def _write_error(self, error: OSError) -> DataError:
        return DataError(f"decoded frames cannot be written: {error.strerror}", where=str(self.folder),
                         fix="name another folder with data.cache_dir")


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
        """Return whether `count` more bytes stay within the limit, perhaps after the removal of files.

        The longest unmarked go first, until 2 % less than needed is left; none at all if that cannot make enough room.
        """
        if self._used.value + count <= self._limit() and self._unseen.value <= LOOK_AGAIN * self.limit_bytes:
            return True
        files, most_bytes = self._count_folder(), self._limit() - count
        old = sorted(file for file in files if file[0] < self._started_ns) if evict else []
        if self._used.value > most_bytes >= self._used.value - sum(size for _, size, _ in old):
            for marked_ns, size, path in old:
                if self._used.value <= most_bytes - LOOK_AGAIN * self.limit_bytes:
                    break
                with suppress(OSError):
                    if os.stat(path).st_mtime_ns == marked_ns:  # else another set has just marked it
                        os.unlink(path)
                        self._used.value -= size
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


FORMAT = 3
"""Changes with the format and with how frames are decoded; part of every name, so that no old file is used. 3: frames
are mirrored and stretched as the clip says."""
MAGIC = b"x3dframe"
TRAILER = struct.Struct("<Q8s")
FRAMES, INDEX = ".frames", ".index"


def pack_description(description: dict[str, Any]) -> bytes:
    """Return the bytes that follow the frames in a file; `description` has `bytes`, the length of the frames in it."""
    text = zlib.compress(json.dumps(description | {"format": FORMAT}).encode())
    return text + TRAILER.pack(len(text), MAGIC)


def read_description(file: Path) -> dict[str, Any] | None:
    """Return the description in `file`; None if there is none or the file is not complete."""
    try:
        with open(file, "rb", buffering=0) as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(size - TRAILER.size)
            length, magic = TRAILER.unpack(opened.read(TRAILER.size))
            if magic != MAGIC or length > size:
                return None
            opened.seek(size - TRAILER.size - length)
            description = json.loads(zlib.decompress(opened.read(length)))
            is_complete = description["format"] == FORMAT and description["bytes"] + length + TRAILER.size == size
            return description if is_complete else None
    except (OSError, ValueError, struct.error, zlib.error, KeyError, TypeError):
        return None


def frames_bytes(description: dict[str, Any]) -> int:
    """Return the bytes that the described frames take once decoded, whether they are in the file or not."""
    return len(description["times_s"]) * description["height"] * description["width"] * 3
