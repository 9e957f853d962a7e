"""Predictions of a trained network: the classes of files, and of windows along them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expand.config import load_config
from expand.data.frames.decode import ClipReader
from expand.data.loading.sampling import clip_frames, view_starts_s, window_starts_s
from expand.data.loading.transforms import centre_box, normalise, resize
from expand.errors import DataError, RunError, UsageError, explain_device_faults
from expand.model import X3D
from expand.model.folded_batch_norm import FoldedX3D, for_inference
from expand.model.load import load_named
from expand.processes import Child
from expand.space.factors import REFERENCE_FPS, Factors
from expand.space.geometry import evaluation_crop
from expand.space.network import Network
from expand.training.evaluate import probabilities_of
from expand.training.runtime import Runtime, complaints, resolve_run

logger = logging.getLogger(__name__)

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
    the label's number if the names are not known. A timeline is [{"start_s", "end_s", "predictions"}]. "damaged"
    counts packets that could not be decoded, "clock_jumps" places where the time stamps were not followed
    (docs/data.md, "What is read"). A file that cannot be read has "error", the reason, and no predictions.
    """
    model, runtime = load_on_device(source, weights, device, threads)
    network, files = model.description, []
    windows = Windows.of(network.factors, window_s, hop_s) if timeline else None
    with Child() as child:
        predictor = Predictor(for_inference(model, runtime.autocast_dtype), network, runtime, child, progress)
        for video in videos:
            files.append(predictor.answer(Path(video), top, views, windows))
            report(files[-1])
    return {"network": network.name, "classes": network.classes, "files": files}


def load_on_device(source: str | Path, weights: str | Path | None, device: str,
                   threads: int | None) -> tuple[X3D, Runtime]:
    """Return the network of `source` on `device`: a run, a file with weights; or with `weights`, a preset or a
    network's YAML.

    Raises `UsageError` or `RunError` if it cannot be loaded, `UsageError` if the machine lacks the device.
    """
    runtime = Runtime.of(resolve_run(load_config(values={"run.device": device, "run.threads": threads}).run))
    for complaint in complaints() if device != "cpu" else ():
        logger.warning(complaint)
    runtime.prepare()
    model = load_named(source, weights)
    return model.to(runtime.device).to(memory_format=runtime.memory_format), runtime


def check_finite(scores: Tensor, network: Network) -> None:
    """Raise `RunError` if `scores` of the network are not finite."""
    if not torch.isfinite(scores).all():
        raise RunError("its scores are not finite", where=f"network '{network.name}'",
                       fix="its weights are damaged, or belong to another network")


@dataclass(frozen=True)
class Windows:
    """A window of `window_s` seconds that moves on by `hop_s`."""

    window_s: float
    hop_s: float
    shortest_s: float
    """Part of a window that a clip is taken from, seconds."""

    @classmethod
    def of(cls, factors: Factors, window_s: float | None, hop_s: float | None) -> Windows:
        """Return the windows for a network of `factors`. Raises `UsageError` for impossible ones, as far as
        `check_predict` could not know them without the network."""
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
        """Return (start, end) of the windows over a file, seconds. Raises `DataError` if they would be too many."""
        clips = (max(0.0, length_s - self.window_s) / self.hop_s + 1) * self.views(length_s)
        if clips > MOST_CLIPS:
            raise DataError(f"a timeline of its {length_s:,.0f} s would take {clips:,.0f} clips, more than "
                            f"{MOST_CLIPS:,}: --hop is too short for it")
        return [(start_s, min(start_s + self.window_s, length_s))
                for start_s in window_starts_s(length_s, self.window_s, self.hop_s).tolist()]

    def views(self, length_s: float) -> int:
        """Return the number of clips that are taken from each window of a file: more than one if it holds several."""
        return max(1, math.ceil(min(self.window_s, length_s) / self.shortest_s - 1e-9))


@dataclass(frozen=True)
class Predictor:
    """A network on its device, and the process `child` in which files are decoded for it."""

    model: X3D | FoldedX3D
    network: Network
    runtime: Runtime
    child: Child
    progress: Callable[[int, int], None]

    def answer(self, path: Path, top: int, views: int, windows: Windows | None) -> dict[str, Any]:
        """Return a file's entry in the result of `predict_files`: from `views` clips, and from those of each window."""
        answer: dict[str, Any] = {"path": str(path), "length_s": None, "damaged": 0, "clock_jumps": 0,
                                  "predictions": []}
        span_s, names = self.network.factors.span_s, self.network.class_names or range(self.network.classes)
        try:
            times_s, stamps, answer["damaged"], answer["clock_jumps"] = self.child.call(frame_times, path)
            length_s = answer["length_s"] = float(times_s[-1])
            starts_s, spans = [view_starts_s(length_s, span_s, views)], []
            if windows:
                spans, views = windows.over(length_s), windows.views(length_s)
                starts_s += [start_s + view_starts_s(end_s - start_s, span_s, views) for start_s, end_s in spans]
            best = {part: [{"class": str(names[label]), "label": label, "probability": float(scores_K[label])}
                           for label in np.argsort(-scores_K, kind="stable")[:top].tolist()]
                    for part, scores_K in self.mean_scores(path, times_s, stamps, starts_s)}
        except DataError as error:
            return {**answer, "error": error.what}
        answer["predictions"] = best[0]
        if windows:
            answer["timeline"] = [{"start_s": start_s, "end_s": end_s, "predictions": best[number]}
                                  for number, (start_s, end_s) in enumerate(spans, start=1)]
        return answer

    def mean_scores(self, path: Path, times_s: np.ndarray, stamps: np.ndarray | None,
                    starts_s: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (part, mean class probabilities) as the parts are complete; `starts_s` are each part's clips."""
        factors = self.network.factors
        part_N = np.repeat(np.arange(len(starts_s)), [len(starts) for starts in starts_s])
        start_N = np.concatenate(starts_s)
        order_N = np.argsort(start_N, kind="stable")
        index_NT = np.stack([clip_frames(times_s, start_s, factors.frames, factors.stride)
                             for start_s in start_N[order_N]])
        clips = self.child.stream(centre_clips, path, evaluation_crop(factors.resolution), index_NT, stamps)
        sums: dict[int, np.ndarray] = {}
        left = np.bincount(part_N)
        scored = zip(part_N[order_N].tolist(), self.scores(clips), strict=True)
        for done, (part, scores_K) in enumerate(scored, start=1):
            sums[part] = sums.get(part, 0.0) + scores_K
            left[part] -= 1
            if not left[part]:
                yield part, sums.pop(part) / len(starts_s[part])
            self.progress(done, len(order_N))

    def scores(self, clips: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield class probabilities of each of `clips` (T x H x W x 3 uint8, square)."""
        side = evaluation_crop(self.network.factors.resolution)
        while some := list(islice(clips, BATCH)):
            clips_BTHWC = torch.stack([resize(torch.from_numpy(clip_THWC), side) for clip_THWC in some])
            with explain_device_faults(), torch.inference_mode():
                x_BCTHW = normalise(clips_BTHWC, self.network.mean, self.network.std)
                scores_BK = probabilities_of(self.model, x_BCTHW, self.runtime)
            check_finite(scores_BK, self.network)
            yield from scores_BK.numpy()


# --- in the child process, which is forked: nothing here calls torch ---


def frame_times(path: Path) -> tuple[np.ndarray, np.ndarray | None, int, int]:
    """Return the times of all frames, seconds from the first, their stamps, the number of damaged packets, and how
    often the clock jumps. Raises `UnreadableClip` if no frame can be decoded."""
    reader = ClipReader(path, short_side=1, pictures=False)
    times_s = np.array([time_s for time_s, _ in reader])
    return times_s, reader.stamps, reader.damaged, reader.jumps


def centre_clips(path: Path, short_side: int, index_NT: np.ndarray,
                 stamps: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield for each row of `index_NT`, frame indices, the centre squares of these frames: T x side x side x 3 uint8.

    The rows, and the indices within a row, never descend, so that in one pass only the frames from the present row's
    first to its last are held. The side is at most `short_side`. With the `stamps` of all frames, reading starts near
    the first one. Raises `UnreadableClip`, and `DataError` if fewer frames come than there were.
    """
    wanted, rows, held = np.unique(index_NT), iter(index_NT), {}
    row_T = next(rows)
    reader = ClipReader(path, short_side, wanted.tolist(), stamps=stamps)
    for index, (_, frame_HWC) in zip(wanted.tolist(), reader, strict=False):
        box = centre_box(*frame_HWC.shape[:2])
        held[index] = frame_HWC[box.top:box.top + box.side, box.left:box.left + box.side].copy()
        while row_T is not None and row_T[-1] <= index:
            yield np.stack([held[i] for i in row_T.tolist()])
            row_T = next(rows, None)
        held = {i: frame for i, frame in held.items() if row_T is not None and i >= row_T[0]}
    if row_T is not None:
        raise DataError("gave fewer frames when it was read again; was it replaced meanwhile?")
