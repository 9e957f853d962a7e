"""Measure clips by decoding them, and count what was measured: lengths, rates, sizes, and the limits to a search."""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import av
import numpy as np

from expand.config.schema import DataConfig
from expand.data.frames.clip_files import UnreadableClip
from expand.data.frames.content import file_state
from expand.data.frames.decode import ClipReader
from expand.data.sources.clip import SPLITS, ClipList
from expand.processes import died_of, process_map
from expand.rundir.files import cannot_write
from expand.space.factors import REFERENCE_FPS
from expand.version import __version__

logger = logging.getLogger(__name__)

SMALL_SIDE = 32
"""Short side of the pictures whose content is compared, pixels."""
SKETCH = 4
"""Frames that a clip's content is computed from."""
MOST_FRAMES = 2 ** 31 - 1
"""Largest frame count of a header that a row can hold."""
NEAR = 0.05
"""Share by which the measured rate may differ from the header's without being counted as different."""

CLIP = np.dtype([("readable", bool), ("frames", "i4"), ("length_s", "f8"), ("fps", "f4"), ("height", "i4"),
                 ("width", "i4"), ("decoded", "i4"), ("damaged", "i4"), ("broken_off", bool),
                 ("announced_frames", "i4"), ("announced_s", "f4"), ("jumps", "i4"), ("jumped_s", "f8"),
                 ("content", "u8")])
"""A row of measurements of a clip: frames (at most 30 a second are taken), time from the first to the last, the
source's frames a second and upright size; frames that were decoded, packets that could not be, true if the container
breaks off, the frames and seconds that its header announces (0: nothing); number and sum of its clock's jumps; and its
content (the same number for the same pictures)."""


@dataclass(frozen=True)
class Failure:
    """The reason why a clip cannot be read; `kind` is that of `UnreadableClip`."""

    kind: str
    reason: str


class MeasurementFile:
    """The file `path` with the rows of `dtype` that an unfinished check has measured.

    It has one line for each clip, each written in one piece. A torn or foreign line is ignored; a clip that changed
    since, or whose line is lost, is measured again. A file of other versions or `settings` is started anew. Raises
    `RunError` if it cannot be written.
    """

    def __init__(self, path: Path, dtype: np.dtype, settings: Any) -> None:
        self.path = path
        self._head = json.dumps([__version__, av.__version__, str(dtype), settings])
        try:
            first = None
            with suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
                first = file.readline().rstrip("\n")
            if first != self._head:
                path.write_text(self._head + "\n", encoding="utf-8")
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed at the end of the check
            self._file.write(b"\n")  # a torn last line must not spoil the next one
        except OSError as error:
            raise cannot_write(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()
        if error is None:
            self.path.unlink(missing_ok=True)

    def add(self, clip: Path, row: tuple[Any, ...]) -> None:
        """Write the row of a clip."""
        with suppress(OSError, UnreadableClip):  # on a full disk only the row is lost, and the clip measured again
            line = json.dumps([str(clip), file_state(clip), row], default=lambda number: number.item())
            self._file.write(line.encode() + b"\n")

    def recall(self, places: dict[str, int], table: np.ndarray) -> np.ndarray:
        """Fill in the known rows of `table`, with the clips at `places`; return them as a mask."""
        known = np.zeros(len(table), dtype=bool)
        with open(self.path, "rb") as lines:
            next(lines)
            for line in lines:
                with suppress(ValueError, TypeError, OverflowError, RecursionError, OSError, UnreadableClip):
                    clip, state, row = json.loads(line)
                    place = places.get(clip)
                    if place is not None and file_state(Path(clip)) == state:
                        table[place] = np.array(tuple(row), table.dtype)  # in one piece, or not at all
                        known[place] = True
        return known


def measure_all(paths: Sequence[Path], config: DataConfig, workers: int, measurements: Path,
                progress: Callable[[int, int], None]) -> tuple[np.ndarray, dict[int, Failure]]:
    """Return a row of `CLIP` for each of `paths`, and the failures by their place in `paths`.

    Clips are decoded in other processes: one that crashes the decoder or hangs is a failure like any other. The file
    `measurements` exists during the call; after an interruption, the next call measures only the rest.
    """
    table = np.zeros(len(paths), CLIP)
    failures: dict[int, Failure] = {}
    with MeasurementFile(measurements, CLIP, config.frame_rate) as file:
        known = file.recall({str(path): place for place, path in enumerate(paths)}, table)
        if done := int(known.sum()):
            logger.info(f"going on with a check that was interrupted: {done:,} of {len(paths):,} clips are done")
        todo = np.flatnonzero(~known).tolist()
        outcomes = process_map(measure, config.frame_rate, [paths[place] for place in todo], workers,
                               timeout_s=config.timeout_s,
                               died=lambda path, reason: Failure(died_of(reason), reason))
        # a generator, which an interruption must close at once to end its processes
        with closing(cast(Generator[Any, None, None], outcomes)):
            for place, outcome in zip(todo, outcomes, strict=True):
                if isinstance(outcome, Failure):
                    failures[place] = outcome
                else:
                    table[place] = outcome
                    file.add(paths[place], outcome)
                done += 1
                progress(done, len(paths))
    return table, failures


def measure(frame_rate: float, path: Path) -> tuple[Any, ...] | Failure:
    """Return the row of `CLIP` of one clip; `frame_rate` is that of folders of frames."""
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
    """Return the measured frames a second, or the header's if that agrees, frames are lost, or there is one frame only;
    0 if unknown."""
    if decoded < 2 or not length_s:
        return announced or 0.0
    measured = (decoded - 1) / length_s
    return announced if announced and (damaged or abs(announced - measured) < NEAR * measured) else measured


class Sketch:
    """The content of a clip as a number, from the few of its reduced pictures that have the lowest hashes.

    The same stream in another container decodes to the same pictures. Only, its rounded times may make the thinning to
    30 frames a second take some other frames; a few pictures selected by content are seldom among these.
    """

    def __init__(self) -> None:
        self._lowest: list[bytes] = []

    def add(self, frame_HWC: np.ndarray) -> None:
        """Add a picture, H x W x 3 uint8."""
        hashed = blake2b(np.ascontiguousarray(frame_HWC).data, digest_size=8).digest()
        if hashed not in self._lowest:
            self._lowest = heapq.nsmallest(SKETCH, (*self._lowest, hashed))

    @property
    def content(self) -> int:
        """The number, 64 bits."""
        return int.from_bytes(blake2b(b"".join(self._lowest), digest_size=8).digest(), "little")


def same_contents(table: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the places of clips with the same content, two or more at a time: the same pictures, about as many."""
    readable = np.flatnonzero(table["readable"])
    order = readable[np.lexsort((table["frames"][readable], table["content"][readable]))]
    content, frames = table["content"][order], table["frames"][order].astype(float)
    new = (content[1:] != content[:-1]) | (frames[1:] > 1.05 * frames[:-1])
    for group in np.split(order, np.flatnonzero(new) + 1):
        if len(group) > 1:
            yield np.sort(group)


def by_class_and_split(listed: ClipList, table: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of every class in every split, {class: {split: figures}}, and of every split."""
    labels = np.array([clip.label for clip in listed.clips])
    splits = np.array([SPLITS.index(clip.split) for clip in listed.clips])
    present = [(number, split) for number, split in enumerate(SPLITS) if (splits == number).any()]
    order = np.lexsort((splits, labels))
    key = labels[order] * len(SPLITS) + splits[order]
    starts = np.searchsorted(key, np.arange(len(listed.classes) * len(SPLITS) + 1))
    classes = {name: {split: figures(table[order[slice(*starts[label * len(SPLITS) + number:][:2])]])
                      for number, split in present}
               for label, name in enumerate(listed.classes)}
    return classes, {split: figures(table[splits == number]) for number, split in present}


def figures(table: np.ndarray) -> dict[str, Any]:
    """Return counts, and {"min", "median", "max"} of length (seconds), source's frames a second and size (pixels), over
    the clips that can be read; None without such clips."""
    readable = table[table["readable"]]
    short = np.minimum(readable["height"], readable["width"])
    return {"clips": len(table), "unreadable": len(table) - len(readable), "length_s": _spread(readable["length_s"]),
            "fps": _spread(readable["fps"][readable["fps"] > 0]), "short_side": _spread(short),
            "height": _spread(readable["height"]), "width": _spread(readable["width"])}


def _spread(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    return {"min": _round(values.min()), "median": _round(np.median(values)), "max": _round(values.max())}


def _round(value: Any) -> float | int:
    """`value` with three decimals, or as a whole number."""
    rounded = round(float(value), 3)
    return int(rounded) if rounded.is_integer() else rounded


def search_limits(table: np.ndarray, kept: np.ndarray, median_s: float | None, config: DataConfig) -> dict[str, Any]:
    """Return the largest settings of a search that the clips support: {"clip_s", "frames", "resolution", "fps"}, each
    None if unknown.

    `clip_s`: the default of `search.limits.clip_s` for these clips, seconds. `frames`: most different frames in such a
    clip (no more than 30 a second are taken). `resolution`: largest crop, pixels, that the median clip's short side
    fills without being enlarged. `fps`: median of the sources' frames a second.
    """
    clips = table[kept]
    rates = clips["fps"][clips["fps"] > 0]
    fps = float(np.median(rates)) if len(rates) else None
    short = np.median(np.minimum(clips["height"], clips["width"])) if len(clips) else None
    frames = None if median_s is None or fps is None else int(median_s * min(fps, REFERENCE_FPS) + 1e-3) + 1
    return {"clip_s": None if median_s is None else round(median_s, 6), "frames": frames,
            "resolution": None if short is None else int(short / max(8 / 7, config.jitter_min) + 1e-6),
            "fps": None if fps is None else _round(fps)}
