"""From a configuration to clips ready for training: listed, rendered if built in, decoded once, checked."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from expand.config.schema import DataConfig
from expand.data import synthetic
from expand.data.cache import FORMAT, CachedClip, FrameCache
from expand.data.decode import UnreadableClip
from expand.data.pool import process_map
from expand.data.sources import SHOWN, SPLITS, Clip, ClipList, cache_dir, counted, list_clips, shown
from expand.errors import DataError

REPORT_EVERY_S = 10.0


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
    """Hash of classes, labels, file names, frame times and sizes: the same clips, wherever they lie, give the same."""

    @property
    def counts(self) -> dict[str, int]:
        """Clips in each split."""
        return {split: len(getattr(self, split)) for split in SPLITS}


def prepare(config: DataConfig, *, short_side: int, workers: int, report: Callable[[str], None],
            splits: Sequence[str] = SPLITS) -> PreparedData:
    """List the clips, render the built-in ones if needed, and decode what is not yet in the frame cache.

    Frames are kept at min(source's short side, `short_side`) pixels, aspect kept; `workers` processes share the work
    (at most 1: none but this); of `splits` alone. `report` gets lines for people. Raises `DataError` for whatever is
    wrong with the clips, among it more unreadable ones than `config.max_unreadable` of all allows.
    """
    listed, folder = list_clips(config, to_train="train" in splits), cache_dir(config)
    listed = replace(listed, clips=tuple(clip for clip in listed.clips if clip.split in splits))
    if not (config.path or config.train or config.val or config.test):
        synthetic.ensure_rendered(config.builtin, folder, workers, report)
    cache = FrameCache(folder / "frames", config.cache_gb * 1e9)
    outcomes = _decode_all(listed.clips, cache, short_side, workers, report)
    kept = [(clip.split, outcome) for clip, outcome in zip(listed.clips, outcomes) if isinstance(outcome, CachedClip)]
    dropped = tuple((clip.path, outcome) for clip, outcome in zip(listed.clips, outcomes) if isinstance(outcome, str))
    _report_clips(kept, dropped, cache, report)
    _check_dropped(config, listed, kept, dropped)
    train, val, test = (tuple(clip for split, clip in kept if split == wanted) for wanted in ("train", "val", "test"))
    median_s = statistics.median(clip.length_s for clip in train or val + test)
    return PreparedData(listed.classes, train, val, test, dropped, median_s, _fingerprint(listed.classes, kept))


def _decode_all(clips: Sequence[Clip], cache: FrameCache, short_side: int, workers: int,
                report: Callable[[str], None]) -> list[CachedClip | str]:
    """For every clip what the cache holds of it, or the reason why it cannot be read."""
    outcomes: list[CachedClip | str] = []
    next_s = time.monotonic() + REPORT_EVERY_S
    for outcome in process_map(_decode_one, (cache, short_side), clips, workers):
        outcomes.append(outcome)
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + REPORT_EVERY_S
            report(f"decoded {len(outcomes)} of {len(clips)} clips")
    return outcomes


def _decode_one(state: tuple[FrameCache, int], clip: Clip) -> CachedClip | str:
    cache, short_side = state
    try:
        return cache.get(clip.path, clip.label, short_side)
    except UnreadableClip as error:
        return error.what


def _report_clips(kept: list[tuple[str, CachedClip]], dropped: Sequence[tuple[Path, str]], cache: FrameCache,
                  report: Callable[[str], None]) -> None:
    for path, reason in dropped[:SHOWN]:
        report(f"left out {path}: {reason}")
    if len(dropped) > SHOWN:
        report(f"left out {len(dropped) - SHOWN} more")
    damaged = [clip.path for _, clip in kept if clip.damaged]
    if damaged:
        report(f"damaged and kept as far as they decode: {counted(len(damaged), 'clip')}, the first {damaged[0]}")
    missing = sum(clip.store is None for _, clip in kept)
    if missing:
        report(f"the frames of {missing} of {len(kept)} clips are not kept ({cache.full_because}) and will be decoded "
               "at each access, which is slower")
    train = {clip.path.resolve() for split, clip in kept if split == "train"}
    shared = sum(clip.path.resolve() in train for split, clip in kept if split != "train")
    if shared:
        report(f"train shares {counted(shared, 'clip')} with val or test: accuracies on them say little")


def _check_dropped(config: DataConfig, listed: ClipList, kept: list[tuple[str, CachedClip]],
                   dropped: Sequence[tuple[Path, str]]) -> None:
    if not dropped:
        return
    total = len(listed.clips)
    lines = shown([f"{path}: {reason}" for path, reason in dropped])
    if len(dropped) > config.max_unreadable * total:
        raise DataError(f"{len(dropped)} of {total} clips cannot be read, more than data.max_unreadable "
                        f"({config.max_unreadable:g}) allows:\n{lines}",
                        fix="mend or remove them, check that relative paths are right, or go on without them: "
                            "--set data.max_unreadable=" + f"{min(1.0, len(dropped) / total + 0.005):.2f}")
    left = Counter(split for split, _ in kept)
    gone = [split for split in dict.fromkeys(clip.split for clip in listed.clips) if not left[split]]
    trained = {clip.label for split, clip in kept if split == "train"}
    if trained:
        gone += [f"class {name!r} in train" for label, name in enumerate(listed.classes) if label not in trained]
    if gone:
        raise DataError(f"no readable clip is left for {', '.join(gone)}:\n{lines}", fix="mend these clips, or take "
                        "the split or class away")


def _fingerprint(classes: Sequence[str], kept: list[tuple[str, CachedClip]]) -> str:
    digest = hashlib.sha256(repr((FORMAT, tuple(classes))).encode())
    for split, clip in kept:
        digest.update(repr((split, clip.label, clip.path.name, clip.height, clip.width)).encode())
        digest.update(clip.times_s.tobytes())
    return digest.hexdigest()[:16]
