"""What a check has measured so far, on disk, so that one that was interrupted goes on where it stopped.

A text file with a line a clip, each written in one piece. A line that is torn or foreign is passed over; a clip that
was changed since, or whose line is lost, is measured again.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np

from expand.data.frames.content import file_state
from expand.data.frames.unreadable import UnreadableClip
from expand.rundir.files import cannot_write
from expand.version import __version__


class Unfinished:
    """The file `path` of a check of clips of `dtype`; nothing is taken from one of other versions or `settings`.

    Raises `RunError` where it cannot be written.
    """

    def __init__(self, path: Path, dtype: np.dtype, settings: Any) -> None:
        self.path = path
        self._head = json.dumps([__version__, av.__version__, str(dtype), settings])
        try:
            if self._first_line() != self._head:
                path.write_text(self._head + "\n", encoding="utf-8")
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed at the end of the check
            self._file.write(b"\n")  # a torn last line must not spoil the next one
        except OSError as error:
            raise cannot_write(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()
        if error is None:
            self.path.unlink(missing_ok=True)

    def _first_line(self) -> str | None:
        with suppress(OSError, UnicodeDecodeError), open(self.path, encoding="utf-8") as file:
            return file.readline().rstrip("\n")
        return None

    def add(self, clip: Path, row: tuple) -> None:
        """Remember what was measured of a clip."""
        with suppress(OSError, UnreadableClip):  # a full disk costs the memory of it, no more
            self._file.write(json.dumps([str(clip), file_state(clip), row], default=_plain).encode() + b"\n")

    def recall(self, places: dict[str, int], table: np.ndarray) -> np.ndarray:
        """Fill in the rows of `table` that are known of the clips at `places`; which they are (a mask)."""
        known = np.zeros(len(table), dtype=bool)
        with open(self.path, "rb") as lines:
            next(lines)
            for line in lines:
                with suppress(ValueError, TypeError, OverflowError, RecursionError, OSError, UnreadableClip):
                    clip, state, row = json.loads(line)
                    place = places.get(clip)
                    if place is not None and file_state(Path(clip)) == state:
                        table[place] = np.array(tuple(row), table.dtype)  # in one piece, or not at all
                        known[place] = True
        return known


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python's."""
    return value.item()
