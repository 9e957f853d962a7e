"""From a configuration to clips ready for training: listed, rendered if built in, decoded once, checked."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from expand.config.schema import DataConfig
from expand.data.frames.cache import CachedClip, FrameCache
from expand.data.frames.decode import UnreadableClip
from expand.data.loading.cache_estimate import estimate_bytes
from expand.data.loading.sampling import median_length_s
from expand.data.sources import PUT_BACK, SHOWN, SPLITS, Clip, ClipList, cache_dir, counted, list_clips, shown
from expand.data.sources.balance import balance, balance_notes
from expand.data.sources.checks import emptied
from expand.data.sources.clip import CONTENT_DIGITS
from expand.data.synthetic import rendering as synthetic
from expand.errors import DataError
from expand.processes.child import died_of
from expand.processes.pool import process_map

REPORT_EVERY_S = 10.0
FINGERPRINT = 2
"""Changes with what a fingerprint is made of. It is no `FORMAT` of files: most clips' frames stay the same where only
some are read in another way, and runs on them can be resumed."""
Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all)."""


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A data set whose clips are all known to be readable."""

    classes: tuple[str, ...]
    train: tuple[CachedClip, ...]
    val: tuple[CachedClip, ...]
    test: tuple[CachedClip, ...]
    """Empty where there is no test split."""
    dropped: tuple[tuple[Path, str], ...]
    """Clips that were left out, with the reason."""
    median_s: float
    """Median over the train clips (over all where there are none) of the time
    from the first to the last frame, seconds."""
    fingerprint: str
    """Hash of classes, labels, clips' names without their endings, frame times, sizes and mirroring: the same clips in
    the same order, wherever they lie and whatever names them, give the same."""
    listed: ClipList = field(default_factory=lambda: ClipList((), ()))
    """The clips that were kept, as they were listed."""

    @property
    def counts(self) -> dict[str, int]:
        """Clips in each split."""
        return {split: len(getattr(self, split)) for split in SPLITS}


def prepare(config: DataConfig, *, short_side: int, workers: int, report: Callable[[str], None],
            splits: Sequence[str] = SPLITS, listed: ClipList | None = None,
            progress: Progress | None = None, begins: bool = False, run_list: Path | None = None) -> PreparedData:
    """List the clips, render the built-in ones if needed, and decode what is not yet in the frame cache.

    Frames are kept at min(source's short side, `short_side`) pixels, aspect kept; `workers` processes share the work;
    of `splits` alone. `listed` takes the place of what `config` names. Where a search or training `begins`, clips of a
    single frame are left out, and uneven classes are said; one that goes on has the clips that it began with, which
    stand in the file `run_list` and must all be readable. `report` gets lines for people. Several processes may do the
    same at once: they share the work. Raises `DataError` for whatever is wrong with the clips, among it more unreadable
    ones than `config.max_unreadable` of all allows, and single frames alone where it `begins`.
    """
    listed = listed or list_clips(config, to_train="train" in splits)
    found = _gather(config, _only(listed, splits), short_side, workers, report, progress)
    _check_dropped(config, found, run_list)
    if begins:
        found = _without_stills(found, report)
        kept = [isinstance(outcome, CachedClip) for outcome in found.outcomes]
        for note in balance_notes(balance(found.listed, kept)):
            report(note)
    train, val, test = (tuple(clip for split, clip in found.kept if split == wanted)
                        for wanted in ("train", "val", "test"))
    median_s = median_length_s((split, clip.length_s) for split, clip in found.kept)
    left = tuple(replace(clip, content=outcome.content[:CONTENT_DIGITS])
                 for clip, outcome in zip(found.listed.clips, found.outcomes) if isinstance(outcome, CachedClip))
    return PreparedData(listed.classes, train, val, test, found.dropped, median_s,
                        _fingerprint(listed.classes, found.kept), replace(listed, clips=left))


def cache_clips(config: DataConfig, *, short_side: int, workers: int, report: Callable[[str], None],
                progress: Progress | None = None) -> dict[str, Any]:
    """Fill the frame cache with all clips that `config` names, as `prepare` does, and say what came of it.

    `clips` in all, of them `kept` in the cache, decoded at each access (`direct`) and `unreadable`, however many that
    are; the `bytes` of the kept, `estimate_bytes` of what was to be added, `short_side`, `folder`, `wall_s`. Raises
    `DataError` where clips cannot be listed or frames not be written.
    """
    start_s = time.monotonic()
    found = _gather(config, list_clips(config, to_train=False), short_side, workers, report, progress)
    stores = {clip.store: len(clip.times_s) * clip.height * clip.width * 3 for _, clip in found.kept if clip.store}
    kept = sum(clip.store is not None for _, clip in found.kept)
    return {"clips": len(found.outcomes), "kept": kept, "direct": len(found.kept) - kept,
            "unreadable": len(found.dropped), "bytes": sum(stores.values()),
            "estimate_bytes": round(found.estimate_bytes), "short_side": short_side, "folder": str(found.folder),
            "wall_s": round(time.monotonic() - start_s, 3)}


@dataclass(frozen=True, eq=False)
class _Gathered:
    """What the cache has of each of the listed clips, or the reason why it cannot be read."""

    listed: ClipList
    outcomes: list[CachedClip | str]
    folder: Path
    estimate_bytes: float

    @property
    def kept(self) -> list[tuple[str, CachedClip]]:
        """The readable clips, with their splits."""
        return [(clip.split, outcome) for clip, outcome in zip(self.listed.clips, self.outcomes)
                if isinstance(outcome, CachedClip)]

    @property
    def dropped(self) -> tuple[tuple[Path, str], ...]:
        """The others, with the reason."""
        return tuple((clip.path, outcome) for clip, outcome in zip(self.listed.clips, self.outcomes)
                     if isinstance(outcome, str))


def _only(listed: ClipList, splits: Sequence[str]) -> ClipList:
    return replace(listed, clips=tuple(clip for clip in listed.clips if clip.split in splits))


def _gather(config: DataConfig, listed: ClipList, short_side: int, workers: int, report: Callable[[str], None],
            progress: Progress | None) -> _Gathered:
    for note in listed.notes:
        report(note)
    folder = cache_dir(config)
    if config.is_builtin:
        synthetic.ensure_rendered(config.builtin, folder, workers, report)
    cache = FrameCache(folder / "frames", config.cache_gb * 1e9, frame_rate=config.frame_rate,
                       timeout_s=config.timeout_s)
    estimate = estimate_bytes(cache, listed.clips, short_side, workers) if config.cache_gb else 0.0
    if estimate:
        report(f"decoded frames take about {size_text(estimate)} more (of data.cache_gb {config.cache_gb:g}, "
               f"{size_text(cache.ledger.used_bytes)} in use) in {cache.folder}")
    outcomes = _decode_all(listed.clips, cache, short_side, workers, report, progress)
    found = _Gathered(listed, outcomes, cache.folder, estimate)
    _report_clips(found, cache, report)
    return found


def size_text(count: float) -> str:
    """`count` bytes in MB or GB, of 10^6 and 10^9 bytes."""
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"


def _decode_all(clips: Sequence[Clip], cache: FrameCache, short_side: int, workers: int,
                report: Callable[[str], None], progress: Progress | None) -> list[CachedClip | str]:
    """For every clip what the cache holds of it, or the reason why it cannot be read.

    In two rounds: what another process is at work on, what others' frames must give way to, and what ended its process
    waits for the second, when all the frames that this set has are known and marked.
    """
    outcomes: list[CachedClip | str | None] = [None] * len(clips)
    done, next_s = 0, time.monotonic() + REPORT_EVERY_S
    for settled in (False, True):
        if settled:
            cache.settle()
        waiting = [number for number, outcome in enumerate(outcomes) if outcome is None]
        work = process_map(_decode_one, (cache, short_side, settled), [clips[number] for number in waiting], workers,
                           timeout_s=cache.timeout_s, died=_reason if settled else _perhaps)
        for outcome, number in zip(work, waiting):
            outcomes[number] = outcome
            done += outcome is not None
            if progress and outcome is not None:
                progress(done, len(clips))
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + REPORT_EVERY_S
                report(f"decoded {done} of {len(clips)} clips")
    return outcomes


def _decode_one(state: tuple[FrameCache, int, bool], clip: Clip) -> CachedClip | str | None:
    cache, short_side, settled = state
    try:
        return cache.get(clip.path, clip.label, short_side, settled=settled)
    except UnreadableClip as error:
        return error.what


def _reason(clip: Clip, reason: str) -> str:
    """What comes of a clip that ends the process which decodes it."""
    return reason


def _perhaps(clip: Clip, reason: str) -> str | None:
    """The same at the first time: whoever ended that process may have meant its memory, and not the clip."""
    return reason if died_of(reason) == "hang" else None


def _report_clips(found: _Gathered, cache: FrameCache, report: Callable[[str], None]) -> None:
    kept, dropped = found.kept, found.dropped
    for path, reason in dropped[:SHOWN]:
        report(f"left out {path}: {reason}")
    if len(dropped) > SHOWN:
        report(f"left out {len(dropped) - SHOWN} more")
    damaged = [clip.path for _, clip in kept if clip.damaged]
    if damaged:
        report(f"damaged and kept as far as they decode: {counted(len(damaged), 'clip')}, the first {damaged[0]}")
    missing = sum(clip.store is None for _, clip in kept)
    if missing:
        because = cache.full_because or "each alone is larger than data.cache_gb"
        report(f"the frames of {missing} of {len(kept)} clips are not kept ({because}) and will be decoded at each "
               "access, which is slower")
    train = {clip.content for split, clip in kept if split == "train"}
    shared = sum(clip.content in train for split, clip in kept if split != "train")
    if shared:
        report(f"train shares {counted(shared, 'clip')} with val or test: accuracies on them say little")


def _check_dropped(config: DataConfig, found: _Gathered, run_list: Path | None) -> None:
    listed, kept, dropped = found.listed, found.kept, found.dropped
    if not dropped:
        return
    total = len(listed.clips)
    lines = shown([f"{path}: {reason}" for path, reason in dropped])
    is_over = len(dropped) > config.max_unreadable * total
    if run_list is not None and (is_over or run_list.exists()):
        raise DataError(f"{len(dropped)} of the {total} clips of this run cannot be read:\n{lines}",
                        where=str(run_list) if run_list.exists() else None,
                        fix=PUT_BACK if run_list.exists() else "put them back as they were, or mount their disk")
    if is_over:
        raise DataError(f"{len(dropped)} of {total} clips cannot be read, more than data.max_unreadable "
                        f"({config.max_unreadable:g}) allows:\n{lines}",
                        fix="mend or remove them, check that relative paths are right"
                            + (f", or go on without them: --set data.max_unreadable={len(dropped) / total + 0.005:.2f}"
                               if kept else ""))
    if gone := emptied(listed, (isinstance(outcome, CachedClip) for outcome in found.outcomes)):
        raise DataError(f"no readable clip is left for {', '.join(gone)}:\n{lines}", fix="mend these clips, or take "
                        "the split or class away")


def _without_stills(found: _Gathered, report: Callable[[str], None]) -> _Gathered:
    """`found` without the clips of a single frame, which show no motion. Raises `DataError` where no other is left, or
    none for a split or a class."""
    single = [isinstance(outcome, CachedClip) and len(outcome.times_s) == 1 for outcome in found.outcomes]
    paths = [clip.path for clip, is_single in zip(found.listed.clips, single) if is_single]
    if not paths:
        return found
    if len(paths) == len(found.kept):
        raise DataError(f"all {counted(len(paths), 'clip')} have a single frame: these are pictures and no videos, the "
                        f"first is {paths[0]}", fix="a clip is a video file, or a folder with the pictures of one "
                        "recording: <class>/<clip>/<picture>")
    report(f"left out {counted(len(paths), 'clip')} of a single frame, which shows no motion: {paths[0]}"
           + (" and others" if len(paths) > 1 else ""))
    outcomes = ["has one frame only" if is_single else outcome for outcome, is_single in zip(found.outcomes, single)]
    if gone := emptied(found.listed, (isinstance(outcome, CachedClip) for outcome in outcomes)):
        lines = shown([str(path) for path in paths])
        raise DataError(f"no clip of more than a single frame is left for {', '.join(gone)}:\n{lines}",
                        fix="move these files out of the clips' folders (a split that is made is then drawn without "
                        "them), or take the split or class away")
    return replace(found, outcomes=outcomes)


def _fingerprint(classes: Sequence[str], kept: list[tuple[str, CachedClip]]) -> str:
    digest = hashlib.sha256(repr((FINGERPRINT, tuple(classes))).encode())
    for split, clip in kept:
        name = clip.path.name if clip.path.is_dir() else clip.path.stem  # a clip and the folder of its frames agree
        digest.update(repr((split, clip.label, name, clip.height, clip.width)).encode())
        digest.update(np.rint(clip.times_s * 1e6).astype(np.int64).tobytes())
        digest.update(b"mirrored" if clip.mirrored else b"")
    return digest.hexdigest()[:16]
