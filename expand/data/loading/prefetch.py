"""Batches from torch's DataLoader to the device: loader processes that outlive an epoch, memory that is used again,
and the last steps of a picture."""

from __future__ import annotations

import math
import signal
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from expand.config.schema import DataConfig
from expand.data.loading.transforms import normalise, resample
from expand.errors import DataError
from expand.machine import keep_freed_memory
from expand.processes.child import CONTEXT

CPU = torch.device("cpu")
AGAIN = "start again (or resume); what was done is kept"
Plan = Sequence[Any]
"""The items of a dataset in the order in which they are to be given; an item is a batch, or several in one."""


class Feed:
    """Carries out plans on `clips`, one after the other: (x_BCTHW, *rest) for every batch (pictures, *rest).

    `clips` gives a `DataError` in place of an item where it cannot be had; it is raised here. Pictures are resized
    uint8 clips to normalise or, `on_device`, cuts to `resample` there. With `persistent`, the processes stay for the
    next plan; a plan ends with the start of the next.
    """

    def __init__(self, clips: Dataset, workers: int, config: DataConfig, side: int, device: torch.device,
                 on_device: bool, persistent: bool = True) -> None:
        self._clips, self._workers, self._persistent = clips, workers, persistent and workers > 0
        self._config, self._side, self._device, self._on_device = config, side, device, on_device
        self._next, self._memory = _Next(), Memory()
        self._loader: DataLoader | None = None
        self._running: Callable[[], Generator | None] = lambda: None
        self._stream: torch.cuda.Stream | None = None

    def run(self, plan: Plan, rows: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, ...]]:
        """The batches of `plan`: of every item one for each of its `rows`, which say how many. Raises `DataError` for
        a clip that cannot be had, and where a process dies."""
        self._stop()
        running = self._given(plan, rows)
        self._running = weakref.ref(running)
        return running

    def _stop(self) -> None:
        """Ends the plan at work, of which somebody may still hold the iterator, a traceback for instance."""
        if (running := self._running()) is not None:
            running.close()

    def _given(self, plan: Plan, rows: Sequence[Sequence[int]]) -> Generator[tuple[Tensor, ...], None, None]:
        try:
            for item, counts in zip(self._items(plan), rows):
                if isinstance(item, DataError):  # raised here: on its way from a worker it would lose its shape
                    raise item
                pictures, *rest = item
                yield from zip(*(part.split(counts) for part in (self._finished(pictures), *rest)))
        except RuntimeError as error:
            if (death := dead_worker(error)) is None:
                raise
            raise death from error

    def _items(self, plan: Plan) -> Iterable[Any]:
        """What the dataset gives for each item. Without processes and without memory to pin, a DataLoader would only
        add its own steps."""
        if not self._workers and self._device.type == "cpu":
            return map(self._clips.__getitems__, plan)
        if self._loader is None:
            self._loader = self._started()
        self._next.plan = plan
        return self._loader

    def close(self) -> None:
        """Ends the plan at work and the processes."""
        self._stop()
        self._loader = None

    def _started(self) -> DataLoader:
        # its own generator: a DataLoader draws a seed at every start, which must not move the caller's random stream
        return DataLoader(self._clips, batch_sampler=self._next, num_workers=self._workers, collate_fn=_as_is,
                          generator=torch.Generator(), worker_init_fn=_begin, persistent_workers=self._persistent,
                          multiprocessing_context=CONTEXT if self._workers else None,  # Python 3.14 has another
                          pin_memory=self._device.type == "cuda")

    def _finished(self, pictures: tuple[Tensor, ...]) -> Tensor:
        mean, std = self._config.mean, self._config.std
        if not self._on_device:
            clips_BTHWC, = pictures
            return normalise(clips_BTHWC, mean, std, out=self._memory.tensor(clips_BTHWC.shape, torch.float32))
        if self._device.type != "cuda":
            return resample(*pictures, self._side, mean, std)
        return self._beside(pictures)

    def _beside(self, pictures: tuple[Tensor, ...]) -> Tensor:
        """On a GPU: copied and resampled on a stream of their own while the step before is still at work."""
        with torch.cuda.device(self._device):
            ours = self._stream = self._stream or torch.cuda.Stream()
            with torch.cuda.stream(ours):
                there = [part.to(self._device, non_blocking=True) for part in pictures]
                x_BCTHW = resample(*there, self._side, self._config.mean, self._config.std)
            theirs = torch.cuda.current_stream()
            theirs.wait_stream(ours)
            x_BCTHW.record_stream(theirs)
        return x_BCTHW


class _Next:
    """The sampler of a DataLoader, which lives through many plans."""

    plan: Plan = ()

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.plan)


class Memory:
    """Memory for batches, taken back when nobody holds the tensor any more: a page that the system hands out anew costs
    more than what is then written into it (six times, for batches of some ten megabytes)."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor."""
        size = math.prod(shape) * dtype.itemsize
        if not size:
            return torch.empty(tuple(shape), dtype=dtype)
        whole = self._free.pop() if self._free else None
        if whole is None or len(whole) < size:
            whole = torch.empty(size, dtype=torch.uint8).numpy()  # torch's own memory is aligned
        lent = whole[:size]  # which the tensor holds for as long as its memory is in use, also by views and autograd
        weakref.finalize(lent, self._free.append, whole).atexit = False
        return torch.from_numpy(lent).view(dtype).view(tuple(shape))


def pictures_in(memory: Memory, shape: Sequence[int]) -> Tensor:
    """An uninitialised uint8 tensor in `memory`; in a loader process, in memory that it shares with its parent (as
    torch's own collation does), which saves a copy on the way there."""
    if get_worker_info() is None:
        return memory.tensor(shape, torch.uint8)
    memory = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(memory, 0, tuple(shape))


def dead_worker(error: BaseException | None) -> DataError | None:
    """A clear error where `error` is torch's word for a loader process that died or failed; None for any other. Torch
    may raise it wherever the main thread happens to be."""
    text = str(error).strip()
    if not (isinstance(error, RuntimeError) and "DataLoader worker" in text):
        return None
    if "shared memory" in text:
        return DataError("the shared memory in which processes hand over clips is too small", where="/dev/shm",
                         fix="make it larger (docker run --shm-size=8g), or batch_size smaller; what was done is kept")
    if text.startswith("Caught"):  # its own error, with its trace
        return DataError(f"a process that reads clips failed: {text.splitlines()[-1]}", fix=AGAIN)
    return DataError("a process that reads clips died: no memory left, or a clip that crashes the decoder", fix=AGAIN)


def _begin(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    keep_freed_memory()


def _as_is(batch: Any) -> Any:
    return batch
