"""A clip's file or folder as a stream of decoded frames with stamps: `VideoFile`, `FrameFolder`; why one is unreadable.

The pictures of a folder are decoded by the same library as videos, into the same kind of frames, so that a clip and the
folder of its frames give the same pictures.
"""

from __future__ import annotations

import heapq
import math
import re
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import cast

import av
import av.logging
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from expand.data.frames.presentation import Clock, Stamped, orientation_of_frame, pixel_aspect
from expand.data.sources.walk import OTHER_PICTURES, suffix_of
from expand.data.sources.walk import PICTURES as CODECS
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


NO_FRAME = re.compile(r"(?<![a-z])(?:masks?|depth|(?:optical)?flow|seg|segm|segmentation|semantic|instances?|labels?|gt"
                      r"|annotations?|normals?|disp|disparity|alpha|matte|thumbs?|thumbnail|cover|poster|preview|folder"
                      r"|albumart|heatmap|thermal|pose|skeleton|keypoints|overlay)(?![a-z])|^[xy]_\d+\.")
"""Names of pictures about the frames (masks, depth, optical flow) or about the clip, which may lie beside them."""

TIFF_COMPRESSION, JPEG_COMPRESSIONS = 259, (6, 7)
"""The tag of TIFF that says how it is compressed, and its values for JPEG."""


class FrameFolder:
    """A folder of pictures, with the same attributes and methods as `VideoFile`.

    `damaged` counts the pictures that could not be decoded without an error. Those that could not be decoded at all are
    left out, and the others keep their times. A stamp is a picture's number in the order, from 0.
    """

    broken_off, sound = False, True

    def __init__(self, path: Path, frame_rate: float) -> None:
        self.path, self.frame_rate = path, frame_rate
        self.header = NO_HEADER
        self.damaged, self.oversized = 0, False

    def clock(self) -> Clock:
        """Return the clock of the frames: the rate is the user's setting, and damaged pictures leave real gaps."""
        return Clock(lambda: self.frame_rate, longest_s=math.inf)

    def time_s(self, stamp: int) -> float:
        """Return the time of picture number `stamp`, seconds."""
        return stamp / self.frame_rate

    def frames(self, seek_to: int | None = None, wanted: frozenset[int] | None = None) -> Iterator[Stamped]:
        """Yield the frames from the start, or from the stamp `seek_to`; only those with the stamps `wanted` if given.

        Raises `UnreadableClip` if there can be none.
        """
        pictures = frame_files(self.path)
        self.header = Header(len(pictures), len(pictures) / self.frame_rate, self.frame_rate,
                             CODECS[pictures[0].suffix.lower()])
        numbers = range(seek_to or 0, len(pictures))
        for number in numbers if wanted is None else (number for number in numbers if number in wanted):
            heartbeat()
            frame = None
            with ffmpeg_errors() as complaints, suppress(av.FFmpegError, OSError, ValueError):
                frame = decode_picture(pictures[number])
            if frame is None or complaints:
                self.damaged += 1
                self.oversized = self.oversized or mention(complaints, TOO_LARGE)
            if frame is not None:
                orientation = orientation_of_frame(frame, pictures[number].read_bytes)
                yield Stamped(number, self.time_s(number), frame, orientation)


def frame_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder that are its frames, in natural order (img_2 before img_10).

    Hidden files are left out, and masks and the like beside frames. Of pictures in two formats with the same numbers,
    the format with more pictures is taken, else the one that comes first in `CODECS`. Raises `UnreadableClip` if the
    folder cannot be read or has none.
    """
    try:
        inside = [file for file in folder.iterdir() if not file.name.startswith(".")]
    except OSError as error:
        raise UnreadableClip(system_reason(error), where=str(folder), kind="missing") from error
    files = [file for file in inside if file.suffix.lower() in CODECS]
    if not files:
        others = sorted({suffix_of(file.name) for file in inside} & OTHER_PICTURES)
        raise UnreadableClip("is a folder without a JPEG or PNG picture"
                             + (f"; {', '.join(others)} are not read: convert them" if others else ""),
                             where=str(folder), kind="empty")
    files = [file for file in files if not NO_FRAME.search(file.name.lower())] or files
    codecs = Counter(CODECS[file.suffix.lower()] for file in files)
    if len(codecs) > 1:
        numbers = {codec: {_number(file) for file in files if CODECS[file.suffix.lower()] == codec} for codec in codecs}
        order = list(dict.fromkeys(CODECS.values()))
        best = min(codecs, key=lambda codec: (-codecs[codec], order.index(codec)))
        files = [file for file in files if (codec := CODECS[file.suffix.lower()]) == best
                 or 2 * len(numbers[codec] & numbers[best]) < len(numbers[codec])]
    # names that differ only in case or leading zeros stay in a fixed order
    return sorted(files, key=lambda file: [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"(\d+)", file.name.lower())] + [(-2, file.name)])


def _number(file: Path) -> str:
    """Return the last number in a picture's name, or the name if it has none."""
    found = re.findall(r"\d+", file.stem)
    return found[-1].lstrip("0") if found else file.stem.lower()


def decode_picture(file: Path) -> av.VideoFrame:
    """Decode the picture in `file`. Raises `av.FFmpegError`, `OSError` or `ValueError` if that is impossible."""
    if CODECS[file.suffix.lower()] == "tiff" and (frame := _tiff_of_jpeg(file)) is not None:
        return frame
    codec = cast("av.VideoCodecContext", av.CodecContext.create(CODECS[file.suffix.lower()], "r"))
    codec.thread_count = 1
    codec.options = LIMIT
    frames = codec.decode(av.Packet(file.read_bytes())) + codec.decode(None)
    if not frames:
        raise ValueError("no picture in it")
    return frames[0]


def _tiff_of_jpeg(file: Path) -> av.VideoFrame | None:
    """The upright picture of a TIFF file that is compressed as JPEG, whose colours FFmpeg gets wrong; None for others.
    Raises `OSError` or `ValueError` where it cannot be decoded."""
    try:
        with Image.open(file) as picture:
            if not (isinstance(picture, TiffImageFile) and picture.tag_v2.get(TIFF_COMPRESSION) in JPEG_COMPRESSIONS):
                return None
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(TOO_LARGE)
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            return av.VideoFrame.from_ndarray(np.asarray(upright), format="rgb24")
    except UnidentifiedImageError:
        return None  # FFmpeg says what is wrong with it
    except (SyntaxError, TypeError, KeyError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
