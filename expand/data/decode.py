"""Reading a clip's frames with PyAV: upright RGB at a bounded size, with their times from the stream.

One decoder and one scaler for everything, since decoders differ from one another by some grey levels. A clip damaged
in places is read as far as it decodes; one without a single good frame is an `UnreadableClip`.
docs/decisions/009-decoder.md has the reasons and the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from expand.data.frame_folder import FrameFolder
from expand.data.sampling import one_per_tick
from expand.data.unreadable import KINDS, MAX_PIXELS, MIN_SIDE, UnreadableClip, check_size
from expand.data.video_file import Header, Stamped, VideoFile

__all__ = ["KINDS", "MAX_PIXELS", "MIN_SIDE", "ClipReader", "Header", "UnreadableClip", "stored_size"]

SEEK_FROM = 2
"""A first wanted frame before this one is reached faster without a seek."""


def stored_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) of a frame whose short side is at most `short_side`; never enlarged, aspect kept."""
    short = min(height, width)
    if short <= short_side:
        return height, width
    return max(1, round(height * short_side / short)), max(1, round(width * short_side / short))


class ClipReader:
    """The frames of one clip, a video file or a folder of pictures, in order: an iterable of (time, frame).

    Times are seconds from the first frame, from the stream's presentation times (right for variable rates); where they
    are missing or do not ascend, the average rate takes over. Those of AVI, which stand in the order of decoding, are
    put in order. At most one frame a tick of 1/30 s is given (`one_per_tick`). A frame is an H x W x 3 uint8 array,
    turned upright where the file says how, and None without `pictures`. The pictures of a folder are `frame_rate` a
    second.

    With `wanted`, only the frames of these ascending indices are converted and given, and reading stops after the last
    of them; with the `stamps` of an earlier reading too, it starts at the key frame before the first of them. Neither
    changes a bit of what is given.

    After an iteration `damaged` counts the packets or pictures that could not be decoded without an error, `decoded`
    the frames that came of the others, before any was left out; `broken_off` says that the container could not be read
    to its end. `source_height` and `source_width` are those of the upright source. `stamps` are those of the given
    frames, one each (int64), or None where they are no way to the same frames again: missing, out of order, of a
    damaged clip, whose frames are patched up from those before, or of one whose frames' size changes. `header` is what
    the clip says of itself. Raises `UnreadableClip` where no frame comes at all.
    """

    def __init__(self, path: Path, short_side: int, wanted: Sequence[int] | None = None, *, frame_rate: float = 30.0,
                 stamps: np.ndarray | None = None, pictures: bool = True) -> None:
        self.path, self.short_side, self._pictures = Path(path), short_side, pictures
        self._frame_rate, self._known = frame_rate, stamps
        self._wanted = None if wanted is None else [int(index) for index in wanted]
        self._scaler = VideoReformatter()
        self._reset()

    def _reset(self) -> None:
        self.damaged, self.decoded, self.broken_off = 0, 0, False
        self.source_height = self.source_width = 0
        self._format: str | None = None
        self._turns, self._uniform = 0, True
        self.stamps: np.ndarray | None = None
        self.header: Header | None = None

    def __iter__(self) -> Iterator[tuple[float, np.ndarray | None]]:
        given = 0
        if self._wanted == []:
            return
        if self._known is not None and self._wanted:
            try:
                for given, item in enumerate(self._sought(), start=1):
                    yield item
            except UnreadableClip:  # a seek that goes wrong, or the clip; the other way tells
                pass
            if given == len(self._wanted):
                return
        for number, item in enumerate(self._from_start()):
            if number >= given:
                yield item

    def _from_start(self) -> Iterator[tuple[float, np.ndarray | None]]:
        source, index, stamps = self._open(), -1, []
        wanted = None if self._wanted is None else frozenset(self._wanted)
        for index, (time_s, stamped) in enumerate(one_per_tick(self._timed(source))):
            if wanted is None or index in wanted:
                stamps.append(stamped.stamp)
                yield time_s, self._picture(stamped.frame)
            if wanted is not None and index >= self._wanted[-1]:
                break
        self._note(source, stamps if source.sound and self._uniform else None)
        if index < 0 and source.oversized:
            raise self._unreadable(f"its frames have more than {MAX_PIXELS:,} pixels", "huge")
        if index < 0:
            raise self._unreadable("no frame in it could be decoded")

    def _timed(self, source: VideoFile | FrameFolder) -> Iterator[tuple[float, Stamped]]:
        first_s = time_s = None
        for stamped in self._counted(source.frames()):
            next_s = 0.0 if time_s is None else time_s + source.step_s
            if stamped.time_s is None:
                time_s = next_s
            else:
                first_s = stamped.time_s - next_s if first_s is None else first_s
                stamped_s = stamped.time_s - first_s
                time_s = stamped_s if time_s is None or stamped_s > time_s else next_s
            yield time_s, stamped

    def _sought(self) -> Iterator[tuple[float, np.ndarray | None]]:
        """The wanted frames by their stamps, as far as they are found; each that is given is the right one."""
        source, stamps = self._open(), [int(self._known[index]) for index in self._wanted]
        seek_to, number = (stamps[0] if self._wanted[0] >= SEEK_FROM else None), 0
        for stamped in self._counted(source.frames(seek_to, frozenset(stamps))):
            first = self.decoded == 1
            lost = stamped.stamp is None or stamped.stamp > stamps[number] or (first and not stamped.frame.key_frame)
            if lost or not source.sound:
                break  # what it, or a frame after it, builds on may be missing
            if stamped.stamp == stamps[number]:
                yield source.time_s(stamps[number]) - source.time_s(int(self._known[0])), self._picture(stamped.frame)
                number += 1
            if number == len(stamps):
                break
        self._note(source, stamps)

    def _open(self) -> VideoFile | FrameFolder:
        self._reset()
        return FrameFolder(self.path, self._frame_rate) if self.path.is_dir() else VideoFile(self.path)

    def _counted(self, frames: Iterator[Stamped]) -> Iterator[Stamped]:
        first = None
        for stamped in frames:
            frame = stamped.frame
            shape = (frame.height, frame.width, _quarter_turns(frame))
            if first is None:
                check_size(frame.height, frame.width, str(self.path))
                first, self._format, self._turns = shape, frame.format.name, shape[2]
                self.source_height, self.source_width = shape[:2] if self._turns % 2 == 0 else shape[1::-1]
            self._uniform = self._uniform and shape == first
            self.decoded += 1
            yield stamped

    def _note(self, source: VideoFile | FrameFolder, stamps: list[int] | None) -> None:
        self.damaged, self.broken_off = source.damaged, source.broken_off
        self.header = replace(source.header, pixel_format=self._format, rotation=self._turns * 90)
        self.stamps = None if stamps is None else np.array(stamps, dtype=np.int64)

    def _picture(self, frame: av.VideoFrame) -> np.ndarray | None:
        if not self._pictures:
            return None
        turns = _quarter_turns(frame)
        height, width = stored_size(self.source_height, self.source_width, self.short_side)
        if turns % 2:
            height, width = width, height
        try:
            rgb = self._scaler.reformat(frame, width, height, "rgb24", interpolation=Interpolation.BILINEAR)
            return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), turns))
        except (av.FFmpegError, ValueError) as error:
            raise self._unreadable(f"its frames cannot be converted: {error}") from error

    def _unreadable(self, reason: str, kind: str = "corrupt") -> UnreadableClip:
        return UnreadableClip(reason, where=str(self.path), kind=kind)


def _quarter_turns(frame: av.VideoFrame) -> int:
    """How often a frame is to be turned by 90 degrees, counter-clockwise as np.rot90 counts."""
    return round(frame.rotation / 90) % 4
