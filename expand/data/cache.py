"""Decoded frames, kept once on disk: one file a clip, read in parts, built without a lock.

A `.frames` file holds the frames one after the other (T x H x W x 3 bytes), then their description as JSON, then the
length of that and a magic word. Written to a temporary name and renamed, so a kill leaves no half file, and two
processes that build together write the same file twice. The name is a hash of the clip's path, size and modification
time (not of its bytes: hashing a large set at every start would cost more than it protects from) and of the stored
size. Frames are read with `pread`, which needs no open file or mapping a clip (a set may have more clips than a
process may have files) and, from the page cache, costs no more than copying out of a mapping.

A `.index` file is the description alone, for a clip whose frames are decoded at each access.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import struct
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expand.data.decode import ClipReader
from expand.data.pool import CONTEXT
from expand.errors import DataError

FORMAT = 1
MAGIC = b"x3dframe"
TRAILER = struct.Struct("<Q8s")
STALE_S = 3600.0
"""Temporary files older than this, seconds, are leftovers of a killed process."""
ROOM, OVER_LIMIT, DISK_FULL = 0, 1, 2
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, eq=False)
class CachedClip:
    """A readable clip: where its frames are and when they are shown."""

    path: Path
    label: int
    times_s: np.ndarray
    """T times, ascending, seconds from the first frame."""
    height: int
    width: int
    store: Path | None
    """The `.frames` file; None: decoded at each access."""
    short_side: int
    damaged: int = 0
    """Packets that could not be decoded."""

    @property
    def length_s(self) -> float:
        """Time from the first to the last frame: what a clip can be sampled from, seconds."""
        return float(self.times_s[-1])


def read_frames(clip: CachedClip, index_T: np.ndarray, top: int, bottom: int) -> np.ndarray:
    """Rows `top` to `bottom` of the frames `index_T` (ascending, repeats allowed): T x (bottom - top) x W x 3 uint8.

    Raises `DataError` where the clip's frames are gone or cut.
    """
    if clip.store is None:
        return _decode_frames(clip, index_T, top, bottom)
    frames_THWC = np.empty((len(index_T), bottom - top, clip.width, 3), dtype=np.uint8)
    row_bytes = clip.width * 3
    try:
        file = os.open(clip.store, os.O_RDONLY)
    except OSError as error:
        raise _gone(clip) from error
    try:
        for frame_HWC, index in zip(frames_THWC, index_T.tolist()):
            if os.preadv(file, [frame_HWC], (index * clip.height + top) * row_bytes) != frame_HWC.nbytes:
                raise _gone(clip)
    finally:
        os.close(file)
    return frames_THWC


def _decode_frames(clip: CachedClip, index_T: np.ndarray, top: int, bottom: int) -> np.ndarray:
    wanted = np.unique(index_T)
    frames = [frame[top:bottom] for _, frame in ClipReader(clip.path, clip.short_side, wanted)]
    if len(frames) != len(wanted):
        raise DataError("gives fewer frames than when the run started", where=str(clip.path),
                        fix="was it replaced meanwhile? start again to read it anew")
    return np.stack(frames)[np.searchsorted(wanted, index_T)]


def _gone(clip: CachedClip) -> DataError:
    return DataError(f"the decoded frames of {clip.path} are gone or cut", where=str(clip.store),
                     fix="start again (or resume): missing frames are decoded anew")


class FrameCache:
    """Builds and finds the frame files of one data set in `folder`, up to `limit_bytes`; goes with `process_map`."""

    def __init__(self, folder: Path, limit_bytes: float) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._used = CONTEXT.Value("d", 0.0)
        self._full = CONTEXT.Value("i", ROOM if limit_bytes > 0 else OVER_LIMIT)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot be made: {error.strerror}", where=str(folder),
                            fix="name a folder that can be written with data.cache_dir") from error
        _sweep(folder)

    @property
    def full_because(self) -> str | None:
        """Why no more frames are kept; None while they are."""
        reasons = {ROOM: None, OVER_LIMIT: f"data.cache_gb is {self.limit_bytes / 1e9:g}",
                   DISK_FULL: f"the disk of {self.folder} is full"}
        return reasons[self._full.value]

    def get(self, path: Path, label: int, short_side: int) -> CachedClip:
        """The clip with its frames at min(its short side, `short_side`), decoded now unless found.

        Raises `UnreadableClip`.
        """
        stem = _key(path)
        candidates = [self.folder / f"{stem}-{short_side}.frames", self.folder / f"{stem}-full.frames"]
        if self.full_because:
            candidates += [file.with_suffix(".index") for file in candidates]
        for file in candidates:
            about = _read_about(file)
            # frames kept at the source's own size serve every larger request too
            if about and ("-full" not in file.name or min(about["height"], about["width"]) <= short_side):
                self._take(about["bytes"])
                return _clip(path, label, short_side, about, file if file.suffix == ".frames" else None)
        return self._build(stem, path, label, short_side)

    def _build(self, stem: str, path: Path, label: int, short_side: int) -> CachedClip:
        reader, about = ClipReader(path, short_side), None
        temporary = self.folder / f"{stem}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb", buffering=0) as file:
                about = self._write_frames(file, reader)
                text = json.dumps(about).encode()
                file.write(text + TRAILER.pack(len(text), MAGIC))
            kept = about["bytes"] > 0
            whole = (about["height"], about["width"]) == (reader.source_height, reader.source_width)
            final = self.folder / f"{stem}-{'full' if whole else short_side}{'.frames' if kept else '.index'}"
            os.replace(temporary, final)
        except OSError as error:
            if about is None or error.errno not in NO_ROOM:
                raise DataError(f"decoded frames cannot be written: {error.strerror}", where=str(self.folder),
                                fix="name another folder with data.cache_dir") from error
            self._full.value, kept = DISK_FULL, False
        finally:
            temporary.unlink(missing_ok=True)
        return _clip(path, label, short_side, about, final if kept else None)

    def _write_frames(self, file: io.FileIO, reader: ClipReader) -> dict:
        """Write the frames, as long as there is room for them; the description of what the file then holds."""
        times_s, size, written = [], (0, 0), 0
        for time_s, frame_HWC in reader:
            times_s.append(time_s)
            size = frame_HWC.shape[:2]
            if not self.full_because:
                written += self._write(file, frame_HWC)
        if self.full_because or not self._take(written):
            file.seek(0)
            file.truncate()
            written = 0
        return {"format": FORMAT, "times_s": times_s, "height": size[0], "width": size[1], "bytes": written,
                "damaged": reader.damaged}

    def _write(self, file: io.FileIO, frame_HWC: np.ndarray) -> int:
        try:
            if file.write(frame_HWC.data) == frame_HWC.nbytes:
                return frame_HWC.nbytes
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
        self._full.value = DISK_FULL
        return 0

    def _take(self, count: int) -> bool:
        """Whether `count` more bytes stay within the limit; they are then counted."""
        with self._used.get_lock():
            if self._used.value + count > self.limit_bytes:
                self._full.value = self._full.value or OVER_LIMIT
                return False
            self._used.value += count
            return True


def _clip(path: Path, label: int, short_side: int, about: dict, store: Path | None) -> CachedClip:
    return CachedClip(path, label, np.array(about["times_s"]), about["height"], about["width"], store, short_side,
                      about["damaged"])


def _key(path: Path) -> str:
    try:
        stat = path.stat()
        text = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    except OSError:  # the reader says what is wrong with it
        text = str(path)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _read_about(file: Path) -> dict | None:
    """The description in a frame file; None where there is none or the file is not whole."""
    try:
        with open(file, "rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(size - TRAILER.size)
            length, magic = TRAILER.unpack(opened.read(TRAILER.size))
            if magic != MAGIC:
                return None
            opened.seek(size - TRAILER.size - length)
            about = json.loads(opened.read(length))
            whole = about["format"] == FORMAT and about["bytes"] + length + TRAILER.size == size
            return about if whole else None
    except (OSError, ValueError, struct.error, KeyError, TypeError):
        return None


def _sweep(folder: Path) -> None:
    """Remove what killed processes left behind long ago; younger files may belong to somebody at work."""
    for leftover in folder.glob("*.tmp"):
        try:
            if time.time() - leftover.stat().st_mtime > STALE_S:
                leftover.unlink()
        except OSError:
            continue
