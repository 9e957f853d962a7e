"""What the decoded frames of a set will take on disk, from a sample of its clips' headers."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from expand.data.frames.cache import FrameCache
from expand.data.frames.decode import ClipReader, UnreadableClip
from expand.data.sources import Clip
from expand.processes.pool import process_map
from expand.space.factors import REFERENCE_FPS

LOOKED_AT, PROBED, DECODED = 2000, 200, 5
"""Clips that are at most looked up in the cache, opened, and decoded where their headers say nothing."""
HASHED_BYTES = 1 << 25
"""Larger files are taken for new, where the memo does not know them, rather than read to find out."""
LEAST_FRAME_BYTES = 16
"""A header that leaves less of the file to a frame is not believed. A picture that stands still takes about this."""


class _Probe(NamedTuple):
    """A clip's frames: how many bytes, or how many a frame where their number is not known."""

    total: float | None
    each: float


def estimate_bytes(cache: FrameCache, clips: Sequence[Clip], short_side: int, workers: int) -> float:
    """About how many bytes of frames will be added to `cache` for those of `clips` that it does not have yet.

    A sample, the same for the same clips, stands for all. Clips are opened in children: whatever they do to the
    decoder, they count as nothing.
    """
    draw = random.Random(0)
    seen = draw.sample(clips, min(len(clips), LOOKED_AT))
    missing = [clip for clip in seen if not cache.has(clip.path, short_side)]
    sample = draw.sample(missing, min(len(missing), PROBED))
    if not sample:
        return 0.0
    state, timeout_s = (cache, short_side), cache.timeout_s
    probes = list(process_map(_probe, state, sample, workers, timeout_s=timeout_s, died=_nothing))
    silent = [clip for clip, probe in zip(sample, probes) if probe.total is None]
    counts = list(process_map(_count, state, list(islice(silent, DECODED)), workers, timeout_s=timeout_s, died=_none))
    usual = statistics.mean(counts) if counts else 0.0
    totals = [usual * probe.each if probe.total is None else probe.total for probe in probes]
    return statistics.mean(totals) * len(missing) / len(seen) * len(clips)


def _probe(state: tuple[FrameCache, int], clip: Clip) -> _Probe:
    cache, short_side = state
    if _is_there(cache, clip.path, short_side):
        return _Probe(0.0, 0.0)
    reader = ClipReader(clip.path, short_side, wanted=[0], frame_rate=cache.frame_rate)
    try:
        for _, frame_HWC in reader:
            each = float(frame_HWC.nbytes)
        most = math.inf if clip.path.is_dir() else clip.path.stat().st_size / LEAST_FRAME_BYTES
    except (UnreadableClip, OSError):
        return _Probe(0.0, 0.0)
    header = reader.header
    frames = header.frames
    if header.duration_s is not None:
        frames = frames or (header.fps and header.duration_s * header.fps)
        frames = frames and min(frames, header.duration_s * REFERENCE_FPS + 1)
    return _Probe(each * frames if frames and 0 < frames <= most else None, each)


def _is_there(cache: FrameCache, path: Path, short_side: int) -> bool:
    """Whether the frames of a clip that the memo does not know are there under another name; it then knows it."""
    try:
        if not path.is_dir() and path.stat().st_size > HASHED_BYTES:
            return False
        cache.memo.content(path)
    except (OSError, UnreadableClip):
        return False
    return cache.has(path, short_side)


def _count(state: tuple[FrameCache, int], clip: Clip) -> int:
    cache, short_side = state
    try:
        return sum(1 for _ in ClipReader(clip.path, short_side, frame_rate=cache.frame_rate, pictures=False))
    except UnreadableClip:
        return 0


def _nothing(clip: Clip, reason: str) -> _Probe:
    return _Probe(0.0, 0.0)


def _none(clip: Clip, reason: str) -> int:
    return 0
