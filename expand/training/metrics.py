"""metrics.csv: a row an epoch, for people and plots. A training goes on from the rows in its checkpoint."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from expand.rundir.files import write_atomic

EVERY_S = 5.0
"""Between two writes: an epoch may take less than what it takes to flush a file."""


class Metrics:
    """The file `path`, written whole, at most every `EVERY_S` seconds and at the last row."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock, self._written = path, clock, float("-inf")

    def write(self, rows: Sequence[dict[str, float]], *, is_last: bool) -> None:
        """Writes `rows`, all with the keys of the first, where it is time or the last one is among them."""
        if not is_last and self._clock() - self._written < EVERY_S:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self._path, text.getvalue(), above=False)
        self._written = self._clock()
