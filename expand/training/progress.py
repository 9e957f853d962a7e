"""The progress of a training: its position, the time that it took by phase, and its curves (metrics.csv, TensorBoard).

A training resumes from the `Progress` in its checkpoint; nothing depends on the files of curves.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from expand.rundir.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

T = TypeVar("T")
OTHER = "other_s"
"""The phase of everything else: displays, the loop itself."""
STEP, CLIPS = "step_s", "clips_s"
PHASES = ("build_s", CLIPS, STEP, "norms_s", "evaluate_s", "disk_s", OTHER)
"""Building the network and reading a checkpoint, waiting for train clips, the steps themselves, precise batch norm,
measuring on val and test, writing checkpoints and metrics, the rest."""
METRICS_EVERY_S = 5.0
"""Seconds between two writes of metrics.csv: an epoch may take less time than flushing a file."""
TAGS = {"loss": "loss/train", "accuracy": "accuracy/train", "val_loss": "loss/val", "val_accuracy": "accuracy/val",
        "lr": "learning_rate"}
"""Columns of metrics.csv, and the names of their curves in TensorBoard."""


@dataclass
class Progress:
    """A training's progress: the next `epoch` and `batch`, running sums of the epoch, `rows` (the lines of metrics.csv,
    one an epoch), and `seconds` by phase (`Stopwatch`) over all starts."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float | Tensor = 0.0
    """On the device until `Training` looks at it; so is `correct`."""
    correct: int | Tensor = 0
    seen: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    clips: int = 0
    parts: int = 1
    """Micro-batches that a batch is split into: `RecipeConfig.accumulation`, or more if memory ran out."""

    @property
    def train_s(self) -> float:
        """Seconds of training: steps, and waiting for their clips."""
        return self.seconds.get(STEP, 0.0) + self.seconds.get(CLIPS, 0.0)


class Stopwatch:
    """A clock that adds the time since its making to `seconds`, by phase. Phases nest: the time of an inner one is not
    counted to the outer one, so that the sum is the wall time."""

    def __init__(self, seconds: dict[str, float], clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self._clock = seconds, clock
        self._phases = [OTHER]
        self._mark = clock()

    def update(self) -> None:
        """Bring `seconds` up to now."""
        now, phase = self._clock(), self._phases[-1]
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._mark
        self._mark = now

    def resume(self, seconds: dict[str, float]) -> None:
        """Add the time so far to `seconds`, those of earlier starts, and count there from now on."""
        self.update()
        for phase, value in self.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + value
        self.seconds = seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time to `name`."""
        self.update()
        self._phases.append(name)
        try:
            yield
        finally:
            self.update()
            self._phases.pop()

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`, and count the time of waiting for each to `name`."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


class Metrics:
    """The file metrics.csv at `path`: written whole, at most every `METRICS_EVERY_S` seconds and at the last row."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock, self._written = path, clock, float("-inf")

    def write(self, rows: Sequence[dict[str, float]], *, is_last: bool) -> None:
        """Write `rows`, all with the keys of the first, if it is time or `is_last`."""
        if not is_last and self._clock() - self._written < METRICS_EVERY_S:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self._path, text.getvalue(), above=False)
        self._written = self._clock()


class TensorBoard:
    """The TensorBoard events in `folder`; a context manager. If the package tensorboard is not installed, or the disk
    refuses, the log says so once, and no more is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None
        self._is_off = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            with self._off_on_error():
                self._writer.close()

    @contextmanager
    def _off_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer, self._is_off = None, True
            logger.warning(f"no more TensorBoard events are written in {self.folder}: {error.strerror or error}; "
                           "metrics.csv has the same")

    def row(self, row: dict[str, float]) -> None:
        """Add an epoch."""
        epoch = int(row["epoch"])
        with self._off_on_error():
            if self._writer is None and not self._is_off:
                self._open(epoch)
            if self._writer is not None:
                for column, tag in TAGS.items():
                    if math.isfinite(row.get(column, math.nan)):
                        self._writer.add_scalar(tag, row[column], epoch)
                self._writer.flush()

    def _open(self, epoch: int) -> None:
        """Begin to write at `epoch`. Later events, of a training that was interrupted, become void."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._is_off = True
            logger.warning("no TensorBoard events are written: pip install 'x3d-expand[tensorboard]'; "
                           "metrics.csv has the same")
            return
        self._writer = SummaryWriter(str(self.folder), purge_step=epoch)
