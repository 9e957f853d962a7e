"""Batches of sampled clips, from the frame cache through torch's DataLoader.

Everything random about a training sample follows from (seed, epoch, its clip's index), the order of an epoch from
(seed, epoch): the same batches with any number of workers and after any interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from expand.config.schema import DataConfig
from expand.data.cache import CachedClip, read_frames
from expand.data.prepared import PreparedData
from expand.data.sampling import clip_frames, random_start_s, span_s, view_starts_s
from expand.data.transforms import Box, crop_boxes, normalise, random_box, resize
from expand.errors import DataError
from expand.space.geometry import evaluation_crop

ORDER_STREAM, SAMPLE_STREAM = 1, 2
"""First words of the random streams, which keep them apart."""


class Batches:
    """An iterable of batches with a length; iterating twice gives the same batches."""

    def __init__(self, clips: Dataset, batches: Sequence[Sequence[int]], workers: int, config: DataConfig) -> None:
        self._config = config
        # its own generator: a DataLoader draws a seed at every start, which must not move the caller's random stream
        self._loader = DataLoader(clips, batch_sampler=batches, num_workers=workers, collate_fn=_as_is,
                                  generator=torch.Generator())

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        for batch in self._loader:
            if isinstance(batch, DataError):  # raised here: on its way from a worker it would lose its shape
                raise batch
            clips_BTHWC, *rest = batch
            yield normalise(clips_BTHWC, self._config.mean, self._config.std), *rest


def train_loader(data: PreparedData, *, frames: int, stride: int, resolution: int, batch_size: int, seed: int,
                 epoch: int, config: DataConfig, start_batch: int = 0, workers: int = 0,
                 share: Callable[[int], range] | None = None) -> Batches:
    """One epoch of `data.train` in batches (x_BCTHW float32, y_B int64), H = W = `resolution`.

    A sample is a clip at a random time, short side drawn in [jitter_min, jitter_max] x crop, random crop and flip. The
    last batch may be smaller, but a single clip is left out (batch norm has nothing to average over). The first
    `start_batch` batches are skipped without reading. `share` of a batch's length says which of its rows are given, for
    one of several processes; all by default. x is channels-last in memory.

    Raises `DataError` while iterating where a clip's frames are gone.
    """
    order = np.random.default_rng([ORDER_STREAM, seed, epoch]).permutation(len(data.train)).tolist()
    batches = [order[first:first + batch_size] for first in range(0, len(order), batch_size)]
    if len(batches) > 1 and batch_size > 1 and len(batches[-1]) == 1:
        batches.pop()
    if share:
        batches = [[batch[row] for row in share(len(batch))] for batch in batches]
    clips = _TrainClips(data.train, frames, stride, resolution, seed, epoch, config)
    return Batches(clips, batches[start_batch:], workers, config)


def eval_loader(clips: Sequence[CachedClip], *, frames: int, stride: int, resolution: int, views: int,
                batch_size: int, config: DataConfig, workers: int = 0, crops: int = 1) -> Batches:
    """Every clip at `views` times uniform over its length, in batches (x_BCTHW float32, y_B int64, index_B int64).

    H = W = `evaluation_crop(resolution)`: squares as large as the frame's short side, resized; the centre one, or with
    `crops` 3 those of `crop_boxes`. `index` is the clip's in `clips`; its times follow one another, the crops of a time
    too. A batch has `batch_size` rows or, where the crops of a time would be torn apart, the next smaller number.
    Raises `DataError` while iterating where a clip's frames are gone.
    """
    samples, times = range(len(clips) * views), max(1, batch_size // crops)
    batches = [samples[first:first + times] for first in range(0, len(samples), times)]
    return Batches(_EvalClips(clips, frames, stride, resolution, views, crops), batches, workers, config)


class _TrainClips(Dataset):
    def __init__(self, clips: Sequence[CachedClip], frames: int, stride: int, resolution: int, seed: int, epoch: int,
                 config: DataConfig) -> None:
        self.clips, self.frames, self.stride, self.resolution = clips, frames, stride, resolution
        self.seed, self.epoch, self.config = seed, epoch, config

    def __len__(self) -> int:
        return len(self.clips)

    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor] | DataError:
        side = self.resolution
        clips_BTHWC = torch.empty((len(indices), self.frames, side, side, 3), dtype=torch.uint8)
        try:
            for row_THWC, index in zip(clips_BTHWC, indices):
                self._fill(row_THWC, index)
        except DataError as error:
            return error
        return clips_BTHWC, _labels(self.clips, indices)

    def _fill(self, row_THWC: torch.Tensor, index: int) -> None:
        clip, config = self.clips[index], self.config
        rng = np.random.default_rng([SAMPLE_STREAM, self.seed, self.epoch, index])
        when, scale, top, left, flip = rng.random(5).tolist()  # always five, so that no option moves another's draw
        start_s = random_start_s(clip.length_s, span_s(self.frames, self.stride), when)
        jitter = config.jitter_min + scale * (config.jitter_max - config.jitter_min)
        box = random_box(clip.height, clip.width, jitter, top, left)
        cut_THWC = _cut(clip, clip_frames(clip.times_s, start_s, self.frames, self.stride), box, self.resolution)
        row_THWC.copy_(cut_THWC.flip(2) if config.flip and flip < 0.5 else cut_THWC)


class _EvalClips(Dataset):
    """A sample is a time of a clip: one row for each crop, cut from frames that are read once."""

    def __init__(self, clips: Sequence[CachedClip], frames: int, stride: int, resolution: int, views: int,
                 crops: int) -> None:
        self.clips, self.frames, self.stride, self.views, self.crops = clips, frames, stride, views, crops
        self.side = evaluation_crop(resolution)

    def __len__(self) -> int:
        return len(self.clips) * self.views

    def __getitems__(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | DataError:
        rows, side = len(samples) * self.crops, self.side
        clips_BTHWC = torch.empty((rows, self.frames, side, side, 3), dtype=torch.uint8)
        index_B = [sample // self.views for sample in samples for _ in range(self.crops)]
        try:
            for rows_CTHWC, sample in zip(clips_BTHWC.split(self.crops), samples):
                self._fill(rows_CTHWC, *divmod(sample, self.views))
        except DataError as error:
            return error
        return clips_BTHWC, _labels(self.clips, index_B), torch.tensor(index_B)

    def _fill(self, rows_CTHWC: torch.Tensor, index: int, view: int) -> None:
        clip = self.clips[index]
        start_s = view_starts_s(clip.length_s, span_s(self.frames, self.stride), self.views)[view]
        index_T = clip_frames(clip.times_s, start_s, self.frames, self.stride)
        boxes = crop_boxes(clip.height, clip.width, self.crops)
        for row_THWC, cut_THWC in zip(rows_CTHWC, _cuts(clip, index_T, boxes, self.side)):
            row_THWC.copy_(cut_THWC)


def _cut(clip: CachedClip, index_T: np.ndarray, box: Box, side: int) -> torch.Tensor:
    return next(_cuts(clip, index_T, [box], side))


def _cuts(clip: CachedClip, index_T: np.ndarray, boxes: Sequence[Box], side: int) -> Iterator[torch.Tensor]:
    """The clip in each of `boxes`, resized: T x side x side x 3. Rows outside all of them are not read."""
    top, bottom = min(box.top for box in boxes), max(box.top + box.side for box in boxes)
    frames_THWC = torch.from_numpy(read_frames(clip, index_T, top, bottom))
    for box in boxes:
        first = box.top - top
        yield resize(frames_THWC[:, first:first + box.side, box.left:box.left + box.side], side)


def _labels(clips: Sequence[CachedClip], indices: Sequence[int]) -> torch.Tensor:
    """Also of no clips: a process may have no share of a small batch."""
    return torch.tensor([clips[index].label for index in indices], dtype=torch.int64)


def _as_is(batch):
    return batch
