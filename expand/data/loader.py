"""Batches of sampled clips, from the frame cache through torch's DataLoader.

Everything random about a training sample follows from (seed, epoch, its clip's index), the order of an epoch from
(seed, epoch): the same batches with any number of workers and after any interruption.

What is cut from the stored frames is resized, flipped and normalised here, clip by clip, or, for a GPU, on the device
for a whole batch together (docs/decisions/011-feeding.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from expand.config.schema import DataConfig
from expand.data.cache import CachedClip, read_frames
from expand.data.feed import CPU, Feed, Memory, Plan, pictures_in
from expand.data.prepared import PreparedData
from expand.data.sampling import clip_frames, random_start_s, span_s, view_starts_s
from expand.data.transforms import Box, crop_boxes, random_box, resize
from expand.errors import DataError
from expand.space.geometry import evaluation_crop

ORDER_STREAM, SAMPLE_STREAM = 1, 2
"""First words of the random streams, which keep them apart."""
DRAWS = 5
"""Random numbers of a sample, always as many, so that no option moves another's: time, scale, top, left, flip."""


class Batches:
    """An iterable of batches with a length; iterating twice gives the same batches."""

    def __init__(self, feed: Feed, plan: Plan) -> None:
        self._feed, self._plan = feed, plan

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self._feed.run(self._plan)


class TrainBatches:
    """The epochs of a training on `data.train`, one at a time, through loader processes that live as long as this.

    A sample is a clip at a random time, short side drawn in [jitter_min, jitter_max] x crop, random crop and flip.
    `share` of a batch's length says which of its rows are given, for one of several processes; all by default.
    `on_device`: whether cuts are resized, flipped and normalised on `device`, by default where that is a GPU; x is then
    there already. (That path is tested with the CPU as the device; it has not been run on a GPU yet.) A context
    manager, which closes itself.
    """

    def __init__(self, data: PreparedData, *, frames: int, stride: int, resolution: int, batch_size: int, seed: int,
                 config: DataConfig, workers: int = 0, share: Callable[[int], range] | None = None,
                 device: torch.device = CPU, on_device: bool | None = None) -> None:
        self._clips, self._batch_size, self._seed, self._share = data.train, batch_size, seed, share
        on_device = device.type != "cpu" if on_device is None else on_device
        samples = _TrainClips(data.train, frames, stride, _pictures(frames, resolution, on_device), seed, config)
        self._feed = Feed(samples, workers, config, resolution, device, on_device)

    def epoch(self, number: int, start_batch: int = 0) -> Batches:
        """Epoch `number` in batches (x_BCTHW float32, y_B int64), H = W = `resolution`; x is channels-last in memory.

        The last batch may be smaller, but a single clip is left out (batch norm has nothing to average over). The first
        `start_batch` batches are skipped without reading. Raises `DataError` while iterating where a clip is gone or a
        loader process dies.
        """
        order = np.random.default_rng([ORDER_STREAM, self._seed, number]).permutation(len(self._clips)).tolist()
        batches = [order[first:first + self._batch_size] for first in range(0, len(order), self._batch_size)]
        if len(batches) > 1 and self._batch_size > 1 and len(batches[-1]) == 1:
            batches.pop()
        if self._share:
            batches = [[batch[row] for row in self._share(len(batch))] for batch in batches]
        return Batches(self._feed, [(number, batch) for batch in batches[start_batch:]])

    def close(self) -> None:
        """Ends the loader processes; `epoch` starts them again."""
        self._feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def eval_loader(clips: Sequence[CachedClip], *, frames: int, stride: int, resolution: int, views: int,
                batch_size: int, config: DataConfig, workers: int = 0, crops: int = 1, device: torch.device = CPU,
                on_device: bool | None = None) -> Batches:
    """Every clip at `views` times uniform over its length, in batches (x_BCTHW float32, y_B int64, index_B int64).

    H = W = `evaluation_crop(resolution)`: squares as large as the frame's short side, resized; the centre one, or with
    `crops` 3 those of `crop_boxes`. `index` is the clip's in `clips`; its times follow one another, the crops of a time
    too. A batch has `batch_size` rows or, where the crops of a time would be torn apart, the next smaller number.
    `device` and `on_device` as in `TrainBatches`; labels and indices stay on the CPU. Raises `DataError` while
    iterating where a clip is gone or a loader process dies.
    """
    samples, times, side = range(len(clips) * views), max(1, batch_size // crops), evaluation_crop(resolution)
    on_device = device.type != "cpu" if on_device is None else on_device
    views_of = _EvalClips(clips, frames, stride, _pictures(frames, side, on_device), views, crops)
    return Batches(Feed(views_of, workers, config, side, device, on_device, persistent=False),
                   [samples[first:first + times] for first in range(0, len(samples), times)])


class _Sample(NamedTuple):
    """What to cut: the frames `index_T` of a clip in each of `boxes`, mirrored or not."""

    clip: CachedClip
    index_T: np.ndarray
    boxes: Sequence[Box]
    flip: bool


Pictures = Callable[[Sequence[_Sample]], tuple[Tensor, ...]]


class _TrainClips(Dataset):
    """An item is a batch: (epoch, indices of clips)."""

    def __init__(self, clips: Sequence[CachedClip], frames: int, stride: int, pictures: Pictures, seed: int,
                 config: DataConfig) -> None:
        self.clips, self.frames, self.stride, self.pictures = clips, frames, stride, pictures
        self.seed, self.config = seed, config
        self._draws: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def __getitems__(self, batch: tuple[int, Sequence[int]]) -> tuple[tuple[Tensor, ...], Tensor] | DataError:
        epoch, indices = batch
        draws_ND = self._draws_of(epoch)
        samples = [self._sample(self.clips[index], *draws_ND[index].tolist()) for index in indices]
        try:
            return self.pictures(samples), _labels(samples)
        except DataError as error:
            return error

    def _draws_of(self, epoch: int) -> np.ndarray:
        """Clips x DRAWS in [0, 1), drawn at once: a generator for each sample costs a tenth of the sample. A clip's row
        is the same however many clips follow."""
        if self._draws is None or self._draws[0] != epoch:
            rng = np.random.default_rng([SAMPLE_STREAM, self.seed, epoch])
            self._draws = epoch, rng.random((len(self.clips), DRAWS))
        return self._draws[1]

    def _sample(self, clip: CachedClip, when: float, scale: float, top: float, left: float, flip: float) -> _Sample:
        config = self.config
        start_s = random_start_s(clip.length_s, span_s(self.frames, self.stride), when)
        jitter = config.jitter_min + scale * (config.jitter_max - config.jitter_min)
        return _Sample(clip, clip_frames(clip.times_s, start_s, self.frames, self.stride),
                       (random_box(clip.height, clip.width, jitter, top, left),), config.flip and flip < 0.5)


class _EvalClips(Dataset):
    """A sample is a time of a clip: one row for each crop, cut from frames that are read once."""

    def __init__(self, clips: Sequence[CachedClip], frames: int, stride: int, pictures: Pictures, views: int,
                 crops: int) -> None:
        self.clips, self.frames, self.stride, self.pictures = clips, frames, stride, pictures
        self.views, self.crops = views, crops

    def __len__(self) -> int:
        return len(self.clips) * self.views

    def __getitems__(self, numbers: Sequence[int]) -> tuple[tuple[Tensor, ...], Tensor, Tensor] | DataError:
        samples = [self._sample(*divmod(number, self.views)) for number in numbers]
        try:
            pictures = self.pictures(samples)
        except DataError as error:
            return error
        index_B = [number // self.views for number in numbers for _ in range(self.crops)]
        return pictures, _labels(samples), torch.tensor(index_B)

    def _sample(self, index: int, view: int) -> _Sample:
        clip = self.clips[index]
        start_s = view_starts_s(clip.length_s, span_s(self.frames, self.stride), self.views)[view]
        return _Sample(clip, clip_frames(clip.times_s, start_s, self.frames, self.stride),
                       crop_boxes(clip.height, clip.width, self.crops), False)


def _pictures(frames: int, side: int, on_device: bool) -> Pictures:
    return partial(_cut, Memory(), frames) if on_device else partial(_resized, Memory(), frames, side)


def _resized(memory: Memory, frames: int, side: int, samples: Sequence[_Sample]) -> tuple[Tensor, ...]:
    """The pictures as the network sees them, but for normalising: (uint8 B x T x side x side x 3,)."""
    clips_BTHWC = pictures_in(memory, (sum(len(sample.boxes) for sample in samples), frames, side, side, 3))
    rows = iter(clips_BTHWC)
    for sample in samples:
        for cut_THWC in _cuts(sample):
            small_THWC = resize(cut_THWC, side)
            next(rows).copy_(small_THWC.flip(2) if sample.flip else small_THWC)
    return (clips_BTHWC,)


def _cut(memory: Memory, frames: int, samples: Sequence[_Sample]) -> tuple[Tensor, ...]:
    """The pictures as they are stored, for `resample`: uint8 B x T x S x S x 3 with a rim that does not count, side_B,
    flip_B."""
    side_B = [box.side for sample in samples for box in sample.boxes]
    size = max(side_B, default=1)
    cuts_BTSSC = pictures_in(memory, (len(side_B), frames, size, size, 3))
    rows = iter(cuts_BTSSC)
    for sample in samples:
        for cut_THWC in _cuts(sample):
            side = cut_THWC.shape[1]
            next(rows)[:, :side, :side].copy_(cut_THWC)
    flip_B = [sample.flip for sample in samples for _ in sample.boxes]
    return cuts_BTSSC, torch.tensor(side_B, dtype=torch.int64), torch.tensor(flip_B, dtype=torch.bool)


def _cuts(sample: _Sample) -> Iterator[Tensor]:
    """The clip in each box: T x side x side x 3. Rows outside all of them are not read."""
    boxes = sample.boxes
    top, bottom = min(box.top for box in boxes), max(box.top + box.side for box in boxes)
    frames_THWC = torch.from_numpy(read_frames(sample.clip, sample.index_T, top, bottom))
    for box in boxes:
        first = box.top - top
        yield frames_THWC[:, first:first + box.side, box.left:box.left + box.side]


def _labels(samples: Sequence[_Sample]) -> Tensor:
    """Also of no samples: a process may have no share of a small batch."""
    return torch.tensor([sample.clip.label for sample in samples for _ in sample.boxes], dtype=torch.int64)
