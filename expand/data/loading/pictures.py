"""The pictures of a batch: frames are read, cut to squares, resized and mirrored, in uint8 throughout.

With small clips it is not the pixels that cost time but every call. So cuts of equal size are resized together, and
computations are done once for a whole batch (docs/decisions/011-feeding.md).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from expand.data.frames.frame_access import CachedClip, read_into
from expand.data.loading.transforms import Boxes, jitter_colors, resize

TOGETHER_BYTES = 1 << 17
"""Largest size of the frames that are read and resized together, and of twice the result, bytes. glibc keeps blocks of
this size; larger ones go back to the system, and their page faults cost more time than is gained."""
CHANNELS = 3


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples of K cuts: the frames `index_NT[n]` of `clips[n]`, in its squares of `boxes`, mirrored where `flip_N`.

    `color_N3`: factors of `jitter_colors`; None: colours stay as they are.
    """

    clips: Sequence[CachedClip]
    index_NT: np.ndarray
    boxes: Boxes
    flip_N: np.ndarray
    color_N3: np.ndarray | None = None

    @property
    def labels(self) -> Tensor:
        """The label of each cut, int64; the cuts of a sample follow one another."""
        cuts = self.boxes.top_NK.shape[1]
        return torch.tensor([clip.label for clip in self.clips for _ in range(cuts)], dtype=torch.int64)


Cutter = Callable[[Samples], tuple[Tensor, ...]]
"""`cut_and_resize` or `cut_and_pad`."""


class Memory:
    """Memory for batches, used again once no reference to a tensor is left.

    A fresh page from the system costs more time than writing to it (six times, for batches of some ten megabytes).
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor."""
        size = math.prod(shape) * dtype.itemsize
        if not size:
            return torch.empty(tuple(shape), dtype=dtype)
        whole = self._free.pop() if self._free else None
        if whole is None or len(whole) < size:
            whole = torch.empty(size, dtype=torch.uint8).numpy()  # torch's own memory is aligned
        lent = whole[:size]  # referenced by the tensor as long as its memory is in use, also by views and autograd
        weakref.finalize(lent, self._free.append, whole).atexit = False
        return torch.from_numpy(lent).view(dtype).view(tuple(shape))


def pictures_in(memory: Memory, shape: Sequence[int]) -> Tensor:
    """Return an uninitialised uint8 tensor in `memory`.

    In a loader process it is in memory shared with the parent (as torch's own collation does), which saves a copy.
    """
    if get_worker_info() is None:
        return memory.tensor(shape, torch.uint8)
    shared = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(tuple(shape))


@dataclass(frozen=True)
class Buffers:
    """Memory for batches, and for the frames that are being cut: separate, as they differ in size."""

    batches: Memory = field(default_factory=Memory)
    frames: Memory = field(default_factory=Memory)


def cut_and_resize(buffers: Buffers, side: int, samples: Samples) -> tuple[Tensor, ...]:
    """Return the pictures as the network sees them before normalising: (uint8 B x T x side x side x 3,), a row a cut.

    Raises `DataError` if frames can neither be read nor decoded.
    """
    count, cuts = samples.boxes.top_NK.shape
    frames = samples.index_NT.shape[1]
    clips_BTHWC = pictures_in(buffers.batches, (count * cuts, frames, side, side, CHANNELS))
    flips = samples.flip_N.tolist()
    to_mirror: list[int] = []
    for rows, cut, cut_GTHWC in _cut(buffers, samples, frames * side * side * CHANNELS):
        small_GTHWC = resize(cut_GTHWC.flatten(0, 1), side).view(len(rows), frames, side, side, CHANNELS)
        if len(rows) == 1:
            small_THWC = small_GTHWC[0]
            clips_BTHWC[rows[0] * cuts + cut].copy_(small_THWC.flip(2) if flips[rows[0]] else small_THWC)
        else:
            clips_BTHWC.index_copy_(0, torch.tensor([row * cuts + cut for row in rows]), small_GTHWC)
            to_mirror += [row * cuts + cut for row in rows if flips[row]]
    together = max(1, TOGETHER_BYTES // max(1, clips_BTHWC[:1].numel()))
    for rows_G in torch.tensor(to_mirror, dtype=torch.int64).split(together) if to_mirror else ():
        clips_BTHWC.index_copy_(0, rows_G, clips_BTHWC.index_select(0, rows_G).flip(3))
    return (clips_BTHWC,)


def cut_and_pad(buffers: Buffers, samples: Samples) -> tuple[Tensor, ...]:
    """Return the cuts in the size of the stored frames, for `resample`: (uint8 B x T x S x S x 3, side_B, flip_B).

    Of S rows and columns, those beyond the cut's side hold no data. Raises `DataError` if frames can neither be read
    nor decoded.
    """
    count, cuts = samples.boxes.top_NK.shape
    size = int(samples.boxes.side_N.max(initial=1))
    cuts_BTSSC = pictures_in(buffers.batches, (count * cuts, samples.index_NT.shape[1], size, size, CHANNELS))
    for rows, cut, cut_GTHWC in _cut(buffers, samples):
        side = cut_GTHWC.shape[2]
        for row, cut_THWC in zip(rows, cut_GTHWC.unbind(), strict=True):
            cuts_BTSSC[row * cuts + cut, :, :side, :side].copy_(cut_THWC)
    return (cuts_BTSSC, torch.from_numpy(samples.boxes.side_N.repeat(cuts)),
            torch.from_numpy(samples.flip_N.repeat(cuts)))


class _Window(NamedTuple):
    """The part of a frame that is read for its squares: `height` rows of `width` pixels.

    Each square has `side` pixels and begins one of `firsts` pixels (in reading order) after the place where the row of
    the topmost square and the column of the leftmost one meet.
    """

    width: int
    height: int
    side: int
    firsts: tuple[int, ...]

    @property
    def room(self) -> int:
        """Bytes for a frame: its rows and one more. Each frame is placed so that its first square begins at the second
        row, whatever its column: squares of several clips then lie at equal distances, as in one tensor."""
        return (self.height + 1) * self.width * CHANNELS

    def squares(self, room_GTB: Tensor, first: int) -> Tensor:
        """Return the squares in `room_GTB` that begin at `first`: G x T x side x side x 3, without a copy."""
        row, (clips, frames, room) = self.width * CHANNELS, room_GTB.shape
        return room_GTB.as_strided((clips, frames, self.side, self.side, CHANNELS),
                                   (frames * room, room, row, CHANNELS, 1), row + first * CHANNELS)


def _cut(buffers: Buffers, samples: Samples, result_bytes: int = 0) -> Iterator[tuple[list[int], int, Tensor]]:
    """Yield all cuts in groups of equal size: (rows of the samples, number of the cut, G x T x side x side x 3).

    `result_bytes` is the size that one cut will have in the end.
    """
    boxes, frames = samples.boxes, samples.index_NT.shape[1]
    top_N, left_N = boxes.top_NK.min(1), boxes.left_NK.min(1)
    width_N = np.array([clip.width for clip in samples.clips], dtype=np.int64)
    below_NK, right_NK = boxes.top_NK - top_N[:, None], boxes.left_NK - left_N[:, None]
    window_of = zip(width_N.tolist(), (below_NK.max(1) + boxes.side_N).tolist(), boxes.side_N.tolist(),
                    map(tuple, (below_NK * width_N[:, None] + right_NK).tolist()), strict=True)
    rows_of: dict[_Window, list[int]] = {}
    for row, window in enumerate(map(_Window._make, window_of)):
        rows_of.setdefault(window, []).append(row)
    room_B = buffers.frames.tensor((max([TOGETHER_BYTES, *(frames * window.room for window in rows_of)]),), torch.uint8)
    for window, rows in rows_of.items():
        read_bytes = window.height * window.width * CHANNELS
        together = max(1, TOGETHER_BYTES // max(frames * window.room, 2 * result_bytes))
        for some in (rows[start:start + together] for start in range(0, len(rows), together)):
            room_GTB = room_B[:len(some) * frames * window.room].view(len(some), frames, window.room)
            for row, room_TB in zip(some, room_GTB.numpy(), strict=True):
                start = (window.width - int(left_N[row])) * CHANNELS
                read_into(room_TB[:, start:start + read_bytes], samples.clips[row], samples.index_NT[row],
                          int(top_N[row]))
            for cut, first in enumerate(window.firsts):
                cut_GTHWC = window.squares(room_GTB, first)
                if samples.color_N3 is not None:
                    cut_GTHWC = torch.stack([jitter_colors(cut_THWC, factors) for cut_THWC, factors
                                             in zip(cut_GTHWC, samples.color_N3[some].tolist(), strict=True)])
                yield some, cut, cut_GTHWC
