"""Decoded frames, kept once on disk: one file a clip, found by its content, read in parts.

A file's name is a hash of the clip's bytes (`expand.data.frames.content`), of the format and of the settings that its
frames depend on: a copied, moved or renamed set, or one named by a list in place of its folder, finds the frames that
are there. Frames are kept as decoded and resized, uint8, without further loss. A file is written under a temporary name
and renamed: a kill leaves no half file. Whoever writes holds a lock on the temporary file, which falls with the
process, so that others know whether to wait for it or to take its place.

All sets share one limit (`expand.data.frames.cache_size`). An `.index` file is the description alone, for a clip whose
frames are decoded at each access.
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

from expand.data.frames.cache_size import LOCK, Ledger
from expand.data.frames.content import ContentMemo
from expand.data.frames.decode import ClipReader, UnreadableClip
from expand.data.frames.file_locks import POLL_S, TEMPORARY, claim, claim_another, locked, release, sweep
from expand.data.frames.frame_access import CachedClip, read_frames
from expand.data.frames.frame_file import FORMAT, FRAMES, INDEX, frames_bytes, pack_description, read_description
from expand.errors import DataError
from expand.processes.child import CONTEXT, beat

__all__ = ["FORMAT", "CachedClip", "FrameCache", "read_frames"]

MEMO = "contents.txt"
ROOM, OVER_LIMIT, DISK_FULL = 0, 1, 2
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class _Job:
    """A clip whose frames are asked for."""

    path: Path
    label: int
    short_side: int
    content: str
    state: str
    stem: str
    """What the names of its files begin with."""


class FrameCache:
    """Builds and finds the frame files of one data set in `folder`, up to `limit_bytes`; goes with `process_map`.

    `frame_rate` is that of clips that are folders of frames, `timeout_s` how long another process that builds the
    same clip may seem to do nothing. Both go into the clips.
    """

    def __init__(self, folder: Path, limit_bytes: float, *, frame_rate: float = 30.0, timeout_s: float = 60.0) -> None:
        self.folder, self.frame_rate, self.timeout_s = folder, frame_rate, timeout_s
        self._full = CONTEXT.RawValue("i", ROOM if limit_bytes > 0 else OVER_LIMIT)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
            self.ledger = Ledger(folder, limit_bytes)
        except OSError as error:
            raise DataError(f"cannot be made: {error.strerror}", where=str(folder),
                            fix="name a folder that can be written with data.cache_dir") from error
        self.memo = ContentMemo(folder / MEMO)
        with locked(folder / LOCK):
            self.memo.compact()

    @property
    def full_because(self) -> str | None:
        """Why no more frames are kept; None while they are."""
        if self._full.value == ROOM:
            return None
        if self._full.value == DISK_FULL or self.ledger.is_disk_full:
            return f"the disk of {self.folder} is full"
        return f"data.cache_gb is {self.ledger.limit_bytes / 1e9:g}"

    def settle(self) -> None:
        """After all clips were asked for without `settled`: what they did not need may now be removed for the rest."""
        if self._full.value == OVER_LIMIT and self.ledger.limit_bytes > 0:
            self._full.value = ROOM

    def get(self, path: Path, label: int, short_side: int, *, settled: bool = True) -> CachedClip | None:
        """The clip with its frames at min(its short side, `short_side`), decoded now unless found.

        Not `settled`: None where another process is building it, or where there is no room and more could be made; to
        be asked for again after all clips of the set were, so that each is marked as in use before others give way.
        Raises `UnreadableClip`.
        """
        job = self._job(path, label, short_side)
        if found := self._found(job):
            return found
        index = self._index(job)
        if index and self._never_fits(frames_bytes(index)):
            return self._clip(job, index, None)
        if index and not self._full.value and not self.ledger.has_room(frames_bytes(index), evict=settled):
            self._full.value = OVER_LIMIT
        if self._puts_off(settled):
            return None
        if index and self._full.value:
            return self._clip(job, index, None)
        return self._build(job, settled)

    def has(self, path: Path, short_side: int) -> bool:
        """Whether the frames of `path` are known to be there, without reading or marking anything."""
        content = self.memo.known(path)
        return content is not None and self._stored(self._stem(path, content), short_side) is not None

    def _puts_off(self, settled: bool) -> bool:
        """Whether there is no room as yet, and asking again may help."""
        return not settled and self._full.value == OVER_LIMIT and self.ledger.limit_bytes > 0

    def _never_fits(self, count: int) -> bool:
        """Whether a clip's frames are too many even for an empty cache: it alone is then not kept."""
        return count > self.ledger.limit_bytes

    def _job(self, path: Path, label: int, short_side: int) -> _Job:
        try:
            content, state = self.memo.content(path)
        except OSError as error:
            next(iter(ClipReader(path, short_side, frame_rate=self.frame_rate)), None)  # says it in its own words
            raise UnreadableClip(error.strerror or str(error), where=str(path)) from error
        return _Job(path, label, short_side, content, state, self._stem(path, content))

    def _stem(self, path: Path, content: str) -> str:
        rate = f"{self.frame_rate:.9g}" if path.is_dir() else ""
        return hashlib.sha256(f"{FORMAT} {content} {rate}".encode()).hexdigest()[:32]

    def _files(self, stem: str, short_side: int) -> list[Path]:
        return [self.folder / f"{stem}-{size}{FRAMES}" for size in (short_side, "full")]

    def _found(self, job: _Job) -> CachedClip | None:
        if (stored := self._stored(job.stem, job.short_side)) is None:
            return None
        self.ledger.mark(stored[0])
        return self._clip(job, stored[1], stored[0])

    def _index(self, job: _Job) -> dict[str, Any] | None:
        if (stored := self._stored(job.stem, job.short_side, INDEX)) is None:
            return None
        self.ledger.mark(stored[0])
        return stored[1]

    def _stored(self, stem: str, short_side: int, suffix: str = FRAMES) -> tuple[Path, dict[str, Any]] | None:
        """The file that serves, and its description; frames at the source's own size serve every larger request."""
        for file in self._files(stem, short_side):
            about = read_description(file.with_suffix(suffix))
            if about and bool(about["bytes"]) == (suffix == FRAMES) and (
                    not file.stem.endswith("-full") or min(about["height"], about["width"]) <= short_side):
                return file.with_suffix(suffix), about
        return None

    def _build(self, job: _Job, settled: bool) -> CachedClip | None:
        try:
            file = self._claimed(job, settled)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise self._unwritable(error) from error
            self._full.value = DISK_FULL
            return self._described(job)
        if file is None:
            return None
        done = False
        try:
            if found := self._found(job):  # by the process that we waited for
                return found
            built, done = self._written(job, file, settled)
            return built
        finally:
            release(file, remove=not done)

    def _claimed(self, job: _Job, settled: bool) -> io.FileIO | None:
        """The file to write to; None where another process has it and, if `settled`, even after waiting for that.

        A process that has it and does nothing for `timeout_s` is not waited for: both then build, and one wins.
        """
        path = self.folder / f"{job.stem}-{job.short_side}{TEMPORARY}"
        if self._full.value:
            return claim_another(path)
        size, since = -1, time.monotonic()
        while (file := claim(path)) is None and settled:
            beat()
            time.sleep(POLL_S)
            if (grown := _size(path)) != size:
                size, since = grown, time.monotonic()
            elif time.monotonic() - since > self.timeout_s:
                return claim_another(path)
        return file

    def _written(self, job: _Job, file: io.FileIO, settled: bool) -> tuple[CachedClip | None, bool]:
        """The clip, decoded into `file`, and whether that got its final name."""
        reader = self._reader(job)
        about, final = None, None
        try:
            about = self._write_frames(file, reader, settled)
            if not about["bytes"] and self._puts_off(settled):
                return None, False
            description = pack_description(about)
            if file.write(description) != len(description):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(file.fileno())  # else a power cut may leave the final name with zeros in place of frames
            self.ledger.mark(file.fileno())
            whole = (about["height"], about["width"]) == (reader.source_height, reader.source_width)
            name = self._files(job.stem, job.short_side)[whole]
            final = name if about["bytes"] else name.with_suffix(INDEX)
            os.replace(file.name, final)
            if about["bytes"]:
                _remove(name.with_suffix(INDEX))
        except OSError as error:
            if about is None or error.errno not in NO_ROOM:
                raise self._unwritable(error) from error
            self._full.value = DISK_FULL
            return self._clip(job, about, None), False
        return self._clip(job, about, final if about["bytes"] else None), True

    def _write_frames(self, file: io.RawIOBase | io.BytesIO, reader: ClipReader, settled: bool) -> dict[str, Any]:
        """Write the frames, as long as there is room for them; the description of what the file then holds."""
        times_s, size, written = [], (0, 0), 0
        for time_s, frame_HWC in reader:
            times_s.append(time_s)
            size = frame_HWC.shape[:2]
            if not self._full.value and not self._never_fits(written):
                written += self._write(file, frame_HWC)
        is_too_long = self._never_fits(written)
        if not self._full.value and not is_too_long and not self.ledger.take(written, evict=settled):
            self._full.value = OVER_LIMIT
        if self._full.value or is_too_long:
            file.truncate(0)
            written = 0
        stamps = None if reader.stamps is None else reader.stamps.tolist()
        return {"times_s": times_s, "stamps": stamps, "height": size[0], "width": size[1], "bytes": written,
                "damaged": reader.damaged, "mirrored": reader.header.mirrored}

    def _write(self, file: io.RawIOBase | io.BytesIO, frame_HWC: np.ndarray) -> int:
        try:
            if file.write(frame_HWC.data) == frame_HWC.nbytes:
                return frame_HWC.nbytes
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
        self._full.value = DISK_FULL
        return 0

    def _reader(self, job: _Job) -> ClipReader:
        return ClipReader(job.path, job.short_side, frame_rate=self.frame_rate)

    def _described(self, job: _Job) -> CachedClip:
        """The clip where not even an empty file can be written."""
        return self._clip(job, self._write_frames(io.BytesIO(), self._reader(job), settled=True), None)

    def _clip(self, job: _Job, about: dict[str, Any], store: Path | None) -> CachedClip:
        stamps = None if about["stamps"] is None else np.array(about["stamps"], dtype=np.int64)
        return CachedClip(job.path, job.label, np.array(about["times_s"], dtype=np.float64), about["height"],
                          about["width"], store, job.short_side, about["damaged"], stamps, self.frame_rate,
                          self.timeout_s, job.content, job.state, about["mirrored"])

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"decoded frames cannot be written: {error.strerror}", where=str(self.folder),
                         fix="name another folder with data.cache_dir")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it has just got its final name
        return 0


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
