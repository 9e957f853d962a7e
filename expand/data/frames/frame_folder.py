"""A folder of pictures as a clip: JPEG, PNG or other files, one a frame, in natural order, at a given rate.

The pictures are decoded by the same library as videos are, into the same kind of frames: a clip and the folder of its
frames give the same pictures.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from expand.data.file_kinds import OTHER_PICTURES, suffix_of
from expand.data.file_kinds import PICTURES as CODECS
from expand.data.frames.clock import Clock, Stamped
from expand.data.frames.orientation import orientation_of_frame
from expand.data.frames.unreadable import MAX_PIXELS, UnreadableClip, system_reason
from expand.data.frames.video_file import LIMIT, TOO_LARGE, Header, overheard, says
from expand.processes.child import beat

NO_FRAME = re.compile(r"(?<![a-z])(?:masks?|depth|(?:optical)?flow|seg|segm|segmentation|semantic|instances?|labels?|gt"
                      r"|annotations?|normals?|disp|disparity|alpha|matte|thumbs?|thumbnail|cover|poster|preview|folder"
                      r"|albumart|heatmap|thermal|pose|skeleton|keypoints|overlay)(?![a-z])|^[xy]_\d+\.")
"""Names of pictures about the frames (masks, depth, optical flow) or about the clip, which may lie beside them."""

TIFF_COMPRESSION, JPEG_COMPRESSIONS = 259, (6, 7)
"""The tag of TIFF that says how it is compressed, and its values for JPEG."""


class FrameFolder:
    """A folder of pictures, with what `VideoFile` has. `damaged` counts the pictures that could not be decoded without
    an error; those that could not at all are left out, and the others keep their times. A stamp is a picture's number
    in the order, from 0."""

    broken_off, sound = False, True

    def __init__(self, path: Path, frame_rate: float) -> None:
        self.path, self.frame_rate = path, frame_rate
        self.header: Header | None = None
        self.damaged, self.oversized = 0, False

    def clock(self) -> Clock:
        """What gives the frames their times: the rate is the user's, and a gap where pictures are damaged is one."""
        return Clock(lambda: self.frame_rate, longest_s=math.inf)

    def time_s(self, stamp: int) -> float:
        """When picture number `stamp` is shown, seconds."""
        return stamp / self.frame_rate

    def frames(self, seek_to: int | None = None, wanted: frozenset[int] | None = None) -> Iterator[Stamped]:
        """The frames from the start, or from the stamp `seek_to`; those with other stamps than `wanted` (None: all
        are) are left out. Raises `UnreadableClip` where there can be none."""
        pictures = frame_files(self.path)
        self.header = Header(len(pictures), len(pictures) / self.frame_rate, self.frame_rate,
                             CODECS[pictures[0].suffix.lower()])
        numbers = range(seek_to or 0, len(pictures))
        for number in numbers if wanted is None else (number for number in numbers if number in wanted):
            beat()
            if (frame := self._frame_of(pictures[number])) is not None:
                orientation = orientation_of_frame(frame, pictures[number].read_bytes)
                yield Stamped(number, self.time_s(number), frame, orientation)

    def _frame_of(self, file: Path) -> av.VideoFrame | None:
        frame = None
        with overheard() as complaints, suppress(av.FFmpegError, OSError, ValueError):
            frame = decode_picture(file)
            if not complaints:
                return frame
        self.damaged, self.oversized = self.damaged + 1, self.oversized or says(complaints, TOO_LARGE)
        return frame


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder in natural order: img_2 before img_10; hidden files are none.

    Raises `UnreadableClip` where the folder cannot be read or has none.
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
    return sorted(_of_one_kind(files), key=_natural)


def _of_one_kind(files: Sequence[Path]) -> Sequence[Path]:
    """Those of a folder's pictures that are its frames: no masks and the like beside frames, and of pictures in two
    formats with the same numbers those of the format that has more of them, else of the one that comes first."""
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
    """The last number in a picture's name, else the name."""
    found = re.findall(r"\d+", file.stem)
    return found[-1].lstrip("0") if found else file.stem.lower()


def decode_picture(file: Path) -> av.VideoFrame:
    """The picture in `file`. Raises `av.FFmpegError`, `OSError` or `ValueError` where there is none to be had."""
    if CODECS[file.suffix.lower()] == "tiff" and (frame := _tiff_of_jpeg(file)) is not None:
        return frame
    codec = av.CodecContext.create(CODECS[file.suffix.lower()], "r")
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
            if picture.format != "TIFF" or picture.tag_v2.get(TIFF_COMPRESSION) not in JPEG_COMPRESSIONS:
                return None
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(TOO_LARGE)
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            return av.VideoFrame.from_ndarray(np.asarray(upright), format="rgb24")
    except UnidentifiedImageError:
        return None  # FFmpeg says what is wrong with it
    except (SyntaxError, TypeError, KeyError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def _natural(file: Path) -> list[tuple[int, str]]:
    """Numbers compare as numbers; files that differ in leading zeros or case alone stay in a fixed order."""
    return [(int(part), "") if part.isdecimal() else (-1, part)
            for part in re.split(r"(\d+)", file.name.lower())] + [(-2, file.name)]
