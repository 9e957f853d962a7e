"""A folder of pictures as a clip: JPEG, PNG or other files, one a frame, in natural order, at a given rate.

The pictures are decoded by the same library as videos, into the same kind of frames, so that a clip and the folder of
its frames give the same pictures.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from expand.data.file_kinds import OTHER_PICTURES, suffix_of
from expand.data.file_kinds import PICTURES as CODECS
from expand.data.frames.clock import Clock, Stamped
from expand.data.frames.orientation import orientation_of_frame
from expand.data.frames.video_file import (
    LIMIT,
    MAX_PIXELS,
    NO_HEADER,
    TOO_LARGE,
    Header,
    UnreadableClip,
    ffmpeg_errors,
    mention,
    system_reason,
)
from expand.processes import heartbeat

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
    """Return the pictures of a folder in natural order (img_2 before img_10), without hidden files.

    Raises `UnreadableClip` if the folder cannot be read or has none.
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
    # names that differ only in case or leading zeros stay in a fixed order
    return sorted(_choose_frames(files), key=lambda file: [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"(\d+)", file.name.lower())] + [(-2, file.name)])


def _choose_frames(files: Sequence[Path]) -> Sequence[Path]:
    """Return those of a folder's pictures that are its frames.

    Masks and the like beside frames are left out. Of pictures in two formats with the same numbers, the format with
    more pictures is taken, else the one that comes first in `CODECS`.
    """
    files = [file for file in files if not NO_FRAME.search(file.name.lower())] or files
    codecs = Counter(CODECS[file.suffix.lower()] for file in files)
    if len(codecs) == 1:
        return files
    numbers = {codec: {_number(file) for file in files if CODECS[file.suffix.lower()] == codec} for codec in codecs}
    order = list(dict.fromkeys(CODECS.values()))
    best = min(codecs, key=lambda codec: (-codecs[codec], order.index(codec)))
    return [file for file in files if (codec := CODECS[file.suffix.lower()]) == best
            or 2 * len(numbers[codec] & numbers[best]) < len(numbers[codec])]


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
