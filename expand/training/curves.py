"""A training's curves, a row an epoch: metrics.csv, and TensorBoard events.

A training resumes from the rows in its checkpoint; nothing depends on these files.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from expand.rundir.files import write_atomic

logger = logging.getLogger(__name__)

EVERY_S = 5.0
"""Seconds between two writes of metrics.csv: an epoch may take less time than flushing a file."""
TAGS = {"loss": "loss/train", "accuracy": "accuracy/train", "val_loss": "loss/val", "val_accuracy": "accuracy/val",
        "lr": "learning_rate"}
"""Columns of metrics.csv, and the names of their curves in TensorBoard."""


class Metrics:
    """The file metrics.csv at `path`: written whole, at most every `EVERY_S` seconds and at the last row."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock, self._written = path, clock, float("-inf")

    def write(self, rows: Sequence[dict[str, float]], *, is_last: bool) -> None:
        """Write `rows`, all with the keys of the first, if it is time or `is_last`."""
        if not is_last and self._clock() - self._written < EVERY_S:
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
