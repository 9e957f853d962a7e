"""Which frames a sampled clip takes: pure rules on the time axis, in seconds from the first frame.

A network's temporal stride counts frames of a 30 fps source (paper, section 3.1), so a stride is a multiple of 1/30 s
whatever the source's own rate: a clip of `frames` frames at `stride` covers the same time at 25, 30 or variable fps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from expand.space.factors import REFERENCE_FPS

Item = TypeVar("Item")


def span_s(frames: int, stride: int) -> float:
    """Time from the first to the last frame of a sampled clip, seconds."""
    return (frames - 1) * stride / REFERENCE_FPS


def random_start_s(length_s: float, span: float, draw: float) -> float:
    """Start of a training clip, uniform over all that fit into `length_s`; 0 where none fits. `draw` is in [0, 1)."""
    return draw * max(0.0, length_s - span)


def view_starts_s(length_s: float, span: float, views: int) -> np.ndarray:
    """Starts of `views` evaluation clips, uniform in time from the first to the last that fits; one: in the middle."""
    slack = max(0.0, length_s - span)
    return np.linspace(0.0, slack, views) if views > 1 else np.array([slack / 2])


def window_starts_s(length_s: float, window_s: float, hop_s: float) -> np.ndarray:
    """Starts of windows `hop_s` apart that cover a file of `length_s`: the last one ends with it. One, at 0, where the
    file is no longer than a window."""
    slack = max(0.0, length_s - window_s)
    starts_s = np.arange(int(slack / hop_s + 1e-9) + 1) * hop_s
    return starts_s if slack - starts_s[-1] < 1e-6 else np.append(starts_s, slack)


def nearest_frames(times_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """Index of the frame nearest to each wanted time; the earlier of two at the same distance.

    `times_s` ascends. Times before the first frame give the first, times beyond the end the last.
    """
    if len(times_s) == 1:
        return np.zeros(len(wanted_s), dtype=np.intp)
    after = np.minimum(np.maximum(times_s.searchsorted(wanted_s), 1), len(times_s) - 1)
    before = after - 1
    return np.where(wanted_s - times_s[before] <= times_s[after] - wanted_s, before, after)


def clip_frames(times_s: np.ndarray, start_s: float, frames: int, stride: int) -> np.ndarray:
    """Indices of the frames at `start_s + i * stride / 30` for i < `frames`, never descending."""
    return nearest_frames(times_s, start_s + np.arange(frames) * (stride / REFERENCE_FPS))


def one_per_tick(timed: Iterable[tuple[float, Item]]) -> Iterator[tuple[float, Item]]:
    """Thin a stream of (time, item) to at most one item a tick of 1/30 s: the one nearest to the tick.

    A 60 fps source gives every other frame; at 30 fps and below nothing is lost. Needs one item of memory.
    """
    held: tuple[float, Item] | None = None
    held_tick, held_offset = 0, 0.0
    for time_s, item in timed:
        tick = round(time_s * REFERENCE_FPS)
        offset = abs(time_s * REFERENCE_FPS - tick)
        if held is not None and tick != held_tick:
            yield held
            held = None
        if held is None or offset < held_offset:
            held, held_tick, held_offset = (time_s, item), tick, offset
    if held is not None:
        yield held
