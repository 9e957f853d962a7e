"""Frames of a prepared clip: from the frame cache, else decoded from the clip itself, the very same ones.

The cache belongs to nobody: another set may push frames out of it, and people delete it. A run does not end for that.
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
from expand.processes.child import Child, ChildDied

GREY = round(255 * 0.45)
"""The level that the recipe's normalisation makes 0."""
TRIES = 2
"""Processes that a clip may cost at one access."""


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
    """Whether its frames were stored mirrored, and are turned back."""

    @property
    def length_s(self) -> float:
        """Time from the first to the last frame: what a clip can be sampled from, seconds."""
        return float(self.times_s[-1])


def read_frames(clip: CachedClip, index_T: np.ndarray, top: int, bottom: int) -> np.ndarray:
    """Rows `top` to `bottom` of the frames `index_T` (ascending, repeats allowed): T x (bottom - top) x W x 3 uint8.

    As `read_into` reads them, and with its errors.
    """
    frames_THWC = np.empty((len(index_T), bottom - top, clip.width, 3), dtype=np.uint8)
    read_into(frames_THWC.reshape(len(index_T), -1), clip, index_T, top)
    return frames_THWC


def read_into(rows_TB: np.ndarray, clip: CachedClip, index_T: np.ndarray, top: int) -> None:
    """Reads frames `index_T` (ascending, repeats allowed) into T x (rows x W x 3) bytes: as many rows from `top` on as
    have room; the bytes of a frame lie side by side.

    Where the stored frames are gone or cut, this is said once and they are decoded from the clip, bit for bit the
    same. Decoding is done in a process of its own; where that dies twice over a clip (a crash, a hang, no memory), a
    warning names the clip and this access gives grey frames: that costs one clip and never the run, and in an
    evaluation it counts against the network rather than for it.

    Raises `DataError` where the frames are neither stored nor, because the clip is gone or another, to be decoded.
    """
    if clip.store is not None:
        try:
            return _stored(rows_TB, clip, index_T, top)
        except OSError as error:
            _say_once(f"the decoded frames of {clip.path} are gone or cut ({error.strerror}: {clip.store}); they are "
                      "decoded anew at each access, and so will others be that are missing. They are kept again once "
                      "the run is resumed; if they were pushed out, a larger data.cache_gb keeps them")
    wanted, inverse_T = np.unique(index_T, return_inverse=True)
    try:
        frames_UHWC = _decoded(clip, wanted, top, top + rows_TB.shape[1] // (clip.width * 3))
        rows_TB[:] = frames_UHWC.reshape(len(wanted), -1)[inverse_T]
    except ChildDied as death:
        warnings.warn(f"{clip.path}: {death.what}, {TRIES} times; grey frames take its place at this access",
                      stacklevel=2)
        rows_TB[:] = GREY


def _stored(rows_TB: np.ndarray, clip: CachedClip, index_T: np.ndarray, top: int) -> None:
    """With `pread`, which takes no open file or mapping a clip, and fails where a mapping of a file that is cut
    meanwhile would kill the process (docs/decisions/010)."""
    row_bytes, wanted = clip.width * 3, rows_TB.shape[1]
    file = os.open(clip.store, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for row_B, index in zip(rows_TB, index_T.tolist()):
            if os.preadv(file, [row_B], (index * clip.height + top) * row_bytes) != wanted:
                raise OSError(0, "the file is too short")
    finally:
        os.close(file)


def _decoded(clip: CachedClip, wanted: np.ndarray, top: int, bottom: int) -> np.ndarray:
    """The frames `wanted` (ascending, each once), decoded by this process's child. Raises `ChildDied` after `TRIES`."""
    with _lock:
        for left in reversed(range(TRIES)):
            try:
                return _child(clip.timeout_s).call(_decode, clip, wanted, top, bottom)
            except ChildDied:
                if not left:
                    raise
    raise AssertionError("unreachable")


def _decode(clip: CachedClip, wanted: np.ndarray, top: int, bottom: int) -> np.ndarray:
    """In the child. Raises `DataError` where the clip is not what it was when it was prepared."""
    _check_unchanged(clip)
    frames = []
    for _, frame_HWC in ClipReader(clip.path, clip.short_side, frame_rate=clip.frame_rate, wanted=wanted,
                                   stamps=clip.stamps):
        if frame_HWC.shape[:2] != (clip.height, clip.width):
            raise _changed(clip, "gives frames of another size than when the run started")
        frames.append(frame_HWC[top:bottom])
    if len(frames) != len(wanted):
        raise _changed(clip, "gives fewer frames than when the run started")
    return np.stack(frames)


_verified: dict[Path, str] = {}
"""States in which clips were found to have their content, though their files were touched."""


def _check_unchanged(clip: CachedClip) -> None:
    if not clip.content:
        return
    try:
        state = file_state(clip.path)
        if state not in (clip.state, _verified.get(clip.path)):
            if content_hash(clip.path) != clip.content:
                raise _changed(clip, "has other content than when the run started")
            _verified[clip.path] = state
    except OSError as error:
        raise _changed(clip, f"can no longer be read ({error.strerror})") from error


def _changed(clip: CachedClip, what: str) -> DataError:
    return DataError(what, where=str(clip.path),
                     fix="was it moved or replaced meanwhile? bring it back, or start again to read it anew")


_lock = threading.Lock()
_own: tuple[float, Child] | None = None
_said = mmap.mmap(-1, 1)
"""One byte that this process and those forked from it share: whether missing frames were told."""


def _child(timeout_s: float) -> Child:
    """The process that decodes for this one, started when it is first needed."""
    global _own
    if _own is None or _own[0] != timeout_s:
        if _own:
            _own[1].close()
        _own = (timeout_s, Child(timeout_s=timeout_s))
    return _own[1]


def _forget_parents() -> None:
    """In a process just forked, a loader's worker for instance: the child is its parent's, and so is a held lock."""
    global _own, _lock
    _own, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_parents)


def _say_once(text: str) -> None:
    if not _said[0]:
        _said[0] = 1
        warnings.warn(text, stacklevel=3)
