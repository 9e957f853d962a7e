"""Batches of sampled clips, from the frame cache through torch's DataLoader.

Everything random about a training sample follows from (seed, epoch, its clip's index), the order of an epoch from
(seed, epoch): the same batches with any number of workers and after any interruption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from expand.config.schema import DataConfig
from expand.data.cache import CachedClip, read_frames
from expand.data.prepared import PreparedData
from expand.data.sampling import clip_frames, random_start_s, span_s, view_starts_s
from expand.data.transforms import Box, centre_box, normalise, random_box, resize
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
                 epoch: int, config: DataConfig, start_batch: int = 0, workers: int = 0) -> Batches:
    """One epoch of `data.train` in batches (x_BCTHW float32, y_B int64), H = W = `resolution`.

    A sample is a clip at a random time, short side drawn in [jitter_min, jitter_max] x crop, random crop and flip. The
    last batch may be smaller, but a single clip is left out (batch norm has nothing to average over). The first
    `start_batch` batches are skipped without reading. x is channels-last in memory.

    Raises `DataError` while iterating where a clip's frames are gone.
    """
    order = np.random.default_rng([ORDER_STREAM, seed, epoch]).permutation(len(data.train)).tolist()
    batches = [order[first:first + batch_size] for first in range(0, len(order), batch_size)]
    if len(batches) > 1 and batch_size > 1 and len(batches[-1]) == 1:
        batches.pop()
    clips = _TrainClips(data.train, frames, stride, resolution, seed, epoch, config)
    return Batches(clips, batches[start_batch:], workers, config)


def eval_loader(clips: Sequence[CachedClip], *, frames: int, stride: int, resolution: int, views: int,
                batch_size: int, config: DataConfig, workers: int = 0) -> Batches:
    """Every clip at `views` times uniform over its length, in batches (x_BCTHW float32, y_B int64, index_B int64).

    H = W = `evaluation_crop(resolution)`: the centre square of the frame, resized. `index` is the clip's in
    `clips`; its views follow one another. Raises `DataError` while iterating where a clip's frames are gone.
    """
    samples = range(len(clips) * views)
    batches = [samples[first:first + batch_size] for first in range(0, len(samples), batch_size)]
    return Batches(_EvalClips(clips, frames, stride, resolution, views), batches, workers, config)


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
        return clips_BTHWC, torch.tensor([self.clips[index].label for index in indices])

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
    def __init__(self, clips: Sequence[CachedClip], frames: int, stride: int, resolution: int, views: int) -> None:
        self.clips, self.frames, self.stride, self.views = clips, frames, stride, views
        self.side = evaluation_crop(resolution)

    def __len__(self) -> int:
        return len(self.clips) * self.views

    def __getitems__(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | DataError:
        clips_BTHWC = torch.empty((len(samples), self.frames, self.side, self.side, 3), dtype=torch.uint8)
        index_B = [sample // self.views for sample in samples]
        try:
            for row_THWC, sample in zip(clips_BTHWC, samples):
                self._fill(row_THWC, *divmod(sample, self.views))
        except DataError as error:
            return error
        return clips_BTHWC, torch.tensor([self.clips[index].label for index in index_B]), torch.tensor(index_B)

    def _fill(self, row_THWC: torch.Tensor, index: int, view: int) -> None:
        clip = self.clips[index]
        start_s = view_starts_s(clip.length_s, span_s(self.frames, self.stride), self.views)[view]
        index_T = clip_frames(clip.times_s, start_s, self.frames, self.stride)
        row_THWC.copy_(_cut(clip, index_T, centre_box(clip.height, clip.width), self.side))


def _cut(clip: CachedClip, index_T: np.ndarray, box: Box, side: int) -> torch.Tensor:
    frames_THWC = read_frames(clip, index_T, box.top, box.top + box.side)
    return resize(torch.from_numpy(frames_THWC)[:, :, box.left:box.left + box.side], side)


def _as_is(batch):
    return batch
