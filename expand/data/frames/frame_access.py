"""The frames of a prepared clip: read from the frame cache, or else decoded again from the clip, bit for bit the same.

Another data set may push frames out of the cache, and users may delete it; a run does not end for that.
"""

from __future__ import annotations

import mmap
import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expand.data.frames.content import content_hash, file_state
from expand.data.frames.decode import ClipReader
from expand.errors import DataError
from expand.processes import Child, ChildDied

GREY = round(255 * 0.45)
"""The grey level that the recipe's normalisation turns into 0."""
TRIES = 2
"""Attempts to decode a clip at one access, each in another process."""


@dataclass(frozen=True, eq=False)
class CachedClip:
    """A readable clip: the place of its frames and their times."""

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
    stamps: np.ndarray | None = None
    """T presentation stamps (int64), by which decoding can seek; None where it must begin at the beginning."""
    frame_rate: float = 30.0
    """Frames a second, if it is a folder of frames."""
    timeout_s: float = 60.0
    """Longest time that decoding a frame may take, seconds."""
    content: str = ""
    """Hash of its bytes (`content_hash`); "": unknown, and not checked."""
    state: str = ""
    """Its `file_state` when the content was that."""
    mirrored: bool = False
    """Its frames are mirrored in the clip, and were turned back."""

    @property
    def length_s(self) -> float:
        """Time from the first to the last frame, seconds."""
        return float(self.times_s[-1])


def read_frames(clip: CachedClip, index_T: np.ndarray, top: int, bottom: int) -> np.ndarray:
    """Return rows `top` to `bottom` of the frames `index_T` (ascending, repeats allowed): T x (bottom - top) x W x 3
    uint8. Raises as `read_into`."""
    frames_THWC = np.empty((len(index_T), bottom - top, clip.width, 3), dtype=np.uint8)
    read_into(frames_THWC.reshape(len(index_T), -1), clip, index_T, top)
    return frames_THWC


def read_into(rows_TB: np.ndarray, clip: CachedClip, index_T: np.ndarray, top: int) -> None:
    """Read frames `index_T` (ascending, repeats allowed) into T x (rows x W x 3) bytes: from row `top` on as many rows
    as have room; the bytes of a frame are contiguous.

    If the stored frames are gone or cut, one warning says so and the frames are decoded from the clip, in a child
    process. If that dies twice over a clip (a crash, a hang, no memory), a warning names the clip and this access gives
    grey frames: this costs one clip and never the run, and in an evaluation it counts against the network.

    Raises `DataError` if the frames are not stored and the clip is missing or was changed.
    """
    global _own
    if clip.store is not None:
        try:
            _read_stored(rows_TB, clip.store, clip, index_T, top)
            return
        except OSError as error:
            if not _warned[0]:
                _warned[0] = 1
                warnings.warn(f"the decoded frames of {clip.path} are gone or cut ({error.strerror}: {clip.store}); "
                              "they are decoded at each access, and so are other missing ones. They are kept again "
                              "once the run is resumed; if they were pushed out, a larger data.cache_gb keeps them",
                              stacklevel=2)
    wanted, inverse_T = np.unique(index_T, return_inverse=True)
    bottom, what = top + rows_TB.shape[1] // (clip.width * 3), ""
    with _lock:
        if _own is None or _own[0] != clip.timeout_s:
            if _own:
                _own[1].close()
            _own = (clip.timeout_s, Child(timeout_s=clip.timeout_s))
        for _ in range(TRIES):
            try:
                frames_UHWC = _own[1].call(_decode, clip, wanted, top, bottom)
                rows_TB[:] = frames_UHWC.reshape(len(wanted), -1)[inverse_T]
                return
            except ChildDied as death:
                what = death.what
    warnings.warn(f"{clip.path}: {what}, {TRIES} times; grey frames take its place at this access", stacklevel=2)
    rows_TB[:] = GREY


def _read_stored(rows_TB: np.ndarray, store: Path, clip: CachedClip, index_T: np.ndarray, top: int) -> None:
    """Read with `pread`: it needs no open file or mapping for each clip, and fails where a mapping of a file that is
    cut meanwhile would kill the process (docs/decisions/010-frame-cache.md)."""
    row_bytes, wanted = clip.width * 3, rows_TB.shape[1]
    file = os.open(store, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for row_B, index in zip(rows_TB, index_T.tolist(), strict=True):
            if os.preadv(file, [row_B], (index * clip.height + top) * row_bytes) != wanted:
                raise OSError(0, "the file is too short")
    finally:
        os.close(file)


def _decode(clip: CachedClip, wanted: np.ndarray, top: int, bottom: int) -> np.ndarray:
    """Decode in the child. Raises `DataError` if the clip is not what it was when it was prepared."""
    try:
        if clip.content and (state := file_state(clip.path)) not in (clip.state, _verified.get(clip.path)):
            if content_hash(clip.path) != clip.content:
                raise _change_error(clip, "has other content than when the run started")
            _verified[clip.path] = state
    except OSError as error:
        raise _change_error(clip, f"can no longer be read ({error.strerror})") from error
    frames = []
    for _, frame_HWC in ClipReader(clip.path, clip.short_side, frame_rate=clip.frame_rate,
                                   wanted=wanted.tolist(), stamps=clip.stamps):
        if frame_HWC.shape[:2] != (clip.height, clip.width):
            raise _change_error(clip, "gives frames of another size than when the run started")
        frames.append(frame_HWC[top:bottom])
    if len(frames) != len(wanted):
        raise _change_error(clip, "gives fewer frames than when the run started")
    return np.stack(frames)


_verified: dict[Path, str] = {}
"""States of touched files in which the clips were found to have their old content."""


def _change_error(clip: CachedClip, what: str) -> DataError:
    return DataError(what, where=str(clip.path),
                     fix="was it moved or replaced meanwhile? bring it back, or start again to read it anew")


_lock = threading.Lock()
_own: tuple[float, Child] | None = None  # this process's child, started when first needed, and its `timeout_s`
_warned = mmap.mmap(-1, 1)
"""One byte that this process shares with those forked from it: 1 once missing frames were warned of."""


def _forget_parents_child() -> None:
    """Drop the child and the lock in a process just forked, a loader process for instance: they are its parent's."""
    global _own, _lock
    _own, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_parents_child)
