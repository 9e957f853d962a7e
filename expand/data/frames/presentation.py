"""How decoded frames are presented: at which times, in which orientation, and with which shape of pixels.

Time stamps may be missing, out of order, or from a clock that jumps. Recorders pause, days are joined into one file,
counters wrap around: without bounds a few frames would stand for hours. So a step in time is believed only as far as
the frames around it allow (docs/data.md, "What is read").
"""

from __future__ import annotations

import io
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar, cast

import av
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image

from expand.space.factors import REFERENCE_FPS

MATRIX_BYTES = 36
"""A display matrix: nine integers of 32 bits."""
EXIF_ORIENTATION = 0x0112
MOST_ASPECT = 8
"""Pixels more than this many times as wide as high, or as high as wide, are a mistake. Real video has at most 3."""
NEARLY_SQUARE = 0.01
"""Pixels this close to square count as square, 1280:1281 for instance, which comes from a rounded size."""
SQUARE = Fraction(1)


class Orientation(NamedTuple):
    """One of the eight ways in which a picture can lie.

    A decoded picture is mirrored left to right, if `mirrored`, and then turned by `quarter_turns` times 90 degrees
    counter-clockwise, as np.rot90 counts.
    """

    mirrored: bool
    quarter_turns: int


UPRIGHT = Orientation(False, 0)
EXIF = {1: UPRIGHT, 2: Orientation(True, 0), 3: Orientation(False, 2), 4: Orientation(True, 2),
        5: Orientation(True, 1), 6: Orientation(False, 3), 7: Orientation(True, 3), 8: Orientation(False, 1)}
"""The orientation for each value of the EXIF tag; other values mean nothing."""


def orientation_of_matrix(matrix: Sequence[int]) -> Orientation:
    """Return the orientation that a display matrix asks for.

    The matrix is FFmpeg's and MP4's: nine numbers, row by row; a pixel at (x, y), y downwards, is shown at
    (x a + y c, x b + y d). Other angles are rounded to the nearest quarter turn. A matrix that maps the picture to a
    line is ignored.
    """
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    determinant = a * d - b * c
    if not determinant:
        return UPRIGHT
    mirrored = determinant < 0
    if mirrored:  # without the mirroring, a rotation remains
        a, b = -a, -b
    clockwise = math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))
    return Orientation(mirrored, round(-clockwise / 90) % 4)


def orientation_of_frame(frame: av.VideoFrame, picture: Callable[[], bytes]) -> Orientation:
    """Return the orientation that comes with a decoded frame, from its container, its stream or its EXIF.

    `picture` returns the bytes that the frame was decoded from. They are needed where the frame has EXIF: PyAV does not
    know that kind of side data and then gives none at all.
    """
    try:
        matrix = cast("Mapping[Type, Any]", frame.side_data).get(Type.DISPLAYMATRIX)
    except ValueError:
        return exif_orientation(picture) or Orientation(False, round(frame.rotation / 90) % 4)
    if matrix is None or matrix.buffer_size != MATRIX_BYTES:
        return UPRIGHT
    return orientation_of_matrix(np.frombuffer(matrix, dtype=np.int32).tolist())


def exif_orientation(picture: Callable[[], bytes]) -> Orientation | None:
    """Return the orientation in the EXIF of a picture's bytes; None if there is none that can be read."""
    try:
        with Image.open(io.BytesIO(picture())) as opened:
            return EXIF.get(opened.getexif().get(EXIF_ORIENTATION, 0))
    except Exception:  # noqa: BLE001 - the bytes are untrusted, and Pillow raises many kinds for bad ones
        return None


def turn_upright(picture_HWC: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Return the picture as it is to be seen, contiguous."""
    if orientation.mirrored:
        picture_HWC = picture_HWC[:, ::-1]
    return np.ascontiguousarray(np.rot90(picture_HWC, orientation.quarter_turns))


def pixel_aspect(declared: Fraction | None) -> Fraction:
    """Return a pixel's width by height: the declared value if it is possible, else 1."""
    if not declared or declared < 0 or abs(declared - 1) <= NEARLY_SQUARE:
        return SQUARE
    return declared if Fraction(1, MOST_ASPECT) <= declared <= MOST_ASPECT else SQUARE


def shown_size(height: int, width: int, aspect: Fraction, orientation: Orientation) -> tuple[int, int]:
    """Return (height, width) of a decoded picture once its pixels are square and it is upright.

    Square pixels change the decoded width and leave the height; the picture is turned after that.
    """
    width = max(1, round(width * aspect))
    return (width, height) if orientation.quarter_turns % 2 else (height, width)


Item = TypeVar("Item")

LONGEST_S = 10.0
"""Time between two frames, seconds, that is always believed: a screen that stands still, a camera that waits."""
TIMES_USUAL = 4
"""A longer one is believed up to this many times the usual time between frames: time-lapse recordings."""
RAREST_S, DENSEST_S = 15.0, 1 / 2000
"""Bounds of the usual time between frames, seconds; a clock beyond them counts in another unit."""
SLOWEST_FPS, FASTEST_FPS = 1 / RAREST_S, 500.0
"""Bounds of a rate that a header may claim; FFmpeg says 1000 or 90,000 where it does not know."""
DEFAULT_FPS = 30.0
BACKWARD_S = 1.0
"""Stamps that go back by less than this, seconds, are out of order; by more, the clock was set back."""
RECENT, AHEAD = 32, 8
"""Frames from which the usual time is taken: the last ones, and at the beginning those to come."""


class Stamped(NamedTuple):
    """A decoded frame, with the time and the orientation in which it is shown."""

    stamp: int | None
    time_s: float | None
    frame: av.VideoFrame
    orientation: Orientation = UPRIGHT
    aspect: Fraction = SQUARE
    """Width by height of a pixel."""


class Clock:
    """Give frames their times: seconds from the first one, never descending.

    A stamp's time, relative to the first, is taken as it is. Where stamps are missing or do not ascend, time goes on by
    the rate of the header (`fps` returns it once there is a frame), if that rate is possible. The clock jumps where it
    goes ahead by more than `longest_s` and than `TIMES_USUAL` the usual time between frames, or back by more than
    `BACKWARD_S`, or where the usual time is impossible. Then time goes on by the usual time between frames, and later
    stamps count from there. `jumps` counts the jumps, `jumped_s` sums them up in seconds.
    """

    def __init__(self, fps: Callable[[], float | None], longest_s: float = LONGEST_S) -> None:
        self.jumps, self.jumped_s = 0, 0.0
        self._fps, self._longest_s = fps, longest_s
        self._now_s = 0.0  # the clip's time at the last frame
        self._zero_s: float | None = None  # the time on the stamps' clock where the clip's is 0
        self._last_stamp_s = 0.0
        self._is_started = False
        self._intervals_s: deque[float] = deque(maxlen=RECENT)
        self._ahead: deque[Stamped] = deque()

    def add_times(self, frames: Iterable[Stamped]) -> Iterator[tuple[float, Stamped]]:
        """Yield the frames with their times. At most `AHEAD` are held back, and only where the clock seems to jump in
        the first ones."""
        frames = iter(frames)
        while (stamped := self._ahead.popleft() if self._ahead else next(frames, None)) is not None:
            self._now_s = self._next_time_s(stamped.time_s, frames)
            self._is_started = True
            yield self._now_s, stamped

    def _next_time_s(self, stamped_s: float | None, frames: Iterator[Stamped]) -> float:
        next_s = self._now_s + self._step_s() if self._is_started else 0.0
        if stamped_s is None:
            return next_s
        if self._zero_s is None:
            self._zero_s, self._last_stamp_s = stamped_s - next_s, stamped_s
            return stamped_s - self._zero_s
        interval_s, self._last_stamp_s = stamped_s - self._last_stamp_s, stamped_s
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
        """Return whether the clock jumps.

        `advance_s` is how far the clip's time would go on, `interval_s` the time since the last stamp.
        """
        if advance_s > self._longest_s:
            usual_s = self._usual_s(frames)
            return usual_s is None or advance_s > TIMES_USUAL * usual_s
        if interval_s < -BACKWARD_S:
            return interval_s < -TIMES_USUAL * (self._usual_s(frames) or 0.0)
        return 0 < interval_s < DENSEST_S and self._usual_s(frames) is None

    def _usual_s(self, frames: Iterator[Stamped] | None = None) -> float | None:
        """Return the median time between the last frames and, while these are few, between those ahead in `frames`.

        None if it is unknown or impossible.
        """
        intervals_s = list(self._intervals_s)
        if len(intervals_s) < AHEAD:
            while frames is not None and len(self._ahead) < AHEAD and (stamped := next(frames, None)) is not None:
                self._ahead.append(stamped)
            before_s = self._last_stamp_s
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


def one_per_tick(timed: Iterable[tuple[float, Item]]) -> Iterator[tuple[float, Item]]:
    """Thin a stream of (time, item) to at most one item for each tick of 1/30 s: the one nearest to the tick.

    A 60 fps source gives every other frame; at 30 fps and below nothing is lost. One item is held in memory.
    """
    held: tuple[float, Item] | None = None
    held_tick, held_offset = 0, 0.0
    for time_s, item in timed:
        tick = round(time_s * REFERENCE_FPS)
        offset = abs(time_s * REFERENCE_FPS - tick)
        if held is not None and tick != held_tick:
            yield held
            held = None
        if held is None or offset < held_offset:
            held, held_tick, held_offset = (time_s, item), tick, offset
    if held is not None:
        yield held
