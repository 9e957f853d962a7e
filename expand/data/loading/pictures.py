"""The pictures of a batch: frames read, cut to squares, resized, mirrored; uint8 all along.

What costs time with small clips is not their pixels but every call, so cuts of equal size are resized together, and
what can be reckoned for a batch is reckoned for a batch (docs/decisions/011-feeding.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from expand.data.frames.frame_access import CachedClip, read_into
from expand.data.loading.prefetch import Memory, pictures_in
from expand.data.loading.transforms import Boxes, resize

TOGETHER_BYTES = 1 << 17
"""Of frames that are read and then resized together, and twice what becomes of them: so little that torch takes memory
which glibc keeps for it. Larger pieces go back to the system, and faulting them in anew costs more than is gained."""
CHANNELS = 3


@dataclass(frozen=True, eq=False)
class Samples:
    """What to cut, N samples of K cuts: the frames `index_NT[n]` of `clips[n]`, in its squares of `boxes`, mirrored
    where `flip_N`."""

    clips: Sequence[CachedClip]
    index_NT: np.ndarray
    boxes: Boxes
    flip_N: np.ndarray

    @property
    def labels(self) -> Tensor:
        """One a cut, int64; the cuts of a sample follow one another."""
        cuts = self.boxes.top_NK.shape[1]
        return torch.tensor([clip.label for clip in self.clips for _ in range(cuts)], dtype=torch.int64)


Pictures = Callable[[Samples], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Desk:
    """Memory for batches, and for the frames that are being cut: each its own, for they differ in size."""

    batches: Memory = field(default_factory=Memory)
    frames: Memory = field(default_factory=Memory)


def resized(desk: Desk, side: int, samples: Samples) -> tuple[Tensor, ...]:
    """The pictures as the network sees them, but for normalising: (uint8 B x T x side x side x 3,), a row a cut.

    Raises `DataError` where frames cannot be had.
    """
    count, cuts = samples.boxes.top_NK.shape
    frames = samples.index_NT.shape[1]
    clips_BTHWC = pictures_in(desk.batches, (count * cuts, frames, side, side, CHANNELS))
    flips = samples.flip_N.tolist()
    to_mirror: list[int] = []
    for rows, cut, cut_GTHWC in _cut(desk, samples, frames * side * side * CHANNELS):
        small_GTHWC = resize(cut_GTHWC.flatten(0, 1), side).view(len(rows), frames, side, side, CHANNELS)
        if len(rows) == 1:
            small_THWC = small_GTHWC[0]
            clips_BTHWC[rows[0] * cuts + cut].copy_(small_THWC.flip(2) if flips[rows[0]] else small_THWC)
        else:
            clips_BTHWC.index_copy_(0, torch.tensor([row * cuts + cut for row in rows]), small_GTHWC)
            to_mirror += [row * cuts + cut for row in rows if flips[row]]
    _mirror(clips_BTHWC, to_mirror)
    return (clips_BTHWC,)


def _mirror(clips_BTHWC: Tensor, rows: list[int]) -> None:
    """Mirrors small clips in place, as many at once as are cut together."""
    together = max(1, TOGETHER_BYTES // max(1, clips_BTHWC[:1].numel()))
    for rows_G in torch.tensor(rows, dtype=torch.int64).split(together) if rows else ():
        clips_BTHWC.index_copy_(0, rows_G, clips_BTHWC.index_select(0, rows_G).flip(3))


def padded(desk: Desk, samples: Samples) -> tuple[Tensor, ...]:
    """The pictures as they are stored, for `resample`: uint8 B x T x S x S x 3 with a rim that does not count, side_B,
    flip_B. Raises `DataError` where frames cannot be had."""
    count, cuts = samples.boxes.top_NK.shape
    size = int(samples.boxes.side_N.max(initial=1))
    cuts_BTSSC = pictures_in(desk.batches, (count * cuts, samples.index_NT.shape[1], size, size, CHANNELS))
    for rows, cut, cut_GTHWC in _cut(desk, samples):
        side = cut_GTHWC.shape[2]
        for row, cut_THWC in zip(rows, cut_GTHWC.unbind()):
            cuts_BTSSC[row * cuts + cut, :, :side, :side].copy_(cut_THWC)
    return (cuts_BTSSC, torch.from_numpy(samples.boxes.side_N.repeat(cuts)),
            torch.from_numpy(samples.flip_N.repeat(cuts)))


class _Window(NamedTuple):
    """The rows of frames of `width` pixels that squares of `side` pixels lie in: `height` of them, with a square
    `firsts` pixels (in reading order) after the place where the top of all and the left of all meet."""

    width: int
    height: int
    side: int
    firsts: tuple[int, ...]

    @property
    def room(self) -> int:
        """Bytes for a frame: its rows and one more. Laid out so that the first square begins with the second row,
        whatever its columns, squares of several clips lie at equal distances, as those of one tensor."""
        return (self.height + 1) * self.width * CHANNELS

    def squares(self, room_GTB: Tensor, first: int) -> Tensor:
        """G x T x side x side x 3 of `room`, without a copy."""
        row, (clips, frames, room) = self.width * CHANNELS, room_GTB.shape
        return room_GTB.as_strided((clips, frames, self.side, self.side, CHANNELS),
                                   (frames * room, room, row, CHANNELS, 1), row + first * CHANNELS)


def _cut(desk: Desk, samples: Samples, result_bytes: int = 0) -> Iterator[tuple[list[int], int, Tensor]]:
    """Every cut, together with those like it: (their samples, which cut of these, G x T x side x side x 3).
    `result_bytes`: what one cut becomes."""
    frames = samples.index_NT.shape[1]
    top_N, left_N = samples.boxes.top_NK.min(1).tolist(), samples.boxes.left_NK.min(1).tolist()
    alike = _alike(samples)
    room_B = desk.frames.tensor((max([TOGETHER_BYTES, *(frames * window.room for window in alike)]),), torch.uint8)
    for window, rows in alike.items():
        read_bytes = window.height * window.width * CHANNELS
        together = max(1, TOGETHER_BYTES // max(frames * window.room, 2 * result_bytes))
        for some in (rows[start:start + together] for start in range(0, len(rows), together)):
            room_GTB = room_B[:len(some) * frames * window.room].view(len(some), frames, window.room)
            for row, room_TB in zip(some, room_GTB.numpy()):
                start = (window.width - left_N[row]) * CHANNELS
                read_into(room_TB[:, start:start + read_bytes], samples.clips[row], samples.index_NT[row], top_N[row])
            for cut, first in enumerate(window.firsts):
                yield some, cut, window.squares(room_GTB, first)


def _alike(samples: Samples) -> dict[_Window, list[int]]:
    """The samples (ascending) that have the same window."""
    boxes = samples.boxes
    width_N = np.array([clip.width for clip in samples.clips], dtype=np.int64)
    below_NK = boxes.top_NK - boxes.top_NK.min(1, keepdims=True)
    right_NK = boxes.left_NK - boxes.left_NK.min(1, keepdims=True)
    height_N = below_NK.max(1) + boxes.side_N
    first_NK = below_NK * width_N[:, None] + right_NK
    alike: dict[_Window, list[int]] = {}
    for row, (*size, firsts) in enumerate(zip(width_N.tolist(), height_N.tolist(), boxes.side_N.tolist(),
                                              first_NK.tolist())):
        alike.setdefault(_Window(*size, tuple(firsts)), []).append(row)
    return alike
