"""The reader of a clip's frames, with PyAV: upright RGB at a bounded size, with their times from the stream.

One decoder and one scaler serve everything, as decoders differ from one another by some grey levels. A damaged clip is
read as far as it decodes; one without a single good frame is an `UnreadableClip`.
docs/decisions/009-decoder.md has the reasons and the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from expand.data.frames.clip_files import MAX_PIXELS, NO_HEADER, FrameFolder, UnreadableClip, VideoFile, check_size
from expand.data.frames.presentation import SQUARE, UPRIGHT, Stamped, one_per_tick, shown_size, turn_upright

SEEK_FROM = 2
"""The first frame that is reached faster with a seek than by decoding from the start."""
NO_PICTURE = np.empty((0, 0, 3), dtype=np.uint8)


def stored_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (height, width) of a frame once its short side is at most `short_side`; never enlarged, aspect kept."""
    short = min(height, width)
    if short <= short_side:
        return height, width
    return max(1, round(height * short_side / short)), max(1, round(width * short_side / short))


class ClipReader:
    """The frames of one clip, a video file or a folder of pictures: an iterable of (time, frame).

    Times are seconds from the first frame. They are the stream's presentation times (right for variable rates) as far
    as these can be believed (`Clock`); those of AVI, which are in the order of decoding, are sorted. At most one frame
    for each tick of 1/30 s is given (`one_per_tick`). A frame is an H x W x 3 uint8 array with square pixels, mirrored
    and turned upright as the file says; without `pictures` it is `NO_PICTURE`. The pictures of a folder are
    `frame_rate` a second.

    With `wanted`, only the frames with these ascending indices are converted and given, and reading stops after the
    last of them. With the `stamps` of an earlier reading too, it starts at the key frame before the first of them.
    Neither changes a bit of what is given. Raises `UnreadableClip` if no frame can be decoded.

    These attributes are set after an iteration:

    - `damaged`: packets or pictures that could not be decoded without an error.
    - `decoded`: frames that the others gave, before the thinning.
    - `broken_off`: the container could not be read to its end.
    - `source_height`, `source_width`: those of the upright source, with square pixels.
    - `jumps`, `jumped_s`: jumps of the clock, and their sum in seconds.
    - `header`: the properties that the clip's header claims.
    - `stamps`: presentation stamps of the given frames, one each (int64). None where they would not lead to the same
      frames and times again: stamps that are missing, out of order or of a clock that jumps; a damaged clip, whose
      frames are patched up from those before; a clip whose frames' size or orientation changes.
    """

    def __init__(self, path: Path, short_side: int, wanted: Sequence[int] | None = None, *, frame_rate: float = 30.0,
                 stamps: np.ndarray | None = None, pictures: bool = True) -> None:
        self.path, self.short_side, self._pictures = Path(path), short_side, pictures
        self._frame_rate, self._known_stamps = frame_rate, stamps
        self._wanted = None if wanted is None else [int(index) for index in wanted]
        self._scaler = VideoReformatter()
        self._reset()

    def _reset(self) -> None:
        self.damaged, self.decoded, self.broken_off = 0, 0, False
        self.source_height = self.source_width = 0
        self._format: str | None = None
        self._orientation, self._aspect, self._uniform = UPRIGHT, SQUARE, True
        self.jumps, self.jumped_s = 0, 0.0
        self.stamps: np.ndarray | None = None
        self.header = NO_HEADER

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        wanted, stamps = self._wanted, self._known_stamps
        if wanted is not None and not wanted:
            return
        given = 0
        if wanted and stamps is not None:
            try:
                for item in self._seek(wanted, stamps):
                    given += 1
                    yield item
            except UnreadableClip:  # the seek went wrong, or the clip is bad: reading from the start decides
                pass
            if given == len(wanted):
                return
        for number, item in enumerate(self._read_from_start(wanted)):
            if number >= given:
                yield item

    def _read_from_start(self, wanted: list[int] | None) -> Iterator[tuple[float, np.ndarray]]:
        source, index, stamps = self._open(), -1, []
        clock = source.clock()
        is_wanted = None if wanted is None else frozenset(wanted)
        for index, (time_s, stamped) in enumerate(one_per_tick(clock.add_times(self._check_frames(source.frames())))):
            if is_wanted is None or index in is_wanted:
                stamps.append(stamped.stamp)
                yield time_s, self._picture(stamped)
            if wanted is not None and index >= wanted[-1]:
                break
        self.jumps, self.jumped_s = clock.jumps, clock.jumped_s
        self._finish(source, stamps if source.sound and self._uniform and not clock.jumps else None)
        if index < 0 and source.oversized:
            raise self._unreadable(f"its frames have more than {MAX_PIXELS:,} pixels", "huge")
        if index < 0:
            raise self._unreadable("no frame in it could be decoded")

    def _seek(self, wanted: list[int], known_stamps: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """Yield the wanted frames by their stamps as far as they are found; each one that is given is the right one."""
        source, stamps = self._open(), known_stamps[wanted].tolist()
        seek_to, number = (stamps[0] if wanted[0] >= SEEK_FROM else None), 0
        for stamped in self._check_frames(source.frames(seek_to, frozenset(stamps))):
            first = self.decoded == 1
            lost = stamped.stamp is None or stamped.stamp > stamps[number] or (first and not stamped.frame.key_frame)
            if lost or not source.sound:
                break  # a frame that this one or a later one builds on may be missing
            if stamped.stamp == stamps[number]:
                yield source.time_s(stamps[number]) - source.time_s(int(known_stamps[0])), self._picture(stamped)
                number += 1
            if number == len(stamps):
                break
        self._finish(source, stamps)

    def _open(self) -> VideoFile | FrameFolder:
        self._reset()
        return FrameFolder(self.path, self._frame_rate) if self.path.is_dir() else VideoFile(self.path)

    def _check_frames(self, frames: Iterator[Stamped]) -> Iterator[Stamped]:
        """Yield the frames, count them, and note the size and orientation of the first and whether others differ."""
        first = None
        for stamped in frames:
            frame = stamped.frame
            shape = (frame.height, frame.width, stamped.aspect, stamped.orientation)
            if first is None:
                check_size(frame.height, frame.width, str(self.path))
                first, self._format = shape, frame.format.name
                self._aspect, self._orientation = shape[2:]
                self.source_height, self.source_width = shown_size(*shape)
                check_size(self.source_height, self.source_width, str(self.path))
            self._uniform = self._uniform and shape == first
            self.decoded += 1
            yield stamped

    def _finish(self, source: VideoFile | FrameFolder, stamps: list[int | None] | None) -> None:
        self.damaged, self.broken_off = source.damaged, source.broken_off
        self.header = replace(source.header, pixel_format=self._format,
                              rotation=self._orientation.quarter_turns * 90, mirrored=self._orientation.mirrored,
                              pixel_aspect=float(self._aspect))
        self.stamps = None if stamps is None else np.array(stamps, dtype=np.int64)

    def _picture(self, stamped: Stamped) -> np.ndarray:
        if not self._pictures:
            return NO_PICTURE
        height, width = stored_size(self.source_height, self.source_width, self.short_side)
        if stamped.orientation.quarter_turns % 2:
            height, width = width, height
        try:
            rgb = self._scaler.reformat(stamped.frame, width, height, "rgb24", interpolation=Interpolation.BILINEAR)
            return turn_upright(rgb.to_ndarray(), stamped.orientation)
        except (av.FFmpegError, ValueError) as error:
            raise self._unreadable(f"its frames cannot be converted: {error}") from error

    def _unreadable(self, reason: str, kind: str = "corrupt") -> UnreadableClip:
        return UnreadableClip(reason, where=str(self.path), kind=kind)
