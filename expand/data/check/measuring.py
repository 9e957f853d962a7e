"""Every clip decoded once, for what a check needs to know of it: a row of numbers a clip, whatever the clip's size."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from expand.config.schema import DataConfig
from expand.data.check.unfinished import Unfinished
from expand.data.frames.decode import ClipReader, UnreadableClip
from expand.processes.child import died_of
from expand.processes.pool import process_map

SMALL_SIDE = 32
"""Short side of the pictures that contents are compared by, pixels."""
SKETCH = 4
"""Frames that stand for a clip's content."""
MOST_FRAMES = 2 ** 31 - 1
"""What a row can hold of a header's word."""
NEAR = 0.05
"""Share by which a rate may seem to differ from the header's, since the first and the last frame count as one."""

CLIP = np.dtype([("readable", bool), ("frames", "i4"), ("length_s", "f8"), ("fps", "f4"), ("height", "i4"),
                 ("width", "i4"), ("decoded", "i4"), ("damaged", "i4"), ("broken_off", bool),
                 ("announced_frames", "i4"), ("announced_s", "f4"), ("jumps", "i4"), ("jumped_s", "f8"),
                 ("content", "u8")])
"""What is known of a clip: frames (at most 30 a second are taken), time from the first to the last, the source's frames
a second and upright size; frames that were decoded, packets that could not be, whether the container breaks off, what
its header announces (0: nothing); how often and by how much its clock jumps; and its content (equal for equal
pictures)."""


@dataclass(frozen=True)
class Failure:
    """Why a clip gives nothing; `kind` is that of `UnreadableClip`."""

    kind: str
    reason: str


def measure_all(paths: Sequence[Path], config: DataConfig, workers: int, unfinished: Path,
                report: Callable[[str], None], progress: Callable[[int, int], None],
                ) -> tuple[np.ndarray, dict[int, Failure]]:
    """A row of `CLIP` for each of `paths`, and the failures by their place in `paths`.

    Each is decoded in another process: a clip that crashes the decoder or hangs is a failure like any other. The file
    `unfinished` is there while this goes on, or if it was interrupted: the next call then measures the rest.
    """
    table, failures = np.zeros(len(paths), CLIP), {}
    with Unfinished(unfinished, CLIP, config.frame_rate) as memory:
        known = memory.recall({str(path): place for place, path in enumerate(paths)}, table)
        if done := int(known.sum()):
            report(f"going on with a check that was interrupted: {done:,} of {len(paths):,} clips are done")
        todo = np.flatnonzero(~known).tolist()
        outcomes = process_map(measure, config.frame_rate, [paths[place] for place in todo], workers,
                               timeout_s=config.timeout_s, died=_died)
        with closing(outcomes):  # an interruption ends the processes at once
            for place, outcome in zip(todo, outcomes):
                if isinstance(outcome, Failure):
                    failures[place] = outcome
                else:
                    table[place] = outcome
                    memory.add(paths[place], outcome)
                done += 1
                progress(done, len(paths))
    return table, failures


def _died(path: Path, reason: str) -> Failure:
    return Failure(died_of(reason), reason)


def measure(frame_rate: float, path: Path) -> tuple | Failure:
    """The row of `CLIP` of one clip; `frame_rate` is that of folders of frames."""
    reader = ClipReader(path, SMALL_SIDE, frame_rate=frame_rate)
    sketch, frames, length_s = Sketch(), 0, 0.0
    try:
        for time_s, frame_HWC in reader:
            sketch.add(frame_HWC)
            frames, length_s = frames + 1, time_s
    except UnreadableClip as error:
        return Failure(error.kind, error.what)
    header = reader.header
    announced_fps = None if reader.jumps else header.fps  # FFmpeg makes it up from the length
    fps = source_fps(reader.decoded, length_s, announced_fps, bool(reader.damaged))
    return (True, frames, length_s, fps, reader.source_height, reader.source_width, reader.decoded, reader.damaged,
            reader.broken_off, min(header.frames or 0, MOST_FRAMES), header.duration_s or 0.0, reader.jumps,
            reader.jumped_s, sketch.content)


def source_fps(decoded: int, length_s: float, announced: float | None, damaged: bool) -> float:
    """Frames a second, as they came; the header's where that agrees, frames are lost, or one is all. 0: unknown."""
    if decoded < 2 or not length_s:
        return announced or 0.0
    came = (decoded - 1) / length_s
    return announced if announced and (damaged or abs(announced - came) < NEAR * came) else came


class Sketch:
    """The content of a clip in a number: of its pictures, made small, the few with the lowest hashes.

    The same stream in another container decodes to the same pictures, but where its rounded times make the thinning to
    30 frames a second take another frame here and there; a few that are drawn from all by their content seldom notice.
    """

    def __init__(self) -> None:
        self._lowest: list[bytes] = []

    def add(self, frame_HWC: np.ndarray) -> None:
        """One more picture, H x W x 3 uint8."""
        hashed = blake2b(frame_HWC, digest_size=8).digest()
        if hashed not in self._lowest:
            self._lowest = heapq.nsmallest(SKETCH, (*self._lowest, hashed))

    @property
    def content(self) -> int:
        """The number, of 64 bits."""
        return int.from_bytes(blake2b(b"".join(self._lowest), digest_size=8).digest(), "little")


def same_contents(table: np.ndarray) -> Iterable[np.ndarray]:
    """The places of clips with the same content, two or more at a time: the same pictures, about as many of them."""
    readable = np.flatnonzero(table["readable"])
    order = readable[np.lexsort((table["frames"][readable], table["content"][readable]))]
    content, frames = table["content"][order], table["frames"][order].astype(float)
    new = (content[1:] != content[:-1]) | (frames[1:] > 1.05 * frames[:-1])
    for group in np.split(order, np.flatnonzero(new) + 1):
        if len(group) > 1:
            yield np.sort(group)
