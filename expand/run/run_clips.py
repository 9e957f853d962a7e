"""The clips of a run: decoded at the size that it needs; and, when it is resumed, the same clips in the same order with
the same content, or an error that says what is different."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expand import logs
from expand.config.schema import DataConfig
from expand.data import ClipList, list_clips
from expand.data.sources import list_run_clips, other_orders, refuse_changed
from expand.errors import DataError, RunError
from expand.machine import available_cores

if TYPE_CHECKING:
    from expand.data import PreparedData


logger = logging.getLogger(__name__)


def prepare_clips(config: DataConfig, listed: ClipList, resolution: int, *,
                  begins: bool = False, run_list: Path | None = None) -> PreparedData:
    """Decode the clips `listed` for crops of up to `resolution` pixels, with all cores; the rest is as in
    `expand.data.prepare`."""
    from expand.data import prepare

    return prepare(config, short_side=int(resolution * config.jitter_max) + 1, workers=available_cores(), listed=listed,
                   begins=begins, run_list=run_list)


def list_again(path: Path, config: DataConfig, classes: Sequence[str] | None) -> ClipList:
    """Return the clips that a run is resumed with: those of its list `path`, else, where it has none, those of
    `config`.

    Raises `DataError` and `RunError` with advice that can be followed when a run is resumed.
    """
    try:
        return list_run_clips(path, config, classes=classes, to_resume=True)
    except DataError as error:
        if path.exists() or config.is_builtin:
            raise
        raise DataError(error.what, where=error.where, fix="the run has no list of its clips, and their source is "
                        f"another now: put {path.name} back into the run, or the clips as they were") from error


def prepare_again(listed: ClipList, path: Path, config: DataConfig, begun: Mapping[str, Any] | None,
                  resolution: int) -> PreparedData:
    """Return the clips `listed` of a run, whose list is `path`, as it `begun` with them: its fingerprint, and classes
    and numbers of clips by split where they are known. Raises `RunError` where they are others."""
    data = prepare_clips(config, listed, resolution, run_list=path)
    refuse_changed(listed, data.listed, path)
    if begun is None or begun["fingerprint"] == data.fingerprint:
        return data
    try:
        source = list_clips(config)
    except DataError:  # it is not there any more, or another
        source = None
    for other in other_orders(listed, source):
        with logs.muted():
            again = prepare_clips(config, other, resolution, run_list=path)
        if again.fingerprint == begun["fingerprint"]:
            logger.warning(f"the lines of {path} are in another order than when the run began; it goes on in the old "
                           "one")
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
