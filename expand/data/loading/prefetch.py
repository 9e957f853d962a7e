"""The way of batches to the device: loader processes that outlive an epoch, memory that is used again, and the last
steps of a picture."""

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
from expand.processes import CONTEXT

CPU = torch.device("cpu")
AGAIN = "start again (or resume); what was done is kept"
Plan = Sequence[Any]
"""Items of a `BatchDataset` in order; an item describes a batch, or several that are made at once."""


class BatchDataset(Dataset):
    """A data set whose items are whole batches (pictures, *rest), or a `DataError` where one cannot be made."""

    def __getitems__(self, item: Any) -> Any:
        """Return the batch that `item` of a plan describes."""
        raise NotImplementedError


class BatchLoader:
    """Make the batches of plans on `clips`, one plan after the other: (x_BCTHW, *rest) for every batch.

    Pictures are uint8 clips to normalise or, `on_device`, cuts to `resample` there. With `persistent`, the loader
    processes stay for the next plan; a plan ends with the start of the next.
    """

    def __init__(self, clips: BatchDataset, workers: int, config: DataConfig, side: int, device: torch.device,
                 on_device: bool, persistent: bool = True) -> None:
        self._clips, self._workers, self._persistent = clips, workers, persistent and workers > 0
        self._config, self._side, self._device, self._on_device = config, side, device, on_device
        self._next, self._memory = _Next(), Memory()
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
                self._loader = DataLoader(self._clips, batch_sampler=self._next, num_workers=self._workers,
                                          collate_fn=_keep_batch, generator=torch.Generator(),
                                          worker_init_fn=_start_worker, persistent_workers=self._persistent,
                                          # Python 3.14 has another context
                                          multiprocessing_context=CONTEXT if self._workers else None,
                                          pin_memory=self._device.type == "cuda")
            self._next.plan = plan
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


class _Next:
    """The sampler of a DataLoader that outlives many plans."""

    plan: Plan = ()

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.plan)


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
