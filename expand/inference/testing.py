"""A network tested by the published protocol: 10 clips uniform in time, or 30 with three crops of each (FACTS: recipe;
docs/decisions/007-test-protocol.md)."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from expand.config.schema import DataConfig
from expand.data import ClipList, prepare
from expand.data.frames.cache import CachedClip
from expand.data.loading.loader import eval_loader
from expand.data.loading.prefetch import dead_worker
from expand.data.sources.labels import label_key
from expand.errors import SHOWN, DataError, RunError, abbreviate, did_you_mean, explain_device_faults, lacks_memory
from expand.expansion.text import cell, one_line, percent, split_note
from expand.inference.loaded_network import check_finite, load_on_device
from expand.inference.options import CROPS, TestClips
from expand.machine import available_cores
from expand.model import X3D
from expand.report.confusion import classes_frame, confusion_frame, plot_confusion
from expand.rundir.files import jsonable, make_dir, write_atomic, write_json
from expand.rundir.paths import RunPaths
from expand.space.geometry import evaluation_crop
from expand.space.network import Network
from expand.training.evaluate import Evaluation, evaluation_of, hits, score_videos, wilson_interval
from expand.training.runtime import Runtime

logger = logging.getLogger(__name__)

TIMES = 10


def measure(source: str | Path, chosen: TestClips, *, views: int, weights: str | Path | None, out: Path | None,
            batch_size: int, device: str, threads: int | None,
            progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Measure a network on the clips `chosen` for it, as `expand.test` says."""
    model, runtime = load_on_device(source, weights, device, threads)
    network, paths, other = model.description, RunPaths(Path(source)), chosen.other
    config = replace(chosen.config, mean=network.mean, std=network.std)
    is_own = weights is None and paths.config.is_file()
    exam = _prepare_exam(config, chosen.listed, chosen.split, network)
    folder = make_dir(out or
                      _default_folder(paths if is_own else None, other, f"{exam.split}-{views}views", network))
    began = time.monotonic()
    scores, labels = _scores(model, exam, views, batch_size, runtime, progress)
    evaluation, seconds = evaluation_of(scores, labels), time.monotonic() - began
    confusion_KK = np.array(evaluation.confusion)
    top5_K = torch.bincount(labels[hits(scores, labels, 5)], minlength=network.classes).numpy()
    per_class = classes_frame(confusion_KK, top5_K, exam.names)
    is_selected = is_own and other is None and paths.journal.exists()
    result = jsonable({
        "network": network.name, "source": source, "weights": weights,
        "data": getattr(config, exam.split) or (config.source if not config.is_builtin else "built-in"),
        "split": exam.split, "note": split_note(exam.split, exam.split == "val") if is_selected else None,
        "views": views, "videos": len(exam.clips), "left_out": exam.left_out, **_figures(evaluation, len(exam.clips)),
        "per_class": per_class.to_dict("records"), "device": runtime.device.type, "precision": runtime.precision,
        "wall_s": seconds, "clips_per_s": len(exam.clips) * views / seconds, "out": folder})
    _write(folder, result, exam, scores, confusion_KK, per_class)
    return result


@dataclass(frozen=True, eq=False)
class _Exam:
    """The clips of a split, labelled with the network's classes, whose names are `names`; `left_out`: unreadable."""

    config: DataConfig
    split: str
    names: tuple[str, ...]
    clips: tuple[CachedClip, ...]
    left_out: int


def _prepare_exam(config: DataConfig, listed: ClipList, split: str, network: Network) -> _Exam:
    names, mapping = _match_classes(listed, split, network)
    short_side = evaluation_crop(network.factors.resolution)
    data = prepare(config, short_side=short_side, workers=available_cores(), splits=(split,), listed=listed)
    clips = tuple(replace(clip, label=mapping[clip.label]) for clip in getattr(data, split))
    return _Exam(config, split, names, clips, sum(clip.split == split for clip in listed.clips) - len(clips))


def _match_classes(listed: ClipList, split: str, network: Network) -> tuple[tuple[str, ...], dict[int, int]]:
    """The names of the network's classes, and its class for each label of `split`.

    Raises `DataError` where the network has no such class or, without names, another number of classes.
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
    strange = [listed.classes[label] for label in used if own[label] not in known]
    if strange:
        lines = [repr(name) + (f"; {hint}" if (hint := did_you_mean(name, names)) else "") for name in strange]
        raise DataError(f"classes that the network does not know:\n{abbreviate(lines)}",
                        fix=f"it knows {network.classes}: {', '.join(names[:SHOWN])}"
                            + (", ..." if network.classes > SHOWN else ""))
    return names, {label: known[own[label]] for label in used}


def _default_folder(paths: RunPaths | None, clips: str | None, stem: str, network: Network) -> Path:
    """In the run `paths` of which the network is, a folder for each set of clips; else one here."""
    if paths is not None:
        other = Path(clips).resolve() if clips else None
        name = f"{other.name}-{sha256(str(other).encode()).hexdigest()[:6]}-{stem}" if other else stem
        return paths.test_folder(name)
    return Path(f"test-{re.sub(r'[^a-zA-Z0-9_.-]+', '_', network.name)[:80]}-{stem}")


def _scores(model: X3D, exam: _Exam, views: int, batch_size: int, runtime: Runtime,
            progress: Callable[[int, int], None]) -> tuple[Tensor, Tensor]:
    """Return class probabilities (videos x classes) and labels."""
    factors, videos = model.description.factors, len(exam.clips)
    batches = eval_loader(exam.clips, frames=factors.frames, stride=factors.stride, resolution=factors.resolution,
                          views=TIMES, crops=CROPS[views], batch_size=batch_size, config=exam.config,
                          workers=runtime.loader_workers, device=runtime.device)
    try:
        with explain_device_faults():
            scores, labels = score_videos(model, _count_clips(batches, videos * views, progress), videos,
                                          model.description.classes, runtime)
    except (MemoryError, RuntimeError) as error:
        if (death := dead_worker(error)) is not None:
            raise death from error
        if not lacks_memory(error):
            raise
        raise RunError("out of memory", fix="a smaller --batch-size needs less") from error
    check_finite(scores, model.description)
    return scores, labels


def _count_clips(batches: Iterable[tuple[Tensor, ...]], total: int,
             progress: Callable[[int, int], None]) -> Iterator[tuple[Tensor, ...]]:
    """Yield `batches`; each is counted once the next is asked for."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch[0])
        progress(done, total)


def _figures(evaluation: Evaluation, videos: int) -> dict[str, Any]:
    return {"accuracy": evaluation.accuracy, "accuracy_interval": wilson_interval(evaluation.accuracy, videos),
            "top5": evaluation.top5, "top5_interval": wilson_interval(evaluation.top5, videos), "loss": evaluation.loss}


def _scores_frame(exam: _Exam, scores: Tensor) -> pd.DataFrame:
    """A row a video: path, class, label, the best class as guess and guess_label, and its probability."""
    guesses = scores.argmax(1).tolist()
    names = [cell(jsonable(name)) for name in exam.names]
    return pd.DataFrame({
        "path": [jsonable(clip.path) for clip in exam.clips], "class": [names[clip.label] for clip in exam.clips],
        "label": [clip.label for clip in exam.clips], "guess": [names[guess] for guess in guesses],
        "guess_label": guesses, "probability": scores.max(1).values.tolist()})


def _write(folder: Path, result: dict[str, Any], exam: _Exam, scores: Tensor, confusion_KK: np.ndarray,
           per_class: pd.DataFrame) -> None:
    """What `test` promises to leave in `folder`; result.json last, so that where it is, the others are."""
    named = {column: per_class[column].map(cell, na_action="ignore") for column in ("class", "confused_with")}
    write_atomic(folder / "classes.csv", per_class.assign(**named).to_csv(index=False))
    write_atomic(folder / "confusion.csv", confusion_frame(confusion_KK, exam.names).to_csv())
    write_atomic(folder / "scores.csv", _scores_frame(exam, scores).to_csv(index=False))
    plot_confusion(confusion_KK, exam.names, folder / "confusion.png", _title(result))
    write_json(folder / "result.json", result)


def _title(result: dict[str, Any]) -> str:
    return (f"{one_line(result['network'])}: top-1 {percent(result['accuracy'])} % of {result['videos']} videos, "
            f"{result['split']}, {result['views']} views")
