"""The clips of a run that goes on: the same ones, in the same order, with the same content; or what is different."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from expand.config.schema import DataConfig
from expand.data import ClipList, PreparedData, list_clips
from expand.data.sources import kept_clips, other_orders, refuse_changed
from expand.errors import DataError, RunError

Prepare = Callable[[ClipList, Callable[[str], None]], PreparedData]
"""Decodes listed clips; the second argument gets lines for people."""


def list_again(path: Path, config: DataConfig, classes: Sequence[str] | None) -> ClipList:
    """The clips that a run goes on with: those of its list `path`, else, where it has none, those of `config`.

    Raises `DataError` and `RunError` with advice that can be followed when a run is resumed.
    """
    try:
        return kept_clips(path, config, classes=classes, to_resume=True)
    except DataError as error:
        if path.exists() or config.is_builtin:
            raise
        raise DataError(error.what, where=error.where, fix="the run has no list of its clips, and their source is "
                        f"another now: put {path.name} back into the run, or the clips as they were") from error


def prepare_again(listed: ClipList, path: Path, config: DataConfig, begun: Mapping[str, object] | None,
                  prepare: Prepare, report: Callable[[str], None]) -> PreparedData:
    """The clips `listed` of a run, ready, as it `begun` with them: its fingerprint, and classes and counts of clips by
    split where they are known. Raises `RunError` where they are others."""
    data = prepare(listed, report)
    refuse_changed(listed, data.listed, path)
    if begun is None or begun["fingerprint"] == data.fingerprint:
        return data
    for other in other_orders(listed, _source(config)):
        again = prepare(other, lambda line: None)
        if again.fingerprint == begun["fingerprint"]:
            report(f"the lines of {path} are in another order than when the run began; it goes on in the old one")
            return again
    splits, classes = begun.get("splits"), begun.get("classes")
    found = []
    if classes is not None and list(classes) != list(data.classes):
        found.append(f"the classes are {', '.join(data.classes)[:200]}, and were {', '.join(classes)[:200]}")
    for split, count in (splits or {}).items():
        if count != data.counts.get(split):
            found.append(f"{split} has {data.counts.get(split)} clips, and had {count}")
    what = "; ".join(found) or "as many as before in each split, but other ones, or in another order"
    raise RunError(f"the clips were changed since the run began: {what}", where=str(path if path.exists() else
                                                                                    config.source),
                   fix="put the old clips back, or start a new run with the new ones")


def _source(config: DataConfig) -> ClipList | None:
    try:
        return list_clips(config)
    except DataError:  # it is not there any more, or another
        return None
