"""The times of a clip's frames, from time stamps that may be missing, out of order, or of a clock that jumps.

What a clock may claim is bounded by the frames that there are: recorders pause, days are joined into one file, counters
wrap around, and a few frames would otherwise stand for hours (docs/data.md, "What is read").
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import av

from expand.data.frames.orientation import SQUARE, UPRIGHT, Orientation

LONGEST_S = 10.0
"""Time between two frames that is always believed, seconds: a screen that stands still, a camera that waits."""
TIMES_USUAL = 4
"""A longer one is believed up to this many times the usual time between frames: time-lapse recordings."""
RAREST_S, DENSEST_S = 15.0, 1 / 2000
"""Bounds of what the usual time between frames can be, seconds; a clock beyond them counts in another unit."""
SLOWEST_FPS, FASTEST_FPS = 1 / RAREST_S, 500.0
"""Bounds of a rate that a header may claim; FFmpeg says 1000 or 90,000 where it does not know."""
DEFAULT_FPS = 30.0
BACKWARD_S = 1.0
"""Stamps that go back by less are out of order; by more, the clock was set back."""
RECENT, AHEAD = 32, 8
"""Frames that the usual time is taken from: the last, or at the beginning those to come."""


class Stamped(NamedTuple):
    """A decoded frame, when it is shown, and how."""

    stamp: int | None
    time_s: float | None
    frame: av.VideoFrame
    orientation: Orientation = UPRIGHT
    aspect: Fraction = SQUARE
    """Width by height of a pixel."""


class Clock:
    """Gives frames their times, seconds from the first one, never descending.

    A stamp's time counts as it is, relative to the first. Where stamps are missing or do not ascend, time goes on by
    the rate that the header says (`fps` gives it once there is a frame), if that can be. Where the clock jumps (further
    ahead than `longest_s` and than `TIMES_USUAL` the usual time between frames, or back by more than `BACKWARD_S`; or
    the usual time cannot be), it goes on by the usual time between frames, and later stamps count from there. `jumps`
    counts that, `jumped_s` is by how much in all, seconds.
    """

    def __init__(self, fps: Callable[[], float | None], longest_s: float = LONGEST_S) -> None:
        self.jumps, self.jumped_s = 0, 0.0
        self._fps, self._longest_s = fps, longest_s
        self._now_s: float | None = None
        self._zero_s: float | None = None  # of the stamps' clock, where the clip's is 0
        self._last_s: float | None = None  # the last stamp's time
        self._intervals_s: deque[float] = deque(maxlen=RECENT)
        self._ahead: deque[Stamped] = deque()

    def timed(self, frames: Iterable[Stamped]) -> Iterator[tuple[float, Stamped]]:
        """The frames with their times. At most `AHEAD` are held, and only where the clock seems to jump at once."""
        frames = iter(frames)
        while (stamped := self._ahead.popleft() if self._ahead else next(frames, None)) is not None:
            self._now_s = self._time_of(stamped.time_s, frames)
            yield self._now_s, stamped

    def _time_of(self, stamped_s: float | None, frames: Iterator[Stamped]) -> float:
        next_s = 0.0 if self._now_s is None else self._now_s + self._step_s()
        if stamped_s is None:
            return next_s
        if self._zero_s is None:
            self._zero_s, self._last_s = stamped_s - next_s, stamped_s
            return stamped_s - self._zero_s
        interval_s, self._last_s = stamped_s - self._last_s, stamped_s
        if 0 < interval_s <= RAREST_S:
            self._intervals_s.append(interval_s)
        time_s = stamped_s - self._zero_s
        if self._is_jump(time_s - self._now_s, interval_s, frames):
            step_s = self._usual_s() or self._step_s()
            self.jumps, self.jumped_s = self.jumps + 1, self.jumped_s + abs(interval_s - step_s)
            time_s = self._now_s + step_s
            self._zero_s = stamped_s - time_s
            return time_s
        return time_s if time_s > self._now_s else next_s

    def _is_jump(self, advance_s: float, interval_s: float, frames: Iterator[Stamped]) -> bool:
        """`advance_s`: by how much the clip's time would go on; `interval_s`: since the last stamp."""
        if advance_s > self._longest_s:
            usual_s = self._usual_s(frames)
            return usual_s is None or advance_s > TIMES_USUAL * usual_s
        if interval_s < -BACKWARD_S:
            return interval_s < -TIMES_USUAL * (self._usual_s(frames) or 0.0)
        return 0 < interval_s < DENSEST_S and self._usual_s(frames) is None

    def _usual_s(self, frames: Iterator[Stamped] | None = None) -> float | None:
        """The median time between the last frames and, while these are few, those ahead in `frames`; None where it is
        not known or cannot be."""
        intervals_s = list(self._intervals_s)
        if len(intervals_s) < AHEAD:
            while frames is not None and len(self._ahead) < AHEAD and (stamped := next(frames, None)) is not None:
                self._ahead.append(stamped)
            before_s = self._last_s
            for time_s in (stamped.time_s for stamped in self._ahead if stamped.time_s is not None):
                if 0 < time_s - before_s <= RAREST_S:
                    intervals_s.append(time_s - before_s)
                before_s = time_s
        usual_s = statistics.median_low(intervals_s) if intervals_s else None
        return usual_s if usual_s is not None and usual_s >= DENSEST_S else None

    def _step_s(self) -> float:
        fps = self._fps()
        if fps and SLOWEST_FPS <= fps <= FASTEST_FPS:
            return 1 / fps
        return self._usual_s() or 1 / DEFAULT_FPS
