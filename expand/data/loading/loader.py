"""The batches of a training and of an evaluation: which clips and frames they have, and the processes that make them.

All random numbers of a training sample follow from (seed, epoch, its clip's index), and the order of an epoch from
(seed, epoch). So batches are the same with any number of loader processes and after any interruption.

The cuts are resized, flipped and normalised by the CPU or, for a GPU, on the device (docs/decisions/011-feeding.md).
"""

from __future__ import annotations

import signal
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from expand.config.schema import DataConfig
from expand.data.frames.frame_access import CachedClip
from expand.data.loading import updates_per_epoch
from expand.data.loading.pictures import Buffers, Cutter, Memory, Samples, cut_and_pad, cut_and_resize
from expand.data.loading.prepared import PreparedData
from expand.data.loading.sampling import clip_frames_of, random_start_s, view_start_s
from expand.data.loading.transforms import Augmentation, Boxes, crop_boxes, normalise, random_boxes, resample
from expand.errors import DataError
from expand.machine import keep_freed_memory
from expand.processes import CONTEXT
from expand.space.factors import span_s
from expand.space.geometry import evaluation_crop

CPU = torch.device("cpu")
AGAIN = "start again (or resume); what was done is kept"
Plan = Sequence[Any]
"""Items of a `BatchDataset` in order; an item describes a batch, or several that are made at once."""
ORDER_STREAM = 1
"""First word of the seed of an epoch's order; those of `transforms.py` are others."""
TOGETHER_PIXELS = 1 << 17
"""Largest number of pixels in batches that are made at once: 1.5 MB as the network takes them."""


class BatchDataset(Dataset):
    """A data set whose items are whole batches (pictures, *rest), or a `DataError` where one cannot be made."""

    def __getitems__(self, item: Any) -> Any:
        """Return the batch that `item` of a plan describes."""
        raise NotImplementedError


class Batches:
    """An iterable of batches with a length; iterating twice gives the same batches."""

    def __init__(self, loader: BatchLoader, plan: Plan, rows: Sequence[Sequence[int]]) -> None:
        self._loader, self._plan, self._rows = loader, plan, rows

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self._loader.run(self._plan, self._rows)


class TrainBatches:
    """The epochs of a training on `data.train`, one at a time, through loader processes that live as long as this.

    A sample is a clip at a random time, with a short side drawn in [jitter_min, jitter_max] x crop, a random crop, a
    random flip and, if `color_jitter` is on, random changes of its colours. `share(rows)` returns which rows of a batch
    this process takes, one of several; all by default. `on_device`: cuts are resized, flipped and normalised on
    `device`, so that x is there already; the default is to do so on a GPU. (That path is tested with the CPU as the
    device; it has not been measured on a GPU yet.) As a context manager it closes itself.
    """

    def __init__(self, data: PreparedData, *, frames: int, stride: int, resolution: int, batch_size: int, seed: int,
                 config: DataConfig, workers: int = 0, share: Callable[[int], range] | None = None,
                 device: torch.device = CPU, on_device: bool | None = None) -> None:
        self._clips, self._batch_size, self._seed, self._share = data.train, batch_size, seed, share
        on_device = device.type != "cpu" if on_device is None else on_device
        samples = _TrainClips(data.train, frames, stride, _cutter(resolution, on_device), seed, config)
        self._loader = BatchLoader(samples, workers, config, resolution, device, on_device)
        self._together = 1 if workers or on_device else _batches_at_once(batch_size * frames * resolution ** 2)

    def epoch(self, number: int, start_batch: int = 0) -> Batches:
        """Return epoch `number` in batches (x_BCTHW float32, y_B int64), H = W = `resolution`, channels-last in memory.

        The last batch may be smaller, but is not a single clip (`updates_per_epoch`). The first `start_batch` batches
        are skipped without reading. Raises `DataError` while iterating if a clip is gone or a loader process dies.
        """
        order = np.random.default_rng([ORDER_STREAM, self._seed, number]).permutation(len(self._clips)).tolist()
        updates = updates_per_epoch(len(order), self._batch_size)
        batches = [order[first:first + self._batch_size] for first in range(0, len(order), self._batch_size)][:updates]
        if self._share:
            batches = [[batch[row] for row in self._share(len(batch))] for batch in batches]
        joint = [batches[first:first + self._together] for first in range(start_batch, len(batches), self._together)]
        return Batches(self._loader, [(number, list(chain.from_iterable(some))) for some in joint],
                       [[len(batch) for batch in some] for some in joint])

    def close(self) -> None:
        """End the loader processes; `epoch` starts them again."""
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def eval_loader(clips: Sequence[CachedClip], *, frames: int, stride: int, resolution: int, views: int,
                batch_size: int, config: DataConfig, workers: int = 0, crops: int = 1, device: torch.device = CPU,
                on_device: bool | None = None) -> Batches:
    """Return every clip at `views` uniform times, in batches (x_BCTHW float32, y_B int64, index_B int64).

    H = W = `evaluation_crop(resolution)`: squares as large as the frame's short side, resized; the centre one, or with
    `crops` 3 those of `crop_boxes`. `index` is the clip's in `clips`; its times follow one another, the crops of a time
    too. A batch has `batch_size` rows or, where the crops of a time would be torn apart, the next smaller number.
    `device` and `on_device` as in `TrainBatches`; labels and indices stay on the CPU. Raises `DataError` while
    iterating where a clip is gone or a loader process dies.
    """
    samples, times, side = range(len(clips) * views), max(1, batch_size // crops), evaluation_crop(resolution)
    on_device = device.type != "cpu" if on_device is None else on_device
    views_of = _EvalClips(clips, frames, stride, _cutter(side, on_device), views, crops)
    joint = times * (1 if workers or on_device else _batches_at_once(times * crops * frames * side ** 2))
    plan = [samples[first:first + joint] for first in range(0, len(samples), joint)]
    rows = [[crops * len(some[first:first + times]) for first in range(0, len(some), times)] for some in plan]
    return Batches(BatchLoader(views_of, workers, config, side, device, on_device, persistent=False), plan, rows)


def _batches_at_once(pixels: int) -> int:
    """Return how many batches of so many pixels are made at once if the training's own process makes them.

    Of small clips these are several: more of them then have cuts of equal size.
    """
    return max(1, TOGETHER_PIXELS // pixels)


class _TrainClips(BatchDataset):
    """The samples of a training; an item is a batch: (epoch, indices of clips)."""

    def __init__(self, clips: Sequence[CachedClip], frames: int, stride: int, cutter: Cutter, seed: int,
                 config: DataConfig) -> None:
        self.clips, self.frames, self.stride, self.cutter = clips, frames, stride, cutter
        self.augmentation = Augmentation(len(clips), seed, config)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitems__(self, item: tuple[int, Sequence[int]]) -> tuple[tuple[Tensor, ...], Tensor] | DataError:
        epoch, indices = item
        clips, changes = [self.clips[index] for index in indices], self.augmentation.draw(epoch, indices)
        start_N = random_start_s(_lengths_s(clips), span_s(self.frames, self.stride), changes.when_N)
        height_N, width_N = np.array([(clip.height, clip.width) for clip in clips], dtype=np.int64).reshape(-1, 2).T
        boxes = random_boxes(height_N, width_N, changes.jitter_N, changes.top_N, changes.left_N)
        frame_NT = clip_frames_of([clip.times_s for clip in clips], start_N, self.frames, self.stride)
        samples = Samples(clips, frame_NT, boxes, changes.flip_N, changes.color_N3)
        try:
            return self.cutter(samples), samples.labels
        except DataError as error:
            return error


class _EvalClips(BatchDataset):
    """The samples of an evaluation; each is a time of a clip, with a row for each crop, cut from frames read once."""

    def __init__(self, clips: Sequence[CachedClip], frames: int, stride: int, cutter: Cutter, views: int,
                 crops: int) -> None:
        self.clips, self.frames, self.stride, self.cutter = clips, frames, stride, cutter
        self.views, self.crops = views, crops

    def __len__(self) -> int:
        return len(self.clips) * self.views

    def __getitems__(self, item: Sequence[int]) -> tuple[tuple[Tensor, ...], Tensor, Tensor] | DataError:
        index_N, view_N = np.divmod(np.array(item), self.views)
        clips = [self.clips[index] for index in index_N.tolist()]
        start_N = view_start_s(_lengths_s(clips), span_s(self.frames, self.stride), view_N, self.views)
        frame_NT = clip_frames_of([clip.times_s for clip in clips], start_N, self.frames, self.stride)
        boxes = Boxes.of([crop_boxes(clip.height, clip.width, self.crops) for clip in clips])
        samples = Samples(clips, frame_NT, boxes, np.zeros(len(clips), dtype=bool))
        try:
            return self.cutter(samples), samples.labels, torch.from_numpy(index_N.repeat(self.crops))
        except DataError as error:
            return error


def _lengths_s(clips: Sequence[CachedClip]) -> np.ndarray:
    return np.array([clip.length_s for clip in clips], dtype=np.float64)


def _cutter(side: int, on_device: bool) -> Cutter:
    return partial(cut_and_pad, Buffers()) if on_device else partial(cut_and_resize, Buffers(), side)


class BatchLoader:
    """Make the batches of plans on `clips`, one plan after the other: (x_BCTHW, *rest) for every batch.

    Pictures are uint8 clips to normalise or, `on_device`, cuts to `resample` there. With `persistent`, the loader
    processes stay for the next plan; a plan ends with the start of the next.
    """

    def __init__(self, clips: BatchDataset, workers: int, config: DataConfig, side: int, device: torch.device,
                 on_device: bool, persistent: bool = True) -> None:
        self._clips, self._workers, self._persistent = clips, workers, persistent and workers > 0
        self._config, self._side, self._device, self._on_device = config, side, device, on_device
        self._plan, self._memory = list[Any](), Memory()
        self._loader: DataLoader | None = None
        self._running: Callable[[], Generator | None] = lambda: None
        self._stream: torch.cuda.Stream | None = None

    def run(self, plan: Plan, rows: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, ...]]:
        """Return an iterator of the batches of `plan`; `rows` has the number of rows of each batch in each item.

        Raises `DataError` while iterating if a clip cannot be read or a process dies.
        """
        self._stop()
        running = self._batches(plan, rows)
        self._running = weakref.ref(running)
        return running

    def _stop(self) -> None:
        """End the current plan, whose iterator may still be referenced, by a traceback for instance."""
        if (running := self._running()) is not None:
            running.close()

    def _batches(self, plan: Plan, rows: Sequence[Sequence[int]]) -> Generator[tuple[Tensor, ...], None, None]:
        items: Iterable[Any]
        if not self._workers and self._device.type == "cpu":  # where a DataLoader would only add its own steps
            items = map(self._clips.__getitems__, plan)
        else:
            if self._loader is None:
                # its own generator: a DataLoader draws a seed at every start, which must not move the caller's stream
                self._loader = DataLoader(self._clips, batch_sampler=self._plan, num_workers=self._workers,
                                          collate_fn=_keep_batch, generator=torch.Generator(),
                                          worker_init_fn=_start_worker, persistent_workers=self._persistent,
                                          # Python 3.14 has another context
                                          multiprocessing_context=CONTEXT if self._workers else None,
                                          pin_memory=self._device.type == "cuda")
            self._plan[:] = plan
            items = self._loader
        try:
            for item, counts in zip(items, rows, strict=True):
                if isinstance(item, DataError):  # raised here: on its way from a worker it would lose its fields
                    raise item
                pictures, *rest = item
                x_BCTHW = self._finish(pictures)
                yield from zip(*(part.split(counts) for part in (x_BCTHW, *rest)), strict=True)
        except RuntimeError as error:
            if (death := dead_worker(error)) is None:
                raise
            raise death from error

    def close(self) -> None:
        """End the current plan and the loader processes."""
        self._stop()
        self._loader = None

    def _finish(self, pictures: tuple[Tensor, ...]) -> Tensor:
        """Turn pictures into a network's input; on a GPU on a stream of its own, while the step before still runs."""
        mean, std = self._config.mean, self._config.std
        if not self._on_device:
            clips_BTHWC, = pictures
            return normalise(clips_BTHWC, mean, std, out=self._memory.tensor(clips_BTHWC.shape, torch.float32))
        cuts_BTSSC, side_B, flip_B = pictures
        if self._device.type != "cuda":
            return resample(cuts_BTSSC, side_B, flip_B, self._side, mean, std)
        with torch.cuda.device(self._device):
            ours = self._stream = self._stream or torch.cuda.Stream()
            with torch.cuda.stream(ours):
                cuts_BTSSC, side_B, flip_B = [part.to(self._device, non_blocking=True) for part in pictures]
                x_BCTHW = resample(cuts_BTSSC, side_B, flip_B, self._side, mean, std)
            theirs = torch.cuda.current_stream()
            theirs.wait_stream(ours)
            x_BCTHW.record_stream(theirs)
        return x_BCTHW


def dead_worker(error: BaseException | None) -> DataError | None:
    """Return a clear error if `error` is torch's message about a loader process that died or failed; None for others.

    Torch may raise it at any point of the main thread.
    """
    text = str(error).strip()
    if not (isinstance(error, RuntimeError) and "DataLoader worker" in text):
        return None
    if "shared memory" in text:
        return DataError("the shared memory in which processes hand over clips is too small", where="/dev/shm",
                         fix="make it larger (docker run --shm-size=8g), or batch_size smaller; what was done is kept")
    if text.startswith("Caught"):  # its own error, with its trace
        return DataError(f"a process that reads clips failed: {text.splitlines()[-1]}", fix=AGAIN)
    return DataError("a process that reads clips died: no memory left, or a clip that crashes the decoder", fix=AGAIN)


def _start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    keep_freed_memory()


def _keep_batch(batch: Any) -> Any:
    return batch
