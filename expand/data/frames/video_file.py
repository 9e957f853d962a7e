"""A video file as a stream of stamped frames; the kinds of unreadable clips, and the sentences that say why."""

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
from expand.errors import DataError
from expand.processes import heartbeat

KINDS = ("missing", "empty", "no-video", "corrupt", "tiny", "huge", "crash", "hang")
"""In this order: not there, or cannot be opened; no bytes, or a folder without frames; no pictures in it; nothing
decodes; frames smaller than `MIN_SIDE`; frames larger than `MAX_PIXELS`; the decoder crashes; the decoder hangs."""
MIN_SIDE = 8
"""Frames with a shorter side than this, pixels, are refused: they hold no picture worth training on."""
MAX_PIXELS = 2 ** 26
"""Frames with more pixels (8192 x 8192; 8K video has half of it) are a mistake or an attack: few bytes of a file could
ask for gigabytes."""


class UnreadableClip(DataError):
    """A clip that gives no frame; `what` is the reason, `kind` one of `KINDS`."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None, kind: str = "corrupt") -> None:
        super().__init__(what, where=where, fix=fix)
        self.kind = kind


def check_size(height: int, width: int, where: str) -> None:
    """Raise `UnreadableClip` for frames that are too small to hold a picture, or so large that they must be wrong."""
    if height * width > MAX_PIXELS:
        raise UnreadableClip(f"its frames would be {width} x {height} pixels", where=where, kind="huge")
    if min(height, width) < MIN_SIDE:
        raise UnreadableClip(f"its frames are only {width} x {height} pixels", where=where, kind="tiny")


def pointer_reason(head: bytes) -> str | None:
    """Return why a file that begins with `head` is no clip if it is a pointer of Git LFS or git-annex; else None."""
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS and not the clip itself: `git lfs pull` fetches it"
    if head.startswith((b"/annex/objects/", b"../.git/annex/objects/", b".git/annex/objects/")):
        return "is a pointer of git-annex and not the clip itself: `git annex get` fetches it"
    return None


def system_reason(error: Exception) -> str:
    """Return the system's or FFmpeg's own message, without the error number and the path."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


SEEKABLE = ("mov", "matroska", "avi")
"""Containers with an index of their key frames; in others, stamps after a seek may be guesses."""
NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
"""Kinds of streams that are pictures about the recording: covers, previews."""
CUT_OFF = ("partial file", "ended prematurely")
"""FFmpeg's messages about MP4 and Matroska files whose end is missing; it goes on as if they were complete."""
TOO_LARGE = "exceeds specified max pixel count"
"""FFmpeg's message about frames beyond `MAX_PIXELS`."""
LIMIT = {"max_pixels": str(MAX_PIXELS)}
"""The option that makes a decoder refuse larger frames before it takes memory for them."""
POINTER_BYTES = 2048
"""A pointer to a clip that was not fetched is a file smaller than this."""
REORDERED = 4
"""Frames by which the stamps of AVI may be late: the file has one stamp a packet, in the order of decoding."""


@dataclass(frozen=True)
class Header:
    """The properties that a clip's header claims, true or not; None where it claims nothing."""

    frames: int | None
    duration_s: float | None
    fps: float | None
    codec: str
    pixel_format: str | None = None
    rotation: int = 0
    """Degrees counter-clockwise by which frames are turned to be upright: 0, 90, 180 or 270."""
    mirrored: bool = False
    """Whether they are mirrored left to right before they are turned."""
    pixel_aspect: float = 1.0
    """Width by height of a pixel, before frames are turned."""


NO_HEADER = Header(None, None, None, "")


class VideoFile:
    """A video file. `header` is set when the first frame comes.

    `damaged` counts the packets that could not be decoded without an error. `broken_off`: the container could not be
    read to its end, or had none. `oversized`: some frames were beyond `MAX_PIXELS` and were refused. `sound`: all
    frames so far had stamps in ascending order, and no packet had an error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = NO_HEADER
        self.damaged, self.broken_off, self.oversized, self.sound = 0, False, False, True
        self._time_base = Fraction(1)

    def clock(self) -> Clock:
        """Return the clock that gives the frames their times."""
        return Clock(lambda: self.header.fps)

    def time_s(self, stamp: int) -> float:
        """Return the time of `stamp`, seconds."""
        return stamp * self._time_base.numerator / self._time_base.denominator

    def frames(self, seek_to: int | None = None, wanted: frozenset[int] | None = None) -> Iterator[Stamped]:
        """Yield the frames from the start, or from the key frame before the stamp `seek_to` if the container knows it.

        Those that are not `wanted` are yielded too, as others build on them. Raises `UnreadableClip` if there can be
        none, or after a seek that went wrong.
        """
        self._check_file()
        try:
            # "file:": a name with a colon is a path and no protocol. FFmpeg decodes while it opens: hence the limit.
            with av.open(f"file:{self.path}", metadata_errors="replace", options=LIMIT) as container:
                stream = self._open_stream(container)
                if seek_to is not None and set(SEEKABLE) & set(container.format.name.split(",")):
                    container.seek(seek_to, stream=stream)
                decoded = self._decode(container, stream)
                yield from _in_order_of_time(decoded) if container.format.name == "avi" else decoded
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UnreadableClip(system_reason(error), where=str(self.path)) from error

    def _check_file(self) -> None:
        """Raise `UnreadableClip` for a file that holds no clip, or that the decoder could wait on: a pipe."""
        try:
            about, head = self.path.stat(), b""
            if stat.S_ISREG(about.st_mode) and 0 < about.st_size < POINTER_BYTES:
                with open(self.path, "rb") as file:
                    head = file.read(POINTER_BYTES)
        except OSError as error:
            raise UnreadableClip(system_reason(error), where=str(self.path), kind="missing") from error
        if not stat.S_ISREG(about.st_mode):
            raise UnreadableClip("is not a regular file", where=str(self.path), kind="missing")
        if not about.st_size:
            raise UnreadableClip("is empty: 0 bytes", where=str(self.path), kind="empty")
        if reason := pointer_reason(head):
            raise UnreadableClip(reason, where=str(self.path), kind="missing")

    def _open_stream(self, container: av.container.InputContainer) -> av.video.stream.VideoStream:
        stream = next((stream for stream in container.streams.video if not stream.disposition & NO_VIDEO), None)
        if stream is None:
            what = "only a cover picture, no video stream in it" if container.streams.video else "no video stream in it"
            raise UnreadableClip(what, where=str(self.path), kind="no-video")
        codec = stream.codec_context
        if codec is None:
            raise UnreadableClip("FFmpeg has no decoder for its video stream", where=str(self.path))
        if codec.width and codec.height:
            check_size(codec.height, codec.width, str(self.path))
        codec.thread_count = 1  # clips are decoded in several processes, so that more threads would only wait
        codec.options = LIMIT  # also where a size stands in the stream alone, or changes
        self._time_base = stream.time_base or Fraction(1)
        fps = duration_s = None
        for rate in (stream.average_rate, stream.guessed_rate):
            with suppress(ZeroDivisionError):
                fps = fps or float(rate or 0) or None
        if stream.duration is not None and stream.time_base is not None:
            duration_s = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration_s = container.duration / av.time_base
        self.header = Header(stream.frames or None, duration_s, fps, codec.name)
        return stream

    def _decode(self, container: av.container.InputContainer,
                stream: av.video.stream.VideoStream) -> Iterator[Stamped]:
        last, codec = None, stream.codec_context
        declared = stream.sample_aspect_ratio
        is_containers = bool(declared) and declared != codec.sample_aspect_ratio  # the container's value has precedence
        for packet in self._packets(container, stream):
            frames, is_whole = [], False
            with ffmpeg_errors() as complaints, suppress(av.FFmpegError):
                frames = packet.decode()
                is_whole = not complaints
            if not is_whole:
                self.damaged, self.sound = self.damaged + 1, False
                self.oversized = self.oversized or mention(complaints, TOO_LARGE)
            for frame in frames:
                heartbeat()
                stamp = frame.pts
                self.sound = self.sound and stamp is not None and (last is None or stamp > last)
                last = stamp
                aspect = declared if is_containers else codec.sample_aspect_ratio or declared
                yield Stamped(stamp, None if stamp is None else self.time_s(stamp), frame,
                              orientation_of_frame(frame, partial(bytes, packet)), pixel_aspect(aspect))

    def _packets(self, container: av.container.InputContainer,
                 stream: av.video.stream.VideoStream) -> Iterator[av.Packet]:
        packets = container.demux(stream)
        while True:
            packet = None
            with ffmpeg_errors() as complaints:
                try:
                    packet = next(packets, None)
                    cut = mention(complaints, *CUT_OFF)
                except av.FFmpegError:  # what came before is good
                    cut = True
            if cut:
                self.damaged, self.broken_off = self.damaged + 1, True
            if packet is None:
                return
            yield packet


@contextmanager
def ffmpeg_errors() -> Iterator[list[tuple[int, str, str]]]:
    """Collect the errors that FFmpeg logs in the block: it conceals most damage and reports the picture as decoded."""
    level, skip_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_skip_repeated(False)
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as complaints:
            yield complaints
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip_repeated)


def mention(complaints: list[tuple[int, str, str]], *words: str) -> bool:
    """Return whether one of the `words` is in the messages from `ffmpeg_errors`."""
    return any(some in message for _, _, message in complaints for some in words)


def _in_order_of_time(frames: Iterable[Stamped]) -> Iterator[Stamped]:
    """Yield the same frames with their times in ascending order, if they are late by at most `REORDERED` frames."""
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
