"""The journal: the only truth about a run, one JSON object a line, never rewritten.

A line counts as soon as its JSON is whole. The line end comes last, so of an append that was cut short there is either
a torn line (no event: dropped by the next append) or a whole one without its line end (an event: the next append adds
the line end). No prefix of a JSON object is itself one, so the two cannot be confused.

A journal may be untrusted: reading checks every event and its place (`expand.expansion.events`).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from expand.errors import RunError
from expand.expansion.events import Event, read_event
from expand.expansion.state import SearchState
from expand.rundir.files import cannot_write, from_json, sync_dir, to_json
from expand.untrusted_input import Wrong, file_type, number, read_bounded, record, show_value, size_text, text

LARGEST = 32_000_000
"""Bytes of a journal; a candidate takes about 1,500 of them."""
LONGEST = 8_000_000
"""Bytes of a line; the first one, which names the classes, is the longest."""
CHANGED = ("Take the journal back from a copy. If this is its last line, delete the line: the run does that piece of "
           "work again.")
OTHER = ("The journal was written by another version, or changed by hand; use the version that wrote it, or take the "
         "journal back from a copy.")
WITHHELD = "All that was written before is whole, and `x3d-expand resume` goes on from there."


class Journal:
    """Appends events to the journal file `path`. Only the owner of the run's lock may hold one.

    `clock` gives the time of an event, unix seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self.clock = Path(path), clock

    def append(self, event: Event) -> Event:
        """Add one event, with the time, and return it as `read_events` will give it; it is on the disk when this
        returns.

        Repairs a torn last line first. Raises `RunError` where the disk refuses, and for an event that could not be
        read again; what is in the journal then stays.
        """
        line = to_json(replace(event, time=self.clock()).as_dict()).encode("utf-8")
        content = from_json(line)
        try:
            if len(line) > LONGEST:
                raise Wrong(f"it is longer than {size_text(LONGEST)}")
            written = read_event(content)
        except Wrong as error:
            raise RunError(f"the event {show_value(content['event'])} was not written, since it cannot be: {error}",
                           where=str(self.path), fix=WITHHELD) from error
        is_new = not self.path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            handle = os.open(self.path, flags, 0o666)
            with open(handle, "r+b", buffering=0) as file:
                if not stat.S_ISREG(mode := os.fstat(handle).st_mode):
                    raise OSError(errno.EINVAL, f"it is {file_type(mode)}, not a file")
                _repair_end(file.fileno())
                _write_all(file.fileno(), line + b"\n")
                os.fsync(file.fileno())
            if is_new:
                sync_dir(self.path.parent)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        return written


AnEvent = TypeVar("AnEvent", bound=Event)


def last_of(events: Sequence[Event], kind: type[AnEvent]) -> AnEvent | None:
    """Return the last event of one kind, if there is one."""
    return next((event for event in reversed(events) if isinstance(event, kind)), None)


def read_events(path: Path) -> list[Event]:
    """Return the events of the journal `path`, oldest first; none where there is no file. Never changes the file, so
    that another process may read while the run goes on.

    A torn last line is no event. Raises `RunError` with the line's number for any other line that is not an event, and
    for an event that no search can have written there.
    """
    try:
        lines = read_bounded(path, LARGEST).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror or error}", where=str(path),
                       fix="Check the path and its permissions, or take the journal back from a copy.") from error
    for place, line in enumerate(lines, start=1):
        if len(line) > LONGEST:
            raise RunError(f"is longer than {size_text(LONGEST)}, which no event is", where=f"{path}, line {place}",
                           fix=CHANGED)
    events, state = [], SearchState()
    for place, line in enumerate(lines, start=1):
        content = _parse_event(line)
        if content is not None:
            try:
                event = read_event(content)
                event.check_order(state)
            except Wrong as error:
                raise RunError(f"the event {show_value(content['event'])} cannot be: {error}",
                               where=f"{path}, line {place}", fix=OTHER) from error
            state = event.apply(state)
            events.append(event)
        elif line.strip() and place < len(lines):
            raise RunError("is not an event of the journal; the file was changed by something other than the run",
                           where=f"{path}, line {place}", fix=CHANGED)
    return events


_check_head = record({"event": text(LONGEST), "time": number(-1e12, 1e12)})
"""The fields of every event. The time is unix seconds, within some 30,000 years either way."""


def _parse_event(line: bytes) -> dict[str, Any] | None:
    """Return the fields of the event in `line`, or None where it holds no whole one."""
    try:
        value = from_json(line)
        _check_head(value, "")
    except ValueError:
        return None
    return value


def _repair_end(handle: int) -> None:
    """End a whole last line, or cut a torn one off. Reads the file only where its last byte is not a line end."""
    size = os.fstat(handle).st_size
    if size == 0 or os.pread(handle, 1, size - 1) == b"\n":
        return
    if size > LARGEST:
        raise OSError(errno.EFBIG, f"it is larger than {size_text(LARGEST)}")
    tail = os.pread(handle, size, 0).rpartition(b"\n")[2]
    if _parse_event(tail) is None:
        os.ftruncate(handle, size - len(tail))
    else:
        _write_all(handle, b"\n")


def _write_all(handle: int, data: bytes) -> None:
    """Write `data`, in one write as a rule; the system may take less (a nearly full disk)."""
    while data:
        data = data[os.write(handle, data):]
