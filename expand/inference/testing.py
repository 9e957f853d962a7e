"""Testing a trained network by the published protocol: 10 clips uniform in time, or 30 with three crops of each
(FACTS: recipe; docs/decisions/007-test-protocol.md)."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from expand.config.schema import DataConfig
from expand.data import ClipList, prepare
from expand.data.frames.frame_access import CachedClip
from expand.data.loading.loader import dead_worker, eval_loader
from expand.data.sources.labels import label_key
from expand.errors import SHOWN, DataError, RunError, abbreviate, explain_device_faults, lacks_memory, suggest
from expand.expansion.text import cell, one_line, percent, split_note
from expand.inference.options import CROPS, TestClips
from expand.inference.predicting import check_finite, load_on_device
from expand.machine import available_cores
from expand.model import X3D
from expand.report.plots import plot_confusion
from expand.report.tables import classes_frame, confusion_frame
from expand.rundir.files import jsonable, make_dir, write_atomic, write_json
from expand.rundir.paths import RunPaths
from expand.space.geometry import evaluation_crop
from expand.space.network import Network
from expand.training.evaluate import evaluation_of, hits, score_videos, wilson_interval
from expand.training.runtime import Runtime

logger = logging.getLogger(__name__)

TIMES = 10
"""Clips of a video, uniform in time."""


def measure(source: str | Path, chosen: TestClips, *, views: int, weights: str | Path | None, out: Path | None,
            batch_size: int, device: str, threads: int | None,
            progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Measure a network on the clips `chosen` for it, as `expand.test` says."""
    model, runtime = load_on_device(source, weights, device, threads)
    network, paths, split = model.description, RunPaths(Path(source)), chosen.split
    config = replace(chosen.config, mean=network.mean, std=network.std)
    names, mapping = _match_classes(chosen.listed, split, network)
    data = prepare(config, short_side=evaluation_crop(network.factors.resolution), workers=available_cores(),
                   splits=(split,), listed=chosen.listed)
    clips = tuple(replace(clip, label=mapping[clip.label]) for clip in getattr(data, split))
    left_out = sum(clip.split == split for clip in chosen.listed.clips) - len(clips)
    is_own = weights is None and paths.config.is_file()
    folder = make_dir(out or _default_folder(paths if is_own else None, chosen.other, f"{split}-{views}views", network))
    began = time.monotonic()
    scores, labels = _scores(model, clips, config, views, batch_size, runtime, progress)
    evaluation, seconds = evaluation_of(scores, labels), time.monotonic() - began
    confusion_KK = np.array(evaluation.confusion)
    top5_K = torch.bincount(labels[hits(scores, labels, 5)], minlength=network.classes).numpy()
    per_class = classes_frame(confusion_KK, top5_K, names)
    is_selected = is_own and chosen.other is None and paths.journal.exists()
    result = jsonable({
        "network": network.name, "source": source, "weights": weights,
        "data": getattr(config, split) or (config.source if not config.is_builtin else "built-in"),
        "split": split, "note": split_note(split, split == "val") if is_selected else None,
        "views": views, "videos": len(clips), "left_out": left_out,
        "accuracy": evaluation.accuracy, "accuracy_interval": wilson_interval(evaluation.accuracy, len(clips)),
        "top5": evaluation.top5, "top5_interval": wilson_interval(evaluation.top5, len(clips)),
        "loss": evaluation.loss,
        "per_class": per_class.to_dict("records"), "device": runtime.device.type, "precision": runtime.precision,
        "wall_s": seconds, "clips_per_s": len(clips) * views / seconds, "out": folder})
    _write(folder, result, clips, names, scores, confusion_KK, per_class)
    return result


def _match_classes(listed: ClipList, split: str, network: Network) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the names of the network's classes, and its class for each label of `split`.

    Raises `DataError` if the network has no such class or, without names, another number of classes.
    """
    names = network.class_names
    if names is None:
        if len(listed.classes) != network.classes:
            raise DataError(f"the network has {network.classes} classes without names, the clips have "
                            f"{len(listed.classes)}", fix="clips of all its classes are needed, in its own order")
        logger.warning(
            f"the network does not know its classes' names: output 0 is taken for {listed.classes[0]!r}, "
            f"{network.classes - 1} for {listed.classes[-1]!r}, as the clips order them")
        return listed.classes, {label: label for label in range(network.classes)}
    used = sorted({clip.label for clip in listed.clips if clip.split == split})
    known = {label_key(name): label for label, name in enumerate(names)} | {
        name: label for label, name in enumerate(names)}
    own = {label: name if (name := listed.classes[label]) in known else label_key(name) for label in used}
    unknown = [listed.classes[label] for label in used if own[label] not in known]
    if unknown:
        lines = [repr(name) + suggest(name, tuple(names)) for name in unknown]
        raise DataError(f"classes that the network does not know:\n{abbreviate(lines)}",
                        fix=f"it knows {network.classes}: {', '.join(names[:SHOWN])}"
                            + (", ..." if network.classes > SHOWN else ""))
    return names, {label: known[own[label]] for label in used}


def _default_folder(paths: RunPaths | None, clips: str | None, stem: str, network: Network) -> Path:
    """Return the folder of a result: in the run `paths`, if the network is its own, one for each set of clips; else one
    in the working directory."""
    if paths is not None:
        other = Path(clips).resolve() if clips else None
        name = f"{other.name}-{sha256(str(other).encode()).hexdigest()[:6]}-{stem}" if other else stem
        return paths.test_folder(name)
    return Path(f"test-{re.sub(r'[^a-zA-Z0-9_.-]+', '_', network.name)[:80]}-{stem}")


def _scores(model: X3D, clips: Sequence[CachedClip], config: DataConfig, views: int, batch_size: int, runtime: Runtime,
            progress: Callable[[int, int], None]) -> tuple[Tensor, Tensor]:
    """Return class probabilities (videos x classes) and labels."""
    factors, videos = model.description.factors, len(clips)
    batches = eval_loader(clips, frames=factors.frames, stride=factors.stride, resolution=factors.resolution,
                          views=TIMES, crops=CROPS[views], batch_size=batch_size, config=config,
                          workers=runtime.loader_workers, device=runtime.device)

    def count_clips() -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches; each is counted once the next is asked for."""
        done = 0
        for batch in batches:
            yield batch
            done += len(batch[0])
            progress(done, videos * views)

    try:
        with explain_device_faults():
            scores, labels = score_videos(model, count_clips(), videos, model.description.classes, runtime)
    except (MemoryError, RuntimeError) as error:
        if (death := dead_worker(error)) is not None:
            raise death from error
        if not lacks_memory(error):
            raise
        raise RunError("out of memory", fix="a smaller --batch-size needs less") from error
    check_finite(scores, model.description)
    return scores, labels


def _write(folder: Path, result: dict[str, Any], clips: Sequence[CachedClip], names: Sequence[str], scores: Tensor,
           confusion_KK: np.ndarray, per_class: pd.DataFrame) -> None:
    """Write the files that `test` promises into `folder`; result.json is the last, so that the others are complete."""
    per_class = per_class.assign(**{column: per_class[column].map(cell, na_action="ignore")
                                    for column in ("class", "confused_with")})
    guesses, cells = scores.argmax(1).tolist(), [cell(jsonable(name)) for name in names]
    of_videos = pd.DataFrame({
        "path": [jsonable(clip.path) for clip in clips], "class": [cells[clip.label] for clip in clips],
        "label": [clip.label for clip in clips], "guess": [cells[guess] for guess in guesses],
        "guess_label": guesses, "probability": scores.max(1).values.tolist()})
    write_atomic(folder / "classes.csv", per_class.to_csv(index=False))
    write_atomic(folder / "confusion.csv", confusion_frame(confusion_KK, names).to_csv())
    write_atomic(folder / "scores.csv", of_videos.to_csv(index=False))
    title = (f"{one_line(result['network'])}: top-1 {percent(result['accuracy'])} % of {result['videos']} videos, "
             f"{result['split']}, {result['views']} views")
    plot_confusion(confusion_KK, names, folder / "confusion.png", title)
    write_json(folder / "result.json", result)
