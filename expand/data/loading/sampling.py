"""The rules of sampling: which frames a clip gives, in seconds from its first frame.

A network's temporal stride counts frames of a 30 fps source (paper, section 3.1), so a stride is a multiple of 1/30 s
whatever the source's own rate: a clip of `frames` frames at `stride` covers the same time at 25, 30 or variable fps.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from expand.space.factors import REFERENCE_FPS

Seconds = TypeVar("Seconds", float, np.ndarray)
"""Those of one clip, or of several."""


def random_start_s(length_s: Seconds, span: float, draw: Seconds) -> Seconds:
    """Return the start of a training clip, uniform over all that fit into `length_s`, or 0 if none fits.

    `draw` is in [0, 1).
    """
    return draw * np.maximum(0.0, length_s - span)


def view_starts_s(length_s: float, span: float, views: int) -> np.ndarray:
    """Return the starts of `views` evaluation clips, uniform from the first to the last that fits; one is central."""
    return view_start_s(np.array(length_s), span, np.arange(views), views)


def view_start_s(length_s: np.ndarray, span: float, view: np.ndarray, views: int) -> np.ndarray:
    """Return the starts of the evaluation clips `view` of `views`, each of a video of `length_s`."""
    slack = np.maximum(0.0, length_s - span)
    if views == 1:
        return slack / 2 + 0.0 * view
    return np.where(view == views - 1, slack, view * (slack / (views - 1)))


def window_starts_s(length_s: float, window_s: float, hop_s: float) -> np.ndarray:
    """Return the starts of windows `hop_s` apart that cover a file of `length_s`; the last one ends with it.

    A file that is no longer than a window gives one, at 0.
    """
    slack = max(0.0, length_s - window_s)
    starts_s = np.arange(int(slack / hop_s + 1e-9) + 1) * hop_s
    return starts_s if slack - starts_s[-1] < 1e-6 else np.append(starts_s, slack)


def nearest_frames_of(times_s: Sequence[np.ndarray], wanted_NT: np.ndarray) -> np.ndarray:
    """Return the index of the frame nearest to each of T wanted times, for N clips: N x T.

    Of two at the same distance it is the earlier one. The times of a clip ascend; times before its first frame give the
    first, times beyond its end the last. All steps but the search are done for all clips at once: with few frames a
    clip, each call costs time.
    """
    last_N1 = np.array([len(times) - 1 for times in times_s], dtype=np.intp)[:, None]
    after_NT = np.empty(wanted_NT.shape, dtype=np.intp)
    for times, wanted_T, after_T in zip(times_s, wanted_NT, after_NT, strict=True):
        after_T[:] = times.searchsorted(wanted_T)
    after_NT = np.minimum(np.maximum(after_NT, 1), last_N1)
    before_NT = np.maximum(after_NT - 1, 0)
    earlier_NT, later_NT = np.empty(wanted_NT.shape), np.empty(wanted_NT.shape)
    for row, times in enumerate(times_s):
        earlier_NT[row], later_NT[row] = times[before_NT[row]], times[after_NT[row]]
    return np.where(wanted_NT - earlier_NT <= later_NT - wanted_NT, before_NT, after_NT)


def clip_frames(times_s: np.ndarray, start_s: float, frames: int, stride: int) -> np.ndarray:
    """Return the indices of the frames at `start_s + i * stride / 30` for i < `frames`, never descending."""
    return clip_frames_of([times_s], np.array([start_s]), frames, stride)[0]


def clip_frames_of(times_s: Sequence[np.ndarray], start_N: np.ndarray, frames: int, stride: int) -> np.ndarray:
    """Return `clip_frames` of N clips: N x `frames`."""
    return nearest_frames_of(times_s, start_N[:, None] + np.arange(frames) * (stride / REFERENCE_FPS))


def median_length_s(clips: Iterable[tuple[str, float]]) -> float | None:
    """Return the median length in seconds of the train clips among pairs (split, seconds), of all clips if none is in
    train, None without clips. A search is fitted to this length."""
    pairs = list(clips)
    lengths_s = [length_s for split, length_s in pairs if split == "train"] or [length_s for _, length_s in pairs]
    return statistics.median(lengths_s) if lengths_s else None
