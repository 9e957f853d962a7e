"""An estimate of the disk space that the decoded frames of a set will take, from a sample of its clips' headers."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from expand.data.frames.cache import FrameCache
from expand.data.frames.decode import ClipReader, UnreadableClip
from expand.data.sources import Clip
from expand.processes.pool import process_map
from expand.space.factors import REFERENCE_FPS

LOOKED_AT, PROBED, DECODED = 2000, 200, 5
"""The largest numbers of clips that are looked up in the cache, opened, and decoded if their headers say nothing."""
HASHED_BYTES = 1 << 25
"""Files larger than this that the memo does not know are taken for new, rather than read to find out."""
LEAST_FRAME_BYTES = 16
"""Bytes of the file for each frame: a header that leaves less is not believed. A still picture takes about this."""


class _Probe(NamedTuple):
    """The bytes that a clip will add to the cache: in all (None: unknown), and for each frame."""

    total: float | None
    each: float


NOTHING = _Probe(0.0, 0.0)


def estimate_bytes(cache: FrameCache, clips: Sequence[Clip], short_side: int, workers: int) -> float:
    """Return about how many bytes of frames will be added to `cache` for those of `clips` that it does not have yet.

    A sample, the same for the same clips, stands for all. Clips are opened in child processes; those that crash the
    decoder count as nothing.
    """
    draw = random.Random(0)
    seen = draw.sample(clips, min(len(clips), LOOKED_AT))
    missing = [clip for clip in seen if not cache.has(clip.path, short_side)]
    sample = draw.sample(missing, min(len(missing), PROBED))
    if not sample:
        return 0.0
    state, timeout_s = (cache, short_side), cache.timeout_s
    probes = list(process_map(_probe, state, sample, workers, timeout_s=timeout_s,
                              died=lambda clip, reason: NOTHING))
    silent = [clip for clip, probe in zip(sample, probes, strict=True) if probe.total is None]
    counts = list(process_map(_count_frames, state, silent[:DECODED], workers, timeout_s=timeout_s,
                              died=lambda clip, reason: 0))
    usual = statistics.mean(counts) if counts else 0.0
    totals = [usual * probe.each if probe.total is None else probe.total for probe in probes]
    return statistics.mean(totals) * len(missing) / len(seen) * len(clips)


def _probe(state: tuple[FrameCache, int], clip: Clip) -> _Probe:
    cache, short_side = state
    frame_bytes = 0.0
    try:
        is_small = clip.path.is_dir() or clip.path.stat().st_size <= HASHED_BYTES
        if is_small and cache.has(clip.path, short_side, hash_it=True):  # under another name, which the memo lacks
            return NOTHING
        reader = ClipReader(clip.path, short_side, wanted=[0], frame_rate=cache.frame_rate)
        for _, frame_HWC in reader:
            frame_bytes = float(frame_HWC.nbytes)
        most_frames = math.inf if clip.path.is_dir() else clip.path.stat().st_size / LEAST_FRAME_BYTES
    except (UnreadableClip, OSError):
        return NOTHING
    header = reader.header
    frames: float | None = header.frames
    if header.duration_s is not None:
        frames = frames or (header.fps and header.duration_s * header.fps)
        frames = frames and min(frames, header.duration_s * REFERENCE_FPS + 1)
    return _Probe(frame_bytes * frames if frames and 0 < frames <= most_frames else None, frame_bytes)


def _count_frames(state: tuple[FrameCache, int], clip: Clip) -> int:
    cache, short_side = state
    try:
        return sum(1 for _ in ClipReader(clip.path, short_side, frame_rate=cache.frame_rate, pictures=False))
    except UnreadableClip:
        return 0
