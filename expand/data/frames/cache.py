"""The cache of decoded frames: one file for each clip, found by the clip's content and read in parts.

`FrameCache.get` returns a clip with its frames and decodes them if they are not stored yet. Its parts:

- `content.py` hashes a clip's bytes. The hash, the file format and the settings that change the frames give the file's
  name, so a set that was copied, moved or renamed finds the frames that are already there.
- `frame_file.py` defines the file format: uint8 frames as decoded and resized, without further loss. An `.index` file
  is the description alone, for a clip whose frames are decoded at each access.
- `cache_size.py` keeps all sets within one limit and removes old files.
- `file_locks.py` has the locks: a process writes to a temporary file that it has locked, and renames it when it is
  complete. A killed process leaves no incomplete file, and its lock ends with it.
- `frame_access.py` reads the frames of a prepared clip.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expand.data.frames.cache_size import LOCK, SizeLimit
from expand.data.frames.content import ContentMemo
from expand.data.frames.decode import ClipReader, UnreadableClip
from expand.data.frames.file_locks import POLL_S, TEMPORARY, claim, claim_another, lock, release, sweep
from expand.data.frames.frame_access import CachedClip, read_frames
from expand.data.frames.frame_file import FORMAT, FRAMES, INDEX, frames_bytes, pack_description, read_description
from expand.errors import DataError
from expand.processes.child import CONTEXT, heartbeat

__all__ = ["FORMAT", "CachedClip", "FrameCache", "read_frames"]

MEMO = "contents.txt"
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
        request = self._request(path, label, short_side)
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

    def _request(self, path: Path, label: int, short_side: int) -> _Request:
        try:
            content, state = self.memo.content(path)
        except OSError as error:
            next(iter(ClipReader(path, short_side, frame_rate=self.frame_rate)), None)  # has the better message
            raise UnreadableClip(error.strerror or str(error), where=str(path)) from error
        return _Request(path, label, short_side, content, state, self._stem(path, content))

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
