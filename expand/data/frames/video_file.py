"""The frames of a video file as FFmpeg gives them, in order, past whatever is damaged in it."""

from __future__ import annotations

import heapq
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import av.logging
from av.stream import Disposition

from expand.data.frames.clock import Clock, Stamped
from expand.data.frames.orientation import orientation_of_frame, pixel_aspect
from expand.data.frames.unreadable import MAX_PIXELS, UnreadableClip, check_size, pointer_reason, system_reason
from expand.processes.child import beat

SEEKABLE = ("mov", "matroska", "avi")
"""Containers that say where their key frames are; in others, stamps after a jump may be guesses."""
NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
"""Streams of these kinds are pictures about the recording: covers, previews."""
CUT_OFF = ("partial file", "ended prematurely")
"""What FFmpeg says of MP4 and Matroska files whose end is missing; it goes on as if they were whole."""
TOO_LARGE = "exceeds specified max pixel count"
"""What FFmpeg says of frames beyond `MAX_PIXELS`."""
LIMIT = {"max_pixels": str(MAX_PIXELS)}
"""Makes a decoder refuse larger frames before it takes memory for them."""
POINTER_BYTES = 2048
"""A file that stands for a clip which was not fetched is smaller than this."""
REORDERED = 4
"""Frames that AVI's stamps may be late by: the file has one stamp a packet, in the order of decoding."""


@dataclass(frozen=True)
class Header:
    """What a clip says of itself, true or not; None where it says nothing."""

    frames: int | None
    duration_s: float | None
    fps: float | None
    codec: str
    pixel_format: str | None = None
    rotation: int = 0
    """By how much frames are turned to be upright, degrees counter-clockwise: 0, 90, 180 or 270."""
    mirrored: bool = False
    """Whether they are mirrored left to right before they are turned."""
    pixel_aspect: float = 1.0
    """Width by height of a pixel, before frames are turned."""


class VideoFile:
    """A video file. `header` is there once frames come.

    `damaged` counts the packets that could not be decoded without an error. `broken_off`: the container could not be
    read to its end, or had none. `oversized`: some frames were beyond `MAX_PIXELS`, and refused. `sound`: all frames so
    far had stamps, in ascending order, and no packet an error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header | None = None
        self.damaged, self.broken_off, self.oversized, self.sound = 0, False, False, True
        self._time_base = Fraction(1)

    def clock(self) -> Clock:
        """What gives the frames their times."""
        return Clock(lambda: self.header.fps)

    def time_s(self, stamp: int) -> float:
        """The time that `stamp` stands for, seconds."""
        return stamp * self._time_base.numerator / self._time_base.denominator

    def frames(self, seek_to: int | None = None, wanted: frozenset[int] | None = None) -> Iterator[Stamped]:
        """The frames from the start, or from the key frame before the stamp `seek_to` where the container knows it.

        Those that are not `wanted` come too, as others build on them. Raises `UnreadableClip` where there can be none,
        or after a seek that went wrong.
        """
        self._check_file()
        try:
            # "file:": a name with a colon is a path and no protocol. FFmpeg decodes while it opens: hence the limit.
            with av.open(f"file:{self.path}", metadata_errors="replace", options=LIMIT) as container:
                stream = self._opened(container)
                if seek_to is not None and set(SEEKABLE) & set(container.format.name.split(",")):
                    container.seek(seek_to, stream=stream)
                decoded = self._decoded(container, stream)
                yield from _reordered(decoded) if container.format.name == "avi" else decoded
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UnreadableClip(system_reason(error), where=str(self.path)) from error

    def _check_file(self) -> None:
        """A pipe would make the decoder wait."""
        try:
            about = self.path.stat()
        except OSError as error:
            raise UnreadableClip(system_reason(error), where=str(self.path), kind="missing") from error
        if not stat.S_ISREG(about.st_mode):
            raise UnreadableClip("is not a regular file", where=str(self.path), kind="missing")
        if not about.st_size:
            raise UnreadableClip("is empty: 0 bytes", where=str(self.path), kind="empty")
        if about.st_size < POINTER_BYTES and (reason := pointer_reason(self._head())):
            raise UnreadableClip(reason, where=str(self.path), kind="missing")

    def _head(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                return file.read(POINTER_BYTES)
        except OSError as error:
            raise UnreadableClip(system_reason(error), where=str(self.path), kind="missing") from error

    def _opened(self, container: av.container.InputContainer) -> av.video.stream.VideoStream:
        stream = next((stream for stream in container.streams.video if not stream.disposition & NO_VIDEO), None)
        if stream is None:
            what = "only a cover picture, no video stream in it" if container.streams.video else "no video stream in it"
            raise UnreadableClip(what, where=str(self.path), kind="no-video")
        codec = stream.codec_context
        if codec is None:
            raise UnreadableClip("FFmpeg has no decoder for its video stream", where=str(self.path))
        if codec.width and codec.height:
            check_size(codec.height, codec.width, str(self.path))
        codec.thread_count = 1  # clips are worked on in several processes: more threads would only wait for one another
        codec.options = LIMIT  # also where a size stands in the stream alone, or changes
        self.header, self._time_base = _header(container, stream), stream.time_base
        return stream

    def _decoded(self, container: av.container.InputContainer,
                 stream: av.video.stream.VideoStream) -> Iterator[Stamped]:
        last, codec = None, stream.codec_context
        declared = stream.sample_aspect_ratio
        is_containers = bool(declared) and declared != codec.sample_aspect_ratio  # the container's word comes first
        for packet in self._packets(container, stream):
            for frame in self._frames_of(packet):
                beat()
                stamp = frame.pts
                self.sound = self.sound and stamp is not None and (last is None or stamp > last)
                last = stamp
                aspect = declared if is_containers else codec.sample_aspect_ratio or declared
                yield Stamped(stamp, None if stamp is None else self.time_s(stamp), frame,
                              orientation_of_frame(frame, partial(bytes, packet)), pixel_aspect(aspect))

    def _frames_of(self, packet: av.Packet) -> list[av.VideoFrame]:
        frames: list[av.VideoFrame] = []
        with overheard() as complaints, suppress(av.FFmpegError):
            frames = packet.decode()
            if not complaints:
                return frames
        self.damaged, self.sound = self.damaged + 1, False
        self.oversized = self.oversized or says(complaints, TOO_LARGE)
        return frames

    def _packets(self, container: av.container.InputContainer,
                 stream: av.video.stream.VideoStream) -> Iterator[av.Packet]:
        packets = container.demux(stream)
        while True:
            packet = None
            with overheard() as complaints:
                try:
                    packet = next(packets, None)
                    cut = says(complaints, *CUT_OFF)
                except av.FFmpegError:  # what came before is good
                    cut = True
            if cut:
                self.damaged, self.broken_off = self.damaged + 1, True
            if packet is None:
                return
            yield packet


@contextmanager
def overheard() -> Iterator[list[tuple[int, str, str]]]:
    """What FFmpeg says of errors: it patches most damaged pictures up and calls them decoded."""
    level, skip_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_skip_repeated(False)
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as complaints:
            yield complaints
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip_repeated)


def says(complaints: list[tuple[int, str, str]], *words: str) -> bool:
    """Whether one of the `words` is among what was `overheard`."""
    return any(some in message for _, _, message in complaints for some in words)


def _header(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> Header:
    codec, fps, duration_s = stream.codec_context, None, None
    for rate in (stream.average_rate, stream.guessed_rate):
        with suppress(ZeroDivisionError):
            fps = fps or float(rate or 0) or None
    if stream.duration is not None:
        duration_s = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration_s = container.duration / av.time_base
    return Header(stream.frames or None, duration_s, fps, codec.name)


def _reordered(frames: Iterable[Stamped]) -> Iterator[Stamped]:
    """The same frames with their times in ascending order, as long as they are late by at most `REORDERED`."""
    held: deque[Stamped] = deque()
    times_s: list[float] = []

    def earliest() -> Stamped:
        stamped = held.popleft()
        return stamped if stamped.time_s is None else stamped._replace(time_s=heapq.heappop(times_s))

    for stamped in frames:
        held.append(stamped)
        if stamped.time_s is not None:
            heapq.heappush(times_s, stamped.time_s)
        if len(held) > REORDERED:
            yield earliest()
    while held:
        yield earliest()
