"""Clips out of a file of any length, with few frames in memory. Nothing in here calls torch: it runs in a forked
process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from expand.data.frames.decode import ClipReader
from expand.data.loading.transforms import centre_box
from expand.errors import DataError


def frame_times(path: Path) -> tuple[np.ndarray, np.ndarray | None, int, int]:
    """Of all frames: their times, seconds from the first, their stamps, how many packets are damaged, and how often the
    clock jumps.

    Raises `UnreadableClip` where no frame can be decoded.
    """
    reader = ClipReader(path, short_side=1, pictures=False)
    times_s = np.array([time_s for time_s, _ in reader])
    return times_s, reader.stamps, reader.damaged, reader.jumps


def centre_clips(path: Path, short_side: int, index_NT: np.ndarray,
                 stamps: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """For each row of `index_NT`, frame indices, the centre squares of these frames: T x side x side x 3 uint8.

    The rows, and the indices within a row, never descend, so that in one pass only the frames from the present row's
    first to its last are held. The side is at most `short_side`. With the `stamps` of all frames, reading starts near
    the first one. Raises `UnreadableClip`, and `DataError` where fewer frames come than there were.
    """
    wanted, rows, held = np.unique(index_NT), iter(index_NT), {}
    row_T = next(rows)
    reader = ClipReader(path, short_side, wanted.tolist(), stamps=stamps)
    for index, (_, frame_HWC) in zip(wanted.tolist(), reader, strict=False):
        box = centre_box(*frame_HWC.shape[:2])
        held[index] = frame_HWC[box.top:box.top + box.side, box.left:box.left + box.side].copy()
        while row_T is not None and row_T[-1] <= index:
            yield np.stack([held[i] for i in row_T.tolist()])
            row_T = next(rows, None)
        held = {i: frame for i, frame in held.items() if row_T is not None and i >= row_T[0]}
    if row_T is not None:
        raise DataError("gave fewer frames when it was read again; was it replaced meanwhile?")
