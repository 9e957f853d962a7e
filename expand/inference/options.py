"""The options of a test and of a prediction, checked before torch is imported; and the clips that a test is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from expand.config import load_config
from expand.config.schema import DataConfig
from expand.data.sources import list_clips, list_run_clips
from expand.data.sources.clip import ClipList
from expand.errors import UsageError, hint
from expand.rundir.contents import check_weights
from expand.rundir.paths import RunPaths
from expand.space.factors import REFERENCE_FPS

CROPS = {10: 1, 30: 3}
"""Crops of each clip, by the number of views."""
MOST_BATCH = 100_000
"""Clips of a batch, at most."""
NETWORK_OPTIONS = ("data.mean", "data.std")
"""Options of the data that are the network's own."""
CLIP_OPTIONS = ("data.path", "data.train", "data.val", "data.test")
"""Options that say which clips; in place of the run's own."""
OTHER_OPTIONS = {"frame_rate", "flip", "jitter_min", "jitter_max", "color_jitter", "mean", "std", "max_unreadable",
                 "timeout_s", "cache_dir", "cache_gb"}
"""Options of the data that do not say which clips there are; with any other, a run's are listed anew."""
SPLIT_OPTIONS = ("val_share", "test_share", "group", "split_seed", "fold")
"""Options that say which clips a network is trained on: a test of a run cannot change them."""
MOST_VIEWS = 1000
"""Clips that a prediction can take from a file, beside those of a timeline."""
LONGEST_WINDOW_S = 86_400.0
"""Longest window, seconds: a day."""


@dataclass(frozen=True)
class TestClips:
    """The clips of `split` in `listed`, which `config` reads; `other`: what was named in place of the run's own
    clips."""

    __test__ = False  # no test case for pytest

    config: DataConfig
    listed: ClipList
    split: str
    other: str | None


def choose_test_clips(source: str | Path, weights: str | Path | None, *, views: int, data: str | Path | None,
                      data_root: str | Path | None, overrides: Sequence[str], split: str | None,
                      out: str | Path | None, batch_size: int) -> TestClips:
    """Check the options of a test, and return the clips that it is about: `data`, or what `overrides` name, else the
    clips that the run `source` kept.

    Raises `UsageError` for options that are wrong or would split a run's clips anew, `DataError` for the clips.
    """
    if views not in CROPS:
        raise UsageError(f"{views} views", fix=f"choose {' or '.join(map(str, CROPS))}")
    if not 1 <= batch_size <= MOST_BATCH:
        raise UsageError(f"a batch of {batch_size:,} clips", where="--batch-size", fix=f"1 to {MOST_BATCH:,}")
    if out and Path(out).exists() and not Path(out).is_dir():
        raise UsageError("is not a folder", where=str(out), fix="name a folder for the results: --out DIR")
    check_weights(source, weights)
    pairs = [(text, *(part.strip() for part in text.partition("=")[::2])) for text in overrides]
    for text, key, _ in pairs:
        if not key.startswith("data.") or key in NETWORK_OPTIONS:
            what = "the network's own description says it" if key in NETWORK_OPTIONS else "is no option of the clips"
            raise UsageError(what, where=f"--set {text}",
                             fix="a test takes data.* only, for instance data.cache_dir=DIR")
    paths = RunPaths(Path(source))
    other = str(data) if data else next((value for _, key, value in pairs if key in CLIP_OPTIONS), None)
    has_own = paths.config.is_file()
    if other is None and not has_own and not any(key.startswith("data.builtin") for _, key, _ in pairs):
        raise UsageError("which clips?", where=str(paths.root),
                         fix="it is no run with clips of its own: add --data PATH")
    values = {"data.path": data and str(data), "data.root": data_root and str(data_root)}
    config = load_config(paths.config if has_own and other is None else None, overrides, values).data
    if other is not None or not has_own:
        listed = list_clips(config, to_train=False)
    else:
        own, now = asdict(load_config(paths.config, (), {}).data), asdict(config)
        changed = {name for name in own if own[name] != now[name]} - OTHER_OPTIONS
        if split_anew := [f"data.{name}" for name in SPLIT_OPTIONS if name in changed]:
            raise UsageError("would split the run's clips anew, and test it on clips that it was trained on",
                             where=", ".join(split_anew), fix="leave it out, or name other clips with --data")
        listed = list_clips(config) if changed else list_run_clips(paths.clips, config)
    splits = {clip.split for clip in listed.clips}
    split = split or ("test" if "test" in splits else "val")
    if split not in splits:
        raise UsageError(f"these clips have no {split} split", fix=f"there is {', '.join(sorted(splits))}")
    return TestClips(config, listed, split, other)


def check_predict(source: str | Path, weights: str | Path | None, *, top: int, views: int, timeline: bool,
                  window_s: float | None, hop_s: float | None) -> None:
    """Raise `UsageError` for options of a prediction that are wrong, `UsageError` or `RunError` for a network that is
    not there."""
    if top < 1 or views < 1:
        raise UsageError(f"top and views are at least 1, got {top} and {views}")
    if views > MOST_VIEWS:
        raise UsageError(f"{views:,} views", fix=f"take at most {MOST_VIEWS}")
    if not timeline and (window_s, hop_s) != (None, None):
        raise UsageError("a window and its hop belong to a timeline",
                         fix=hint(command="add --timeline", python="add timeline=True"))
    least_s = 1 / REFERENCE_FPS - 1e-3
    if window_s is not None and not least_s <= window_s <= LONGEST_WINDOW_S:
        raise UsageError(f"a window of {window_s:g} s", where="--window",
                         fix="it is at least as long as the network's clip, and at most a day, "
                             f"{LONGEST_WINDOW_S:,.0f} s")
    most_s = LONGEST_WINDOW_S if window_s is None else window_s
    if hop_s is not None and not least_s <= hop_s <= most_s:
        raise UsageError(f"a hop of {hop_s:g} s", where="--hop",
                         fix=f"it is at least 1/{REFERENCE_FPS} s and at most the window"
                             + ("" if window_s is None else f", {window_s:g} s"))
    check_weights(source, weights)
