"""A training's epochs as TensorBoard events."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

TAGS = {"loss": "loss/train", "accuracy": "accuracy/train", "val_loss": "loss/val", "val_accuracy": "accuracy/val",
        "lr": "learning_rate"}
"""Columns of metrics.csv, and the names of their curves."""


class Board:
    """Writes the curves into `folder`; a context manager. Without the package tensorboard it says so once to `log`, and
    metrics.csv has the same figures; where the disk refuses, it says so once too: nothing depends on them."""

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        self.folder, self.log = folder, log
        self._writer: Any = None
        self._is_missing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            with self._forgiving():
                self._writer.close()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer, self._is_missing = None, True
            self.log(f"no more TensorBoard events are written in {self.folder}: {error.strerror or error}; "
                     "metrics.csv has the same")

    def row(self, row: dict[str, float]) -> None:
        """Adds an epoch."""
        with self._forgiving():
            self._add(int(row["epoch"]), row)

    def _add(self, epoch: int, row: dict[str, float]) -> None:
        if self._writer is None and not self._is_missing:
            self._open(epoch)
        if self._writer is not None:
            for column, tag in TAGS.items():
                if math.isfinite(row.get(column, math.nan)):
                    self._writer.add_scalar(tag, row[column], epoch)
            self._writer.flush()

    def _open(self, epoch: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._is_missing = True
            self.log("no TensorBoard events are written: pip install 'x3d-expand[tensorboard]'; "
                     "metrics.csv has the same")
            return
        # an interrupted training goes on from its checkpoint: later events of before are void
        self._writer = SummaryWriter(str(self.folder), purge_step=epoch)
