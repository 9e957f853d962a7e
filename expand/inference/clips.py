"""Clips out of a file of any length, with few frames in memory. No torch in here: it runs in a forked process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from expand.data.decode import ClipReader
from expand.data.transforms import centre_box
from expand.errors import DataError


class _Clock(ClipReader):
    """Reads the times alone; no picture is converted."""

    def _picture(self, frame: av.VideoFrame) -> None:
        return None


def frame_times(path: Path) -> Iterator[tuple[np.ndarray, int]]:
    """Once: the times of all frames, seconds from the first, and the number of damaged packets.

    Raises `UnreadableClip` where no frame can be decoded.
    """
    clock = _Clock(path, short_side=1)
    yield np.array([time_s for time_s, _ in clock]), clock.damaged


def centre_clips(path: Path, short_side: int, index_NT: np.ndarray) -> Iterator[np.ndarray]:
    """For each row of `index_NT`, frame indices, the centre squares of these frames: T x side x side x 3 uint8.

    The rows, and the indices within a row, never descend, so that in one pass only the frames from the present row's
    first to its last are held. The side is at most `short_side`. Raises `UnreadableClip`, and `DataError` where fewer
    frames come than there were.
    """
    wanted, rows, held = np.unique(index_NT), iter(index_NT), {}
    row_T = next(rows)
    for index, (_, frame_HWC) in zip(wanted.tolist(), ClipReader(path, short_side, wanted), strict=False):
        box = centre_box(*frame_HWC.shape[:2])
        held[index] = frame_HWC[box.top:box.top + box.side, box.left:box.left + box.side].copy()
        while row_T is not None and row_T[-1] <= index:
            yield np.stack([held[i] for i in row_T.tolist()])
            row_T = next(rows, None)
        held = {i: frame for i, frame in held.items() if row_T is not None and i >= row_T[0]}
    if row_T is not None:
        raise DataError("gave fewer frames when it was read again; was it replaced meanwhile?")
