"""The preparation of a data set: clips are listed, rendered if built in, decoded once into the frame cache, checked."""

from __future__ import annotations

import hashlib
import logging
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from expand.config.schema import DataConfig
from expand.data.frames.cache import FrameCache
from expand.data.frames.clip_files import UnreadableClip
from expand.data.frames.decode import ClipReader
from expand.data.frames.frame_access import CachedClip
from expand.data.loading.sampling import median_length_s
from expand.data.sources import list_clips
from expand.data.sources.clip import CONTENT_DIGITS, SPLITS, Clip, ClipList
from expand.data.sources.paths import cache_dir
from expand.data.sources.run_list import PUT_BACK
from expand.data.sources.splits import balance, balance_notes
from expand.data.synthetic import rendering as synthetic
from expand.errors import SHOWN, DataError, abbreviate, quantity
from expand.processes import died_of, process_map
from expand.space.factors import REFERENCE_FPS
from expand.untrusted_input import size_text

logger = logging.getLogger(__name__)

REPORT_EVERY_S = 10.0
FINGERPRINT = 2
"""Changes with the fields of a fingerprint. It is not the `FORMAT` of files: most clips' frames stay the same if only
some are read in another way, and runs on them can be resumed."""
Progress = Callable[[int, int], None]
"""A function that is called with (clips done, clips in all)."""


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A data set whose clips are all known to be readable."""

    classes: tuple[str, ...]
    train: tuple[CachedClip, ...]
    val: tuple[CachedClip, ...]
    test: tuple[CachedClip, ...]
    """Empty if there is no test split."""
    dropped: tuple[tuple[Path, str], ...]
    """Clips that were left out, with the reason."""
    median_s: float
    """Median time from the first to the last frame, seconds, of the train clips, or of all if there are none."""
    fingerprint: str
    """Hash of classes, labels, clips' names without their endings, frame times, sizes and mirroring. It is the same for
    the same clips in the same order, whatever their folder and whichever list or layout names them."""
    listed: ClipList = field(default_factory=lambda: ClipList((), ()))
    """The clips that were kept, as they were listed."""

    @property
    def counts(self) -> dict[str, int]:
        """The number of clips in each split."""
        return {split: len(getattr(self, split)) for split in SPLITS}


def prepare(config: DataConfig, *, short_side: int, workers: int, splits: Sequence[str] = SPLITS,
            listed: ClipList | None = None, progress: Progress | None = None, begins: bool = False,
            run_list: Path | None = None) -> PreparedData:
    """List the clips of `splits`, render the built-in ones if needed, and decode those not yet in the frame cache.

    Frames are kept at min(source's short side, `short_side`) pixels, aspect kept. `workers` processes share the work,
    and so do programs that prepare the same set at the same time. `listed` replaces the clips that `config` names.

    If a search or training `begins`, clips of a single frame are left out and uneven classes are reported. A resumed
    one uses the clips that it began with: they are in the file `run_list` and must all be readable. Raises `DataError`
    if something is wrong with the clips, for instance more unreadable ones than `config.max_unreadable` allows.
    """
    listed = listed or list_clips(config, to_train="train" in splits)
    clips = tuple(clip for clip in listed.clips if clip.split in splits)
    found = _gather(config, replace(listed, clips=clips), short_side, workers, progress)
    _check_unreadable(config, found, run_list)
    if begins:
        found = _leave_out_stills(found)
        is_readable = [isinstance(outcome, CachedClip) for outcome in found.outcomes]
        for note in balance_notes(balance(found.listed, is_readable)):
            logger.info(note)
    train, val, test = (tuple(clip for split, clip in found.readable if split == wanted)
                        for wanted in ("train", "val", "test"))
    median_s = median_length_s((split, clip.length_s) for split, clip in found.readable)
    left = tuple(replace(clip, content=outcome.content[:CONTENT_DIGITS])
                 for clip, outcome in zip(found.listed.clips, found.outcomes, strict=True)
                 if isinstance(outcome, CachedClip))
    return PreparedData(listed.classes, train, val, test, found.unreadable, median_s or 0.0,
                        _fingerprint(listed.classes, found.readable), replace(listed, clips=left))


def cache_clips(config: DataConfig, *, short_side: int, workers: int,
                progress: Progress | None = None) -> dict[str, Any]:
    """Fill the frame cache with all clips that `config` names, as `prepare` does, and return the figures.

    These are the number of `clips`, of those `kept` in the cache, decoded at each access (`direct`) and `unreadable`;
    the `bytes` of the kept ones, `estimate_bytes` that were expected to be added, `short_side`, `folder`, `wall_s`.
    Raises `DataError` if clips cannot be listed or frames cannot be written.
    """
    start_s = time.monotonic()
    found = _gather(config, list_clips(config, to_train=False), short_side, workers, progress)
    stores = {clip.store: len(clip.times_s) * clip.height * clip.width * 3 for _, clip in found.readable if clip.store}
    kept = sum(clip.store is not None for _, clip in found.readable)
    return {"clips": len(found.outcomes), "kept": kept, "direct": len(found.readable) - kept,
            "unreadable": len(found.unreadable), "bytes": sum(stores.values()),
            "estimate_bytes": round(found.estimate_bytes), "short_side": short_side, "folder": str(found.folder),
            "wall_s": round(time.monotonic() - start_s, 3)}


@dataclass(frozen=True, eq=False)
class _Found:
    """The listed clips, each with its frames or with the reason why it cannot be read."""

    listed: ClipList
    outcomes: list[CachedClip | str]
    folder: Path
    estimate_bytes: float

    @property
    def readable(self) -> list[tuple[str, CachedClip]]:
        """The readable clips, with their splits."""
        return [(clip.split, outcome) for clip, outcome in zip(self.listed.clips, self.outcomes, strict=True)
                if isinstance(outcome, CachedClip)]

    @property
    def unreadable(self) -> tuple[tuple[Path, str], ...]:
        """The other clips, with the reasons."""
        return tuple((clip.path, outcome) for clip, outcome in zip(self.listed.clips, self.outcomes, strict=True)
                     if isinstance(outcome, str))


def _gather(config: DataConfig, listed: ClipList, short_side: int, workers: int,
            progress: Progress | None) -> _Found:
    for note in listed.notes:
        logger.info(note)
    folder = cache_dir(config)
    if config.is_builtin:
        synthetic.ensure_rendered(config.builtin, folder, workers)
    cache = FrameCache(folder / "frames", config.cache_gb * 1e9, frame_rate=config.frame_rate,
                       timeout_s=config.timeout_s)
    estimate = estimate_bytes(cache, listed.clips, short_side, workers) if config.cache_gb else 0.0
    if estimate:
        logger.info(f"decoded frames take about {size_text(round(estimate))} more (of data.cache_gb "
                    f"{config.cache_gb:g}, {size_text(round(cache.limit.used_bytes))} in use) in {cache.folder}")
    outcomes = _decode_all(listed.clips, cache, short_side, workers, progress)
    found = _Found(listed, outcomes, cache.folder, estimate)
    readable, unreadable = found.readable, found.unreadable
    for path, reason in unreadable[:SHOWN]:
        logger.warning(f"left out {path}: {reason}")
    if len(unreadable) > SHOWN:
        logger.warning(f"left out {len(unreadable) - SHOWN} more")
    if damaged := [clip.path for _, clip in readable if clip.damaged]:
        logger.warning(f"damaged and kept as far as they decode: {quantity(len(damaged), 'clip')}, the first "
                       f"{damaged[0]}")
    if missing := sum(clip.store is None for _, clip in readable):
        because = cache.full_because or "each alone is larger than data.cache_gb"
        logger.warning(f"the frames of {missing} of {len(readable)} clips are not kept ({because}) and will be decoded "
                       "at each access, which is slower")
    train = {clip.content for split, clip in readable if split == "train"}
    if shared := sum(clip.content in train for split, clip in readable if split != "train"):
        logger.warning(f"train shares {quantity(shared, 'clip')} with val or test: accuracies on them say little")
    return found


def _decode_all(clips: Sequence[Clip], cache: FrameCache, short_side: int, workers: int,
                progress: Progress | None) -> list[CachedClip | str]:
    """Decode the clips that are not in the cache; return every clip, or the reason why it cannot be read.

    This takes two rounds. Clips that another process is decoding, that need other files to be removed, or that ended
    their process wait for the second, when all frames that this set already has are marked as used.
    """
    outcomes: dict[int, CachedClip | str] = {}
    next_s = time.monotonic() + REPORT_EVERY_S
    for last_round in (False, True):
        if last_round:
            cache.begin_last_round()
        waiting = [number for number in range(len(clips)) if number not in outcomes]
        # in the first round a crash gives None, as the process may have been killed for its memory alone
        reason_of = ((lambda clip, reason: reason) if last_round else
                     (lambda clip, reason: reason if died_of(reason) == "hang" else None))
        work = process_map(_decode, (cache, short_side, last_round), [clips[number] for number in waiting], workers,
                           timeout_s=cache.timeout_s, died=reason_of)
        for number, outcome in zip(waiting, work, strict=True):
            if outcome is not None:
                outcomes[number] = outcome
                if progress:
                    progress(len(outcomes), len(clips))
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + REPORT_EVERY_S
                logger.info(f"decoded {len(outcomes)} of {len(clips)} clips")
    return [outcomes[number] for number in range(len(clips))]


def _decode(state: tuple[FrameCache, int, bool], clip: Clip) -> CachedClip | str | None:
    cache, short_side, last_round = state
    try:
        return cache.get(clip.path, clip.label, short_side, last_round=last_round)
    except UnreadableClip as error:
        return error.what


def _check_unreadable(config: DataConfig, found: _Found, run_list: Path | None) -> None:
    """Raise `DataError` if more clips are unreadable than the configuration, or the run that is resumed, allows."""
    listed, unreadable = found.listed, found.unreadable
    if not unreadable:
        return
    total = len(listed.clips)
    lines = abbreviate([f"{path}: {reason}" for path, reason in unreadable])
    is_over = len(unreadable) > config.max_unreadable * total
    if run_list is not None and (is_over or run_list.exists()):
        raise DataError(f"{len(unreadable)} of the {total} clips of this run cannot be read:\n{lines}",
                        where=str(run_list) if run_list.exists() else None,
                        fix=PUT_BACK if run_list.exists() else "put them back as they were, or mount their disk")
    if is_over:
        raise DataError(f"{len(unreadable)} of {total} clips cannot be read, more than data.max_unreadable "
                        f"({config.max_unreadable:g}) allows:\n{lines}",
                        fix="mend or remove them, check that relative paths are right"
                            + (", or go on without them: "
                               f"--set data.max_unreadable={len(unreadable) / total + 0.005:.2f}"
                               if found.readable else ""))
    if gone := listed.find_emptied(isinstance(outcome, CachedClip) for outcome in found.outcomes):
        raise DataError(f"no readable clip is left for {', '.join(gone)}:\n{lines}", fix="mend these clips, or take "
                        "the split or class away")


def _leave_out_stills(found: _Found) -> _Found:
    """Return `found` without the clips of a single frame, which show no motion.

    Raises `DataError` if no others are left for a split or a class, or at all.
    """
    single = [isinstance(outcome, CachedClip) and len(outcome.times_s) == 1 for outcome in found.outcomes]
    paths = [clip.path for clip, is_single in zip(found.listed.clips, single, strict=True) if is_single]
    if not paths:
        return found
    if len(paths) == len(found.readable):
        raise DataError(f"all {quantity(len(paths), 'clip')} have a single frame: these are pictures and no videos, "
                        f"the first is {paths[0]}", fix="a clip is a video file, or a folder with the pictures of one "
                        "recording: <class>/<clip>/<picture>")
    logger.warning(f"left out {quantity(len(paths), 'clip')} of a single frame, which shows no motion: {paths[0]}"
                   + (" and others" if len(paths) > 1 else ""))
    outcomes: list[CachedClip | str] = ["has one frame only" if is_single else outcome
                                       for outcome, is_single in zip(found.outcomes, single, strict=True)]
    if gone := found.listed.find_emptied(isinstance(outcome, CachedClip) for outcome in outcomes):
        lines = abbreviate([str(path) for path in paths])
        raise DataError(f"no clip of more than a single frame is left for {', '.join(gone)}:\n{lines}",
                        fix="move these files out of the clips' folders (a split that is made is then drawn without "
                        "them), or take the split or class away")
    return replace(found, outcomes=outcomes)


def _fingerprint(classes: Sequence[str], clips: list[tuple[str, CachedClip]]) -> str:
    digest = hashlib.sha256(repr((FINGERPRINT, tuple(classes))).encode())
    for split, clip in clips:
        name = clip.path.name if clip.path.is_dir() else clip.path.stem  # a clip and the folder of its frames agree
        digest.update(repr((split, clip.label, name, clip.height, clip.width)).encode())
        digest.update(np.rint(clip.times_s * 1e6).astype(np.int64).tobytes())
        digest.update(b"mirrored" if clip.mirrored else b"")
    return digest.hexdigest()[:16]


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
