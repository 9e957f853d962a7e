"""Reading a clip's frames with PyAV: upright RGB at a bounded size, with their times from the stream.

One decoder and one scaler for everything, since decoders differ from one another by some grey levels. A clip damaged
in places is read as far as it decodes; one without a single good frame is an `UnreadableClip`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from expand.data.sampling import one_per_tick
from expand.errors import DataError

MIN_SIDE = 8
"""Frames with a shorter side, pixels, hold no picture worth training on."""


class UnreadableClip(DataError):
    """A clip that gives no frame; `what` is the reason."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, where=where, fix=fix)


def stored_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) of a frame whose short side is at most `short_side`; never enlarged, aspect kept."""
    short = min(height, width)
    if short <= short_side:
        return height, width
    return max(1, round(height * short_side / short)), max(1, round(width * short_side / short))


class ClipReader:
    """The frames of one clip in order: an iterable of (time, frame).

    Times are seconds from the first frame, from the stream's presentation times (right for variable rates); where they
    are missing or do not ascend (old AVI files hold them in decoding order), the average rate takes over. At most
    one frame a tick of 1/30 s is given (`one_per_tick`). A frame is an H x W x 3 uint8 array, turned upright
    where the file says how. With `wanted`, only the frames of these ascending indices are converted and given,
    and reading stops after the last of them.

    After the iteration `damaged` counts the packets that could not be decoded, `source_height` and `source_width` are
    those of the upright source. Raises `UnreadableClip` where no frame comes at all.
    """

    def __init__(self, path: Path, short_side: int, wanted: Sequence[int] | None = None) -> None:
        self.path, self.short_side, self.damaged = path, short_side, 0
        self.source_height = self.source_width = 0
        self._wanted = None if wanted is None else {int(index) for index in wanted}
        self._scaler = VideoReformatter()

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        try:
            with av.open(str(self.path)) as container:
                yield from self._frames(container)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._unreadable(_reason(error)) from error

    def _frames(self, container: av.container.InputContainer) -> Iterator[tuple[float, np.ndarray]]:
        if not container.streams.video:
            raise self._unreadable("no video stream in it")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        last = None if self._wanted is None else max(self._wanted)
        index = -1
        for index, (time_s, frame) in enumerate(one_per_tick(self._timed(container, stream))):
            if self._wanted is None or index in self._wanted:
                yield time_s, self._picture(frame)
            if index == last:
                break
        if index < 0:
            raise self._unreadable("no frame in it could be decoded")

    def _timed(self, container: av.container.InputContainer,
               stream: av.video.stream.VideoStream) -> Iterator[tuple[float, av.VideoFrame]]:
        step_s = 1 / float(stream.average_rate or stream.guessed_rate or 30)
        first_s, time_s = None, -step_s
        for frame in self._decoded(container, stream):
            if frame.time is not None and first_s is None:
                first_s = frame.time - (time_s + step_s)
            stamped = None if frame.time is None else frame.time - first_s
            time_s = time_s + step_s if stamped is None or stamped <= time_s else stamped
            yield time_s, frame

    def _decoded(self, container: av.container.InputContainer,
                 stream: av.video.stream.VideoStream) -> Iterator[av.VideoFrame]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:  # the container itself breaks off: what came before is good
                self.damaged += 1
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self.damaged += 1
                continue
            yield from frames

    def _picture(self, frame: av.VideoFrame) -> np.ndarray:
        quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise, as np.rot90 counts
        if not self.source_height:
            if min(frame.height, frame.width) < MIN_SIDE:
                raise self._unreadable(f"its frames are only {frame.width} x {frame.height} pixels")
            size = (frame.height, frame.width)
            self.source_height, self.source_width = size if quarter_turns % 2 == 0 else size[::-1]
        height, width = stored_size(self.source_height, self.source_width, self.short_side)
        if quarter_turns % 2:
            height, width = width, height
        rgb = self._scaler.reformat(frame, width, height, "rgb24", interpolation=Interpolation.BILINEAR)
        return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), quarter_turns))

    def _unreadable(self, reason: str) -> UnreadableClip:
        return UnreadableClip(reason, where=str(self.path))


def _reason(error: Exception) -> str:
    """FFmpeg's or the system's own words, without the error number and the path that they carry along."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
