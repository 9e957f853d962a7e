"""What a network says about files: their class, and how it changes along them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expand.data.loading.sampling import clip_frames, view_starts_s, window_starts_s
from expand.data.loading.transforms import normalise, resize
from expand.errors import DataError, UsageError, explain_device_faults
from expand.inference.loaded_network import check_finite, load_on_device
from expand.inference.options import check_window
from expand.inference.windows import centre_clips, frame_times
from expand.model import X3D
from expand.model.folded_batch_norm import FoldedX3D, for_inference
from expand.processes.child import Child
from expand.space.factors import REFERENCE_FPS, Factors
from expand.space.geometry import evaluation_crop
from expand.space.network import Network
from expand.training.evaluate import probabilities_of
from expand.training.runtime import Runtime

MOST_CLIPS = 1_000_000
"""Clips that can be taken from one file: more are a window or a hop that was not meant, and would take days."""
BATCH = 8
"""Clips that go through the network at once."""
SHORTEST_WINDOW_S = 1.0
"""Shortest default window, seconds: a network of one frame, or of a few close ones, would give a flicker."""


def predict_files(source: str | Path, videos: Sequence[str | Path], *, top: int, views: int, timeline: bool,
                  window_s: float | None, hop_s: float | None, weights: str | Path | None, device: str,
                  threads: int | None, report: Callable[[dict[str, Any]], None],
                  progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Name the classes of each file, as `expand.predict` says.

    Returns {"network", "classes", "files": [{"path", "length_s", "damaged", "clock_jumps", "predictions", "timeline"?,
    "error"?}]} in the order of `videos`. Predictions are [{"class", "label", "probability"}], best first; "class" is
    the label's number where the names are not known. A timeline is [{"start_s", "end_s", "predictions"}]. "damaged"
    counts packets that could not be decoded, "clock_jumps" places where the time stamps were not followed
    (docs/data.md, "What is read"). A file that cannot be read has "error", the reason, and no predictions.
    """
    model, runtime = load_on_device(source, weights, device, threads)
    network = model.description
    windows = Windows.of(network.factors, window_s, hop_s) if timeline else None
    files, answering = [], for_inference(model, runtime.autocast_dtype)
    with Child() as child:
        for video in videos:
            files.append(_answer(_Asked(Path(video), answering, network, runtime, views, windows, progress, child),
                                 top))
            report(files[-1])
    return {"network": network.name, "classes": network.classes, "files": files}


@dataclass(frozen=True)
class Windows:
    """A window of `window_s` seconds that moves on by `hop_s`."""

    window_s: float
    hop_s: float
    shortest_s: float
    """Part of a window that a clip is taken from, seconds."""

    @classmethod
    def of(cls, factors: Factors, window_s: float | None, hop_s: float | None) -> Windows:
        """The windows asked for, for a network of `factors`. Raises `UsageError` for impossible ones."""
        check_window(window_s, hop_s)
        shortest = max(factors.span_s, SHORTEST_WINDOW_S)
        window_s = shortest if window_s is None else window_s
        hop_s = window_s / 2 if hop_s is None else hop_s
        least = max(factors.span_s, 1 / REFERENCE_FPS)
        if window_s < least - 1e-3:
            raise UsageError(f"a window of {window_s:g} s", where="--window",
                             fix=f"it is at least {least:.3f} s long, the span of the network's clip")
        if hop_s > window_s:
            raise UsageError(f"a hop of {hop_s:g} s", where="--hop",
                             fix=f"it is at least 1/{REFERENCE_FPS} s and at most the window, {window_s:g} s")
        return cls(window_s, hop_s, shortest)

    def over(self, length_s: float) -> list[tuple[float, float]]:
        """(start, end) of the windows over a file, seconds."""
        return [(start_s, min(start_s + self.window_s, length_s))
                for start_s in window_starts_s(length_s, self.window_s, self.hop_s).tolist()]

    def views(self, length_s: float) -> int:
        """Clips taken from each window of a file: one, and more from a window that holds several."""
        return max(1, math.ceil(min(self.window_s, length_s) / self.shortest_s - 1e-9))

    def check(self, length_s: float) -> None:
        """Raises `DataError` where windows over a file would be too many."""
        clips = (max(0.0, length_s - self.window_s) / self.hop_s + 1) * self.views(length_s)
        if clips > MOST_CLIPS:
            raise DataError(f"a timeline of its {length_s:,.0f} s would take {clips:,.0f} clips, more than "
                            f"{MOST_CLIPS:,}: --hop is too short for it")


@dataclass(frozen=True)
class _Asked:
    """A file and what is asked about it."""

    path: Path
    model: X3D | FoldedX3D
    network: Network
    runtime: Runtime
    views: int
    windows: Windows | None
    progress: Callable[[int, int], None]
    child: Child
    """Where files are decoded."""


def _answer(asked: _Asked, top: int) -> dict[str, Any]:
    answer: dict[str, Any] = {"path": str(asked.path), "length_s": None, "damaged": 0, "clock_jumps": 0,
                              "predictions": []}
    try:
        times_s, stamps, answer["damaged"], answer["clock_jumps"] = asked.child.call(frame_times, asked.path)
        length_s = answer["length_s"] = float(times_s[-1])
        if asked.windows:
            asked.windows.check(length_s)
        spans = asked.windows.over(length_s) if asked.windows else []
        best = {part: _best(scores_K, asked.network, top)
                for part, scores_K in _mean_scores(asked, times_s, stamps, spans)}
    except DataError as error:
        return {**answer, "error": error.what}
    answer["predictions"] = best[0]
    if asked.windows:
        answer["timeline"] = [{"start_s": start_s, "end_s": end_s, "predictions": best[number]}
                              for number, (start_s, end_s) in enumerate(spans, start=1)]
    return answer


def _mean_scores(asked: _Asked, times_s: np.ndarray, stamps: np.ndarray | None,
                 spans: Sequence[tuple[float, float]]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (part, mean class probabilities) as the parts are complete: 0 is the whole file, the windows follow."""
    factors, length_s = asked.network.factors, float(times_s[-1])
    starts_s = [view_starts_s(length_s, factors.span_s, asked.views)]
    if asked.windows:
        views = asked.windows.views(length_s)
        starts_s += [start_s + view_starts_s(end_s - start_s, factors.span_s, views) for start_s, end_s in spans]
    part_N = np.repeat(np.arange(len(starts_s)), [len(starts) for starts in starts_s])
    start_N = np.concatenate(starts_s)
    order_N = np.argsort(start_N, kind="stable")
    index_NT = np.stack([clip_frames(times_s, start_s, factors.frames, factors.stride) for start_s in start_N[order_N]])
    clips = asked.child.stream(centre_clips, asked.path, evaluation_crop(factors.resolution), index_NT, stamps)
    sums: dict[int, np.ndarray] = {}
    left = np.bincount(part_N)
    for done, (part, scores_K) in enumerate(zip(part_N[order_N].tolist(), _scores(asked, clips), strict=True), start=1):
        sums[part] = sums.get(part, 0.0) + scores_K
        left[part] -= 1
        if not left[part]:
            yield part, sums.pop(part) / len(starts_s[part])
        asked.progress(done, len(order_N))


def _scores(asked: _Asked, clips: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield class probabilities of each of `clips` (T x H x W x 3 uint8, square)."""
    network, clips = asked.network, iter(clips)
    side = evaluation_crop(network.factors.resolution)
    while some := list(islice(clips, BATCH)):
        clips_BTHWC = torch.stack([resize(torch.from_numpy(clip_THWC), side) for clip_THWC in some])
        with explain_device_faults(), torch.inference_mode():
            scores_BK = probabilities_of(asked.model, normalise(clips_BTHWC, network.mean, network.std), asked.runtime)
        check_finite(scores_BK, network)
        yield from scores_BK.numpy()


def _best(scores_K: np.ndarray, network: Network, top: int) -> list[dict[str, Any]]:
    """The `top` classes, best first."""
    names = network.class_names or range(network.classes)
    return [{"class": str(names[label]), "label": label, "probability": float(scores_K[label])}
            for label in np.argsort(-scores_K, kind="stable")[:top].tolist()]
