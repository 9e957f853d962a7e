"""The directory, the configuration and the clips that a run begins with, and goes on with when it is resumed.

A stored configuration is resolved: every value that was left open is filled in, every path is absolute. A resumed run
has the same options and clips as before, or there is an error that says what is different. Needs no torch to be loaded.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expand import logs
from expand.config import Config, config_diff, parse_config, yaml_document
from expand.config.schema import RUN_NAME, DataConfig
from expand.data import ClipList, list_clips
from expand.data.sources import list_run_clips
from expand.data.sources.run_list import other_orders, refuse_changed
from expand.errors import DataError, RunError, UsageError
from expand.expansion.rules import Space
from expand.home import expand_home
from expand.machine import available_cores
from expand.rundir.paths import RunPaths
from expand.space.axes import AXES
from expand.space.geometry import Geometry
from expand.training.job import check_batches, resolve_recipe

if TYPE_CHECKING:
    from expand.data import PreparedData

logger = logging.getLogger(__name__)

HARMLESS = ("run.name", "run.executor", "run.workers", "run.runs_dir", "run.checkpoint_every_s", "run.heartbeat_s",
            "run.retries", "data.cache_dir", "data.cache_gb", "data.timeout_s")
"""Options that cannot alter a result, so that a run may be continued with other values."""
OF_EARLIER_VERSIONS = {"candidate.lr_scaling": "linear", "final.lr_scaling": "linear"}
"""The values that options had before there was a choice: a run that was begun then does not name them."""
PATHS = ("path", "train", "val", "test", "root", "class_names", "quarantine", "cache_dir")
"""Options of the data that are paths."""
ANY_NUMBER = 10**6
"""A number of train clips to check with before they are counted."""


def choose_dir(config: Config, stem: str) -> Path:
    """Return the directory of a run for which none is given: named by its configuration, else by `stem` and a free
    number."""
    folder, name = expand_home(config.run.runs_dir, "run.runs_dir"), config.run.name
    if name is None:
        stem, number = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "run", 1
        while (folder / f"{stem}-{number}").exists():
            number += 1
        name = f"{stem}-{number}"
    if not RUN_NAME.match(name):
        raise UsageError(f"{name!r} cannot name a run", where="--name",
                         fix="use letters, digits, '.', '_' and '-'; --run-dir takes any path")
    return folder / name


def check_free(paths: RunPaths) -> None:
    """Raise `RunError` where a run, or anything else, is kept in the directory."""
    if not paths.root.exists():
        return
    if not paths.root.is_dir():
        raise RunError("is not a directory", where=str(paths.root), fix="choose another --name or --run-dir")
    if paths.journal.exists() or paths.training.exists():
        raise RunError("a run is kept here", where=str(paths.root),
                       fix=f"go on with it: x3d-expand resume {paths.root}; or choose another --name")
    known = {path.name for path in (paths.config, paths.clips, paths.clips_begun, paths.env, paths.lock, paths.log,
                                    paths.first_weights)}
    if any(entry.name not in known and not entry.name.startswith(".tmp-") for entry in paths.root.iterdir()):
        raise RunError("holds files that are not a run's", where=str(paths.root),
                       fix="choose another --name or --run-dir")


def parse_stored(text: str, where: str, values: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration that a run holds, of this version or an earlier one, with other `values` by dotted key.
    """
    earlier = {} if "lr_scaling:" in text else OF_EARLIER_VERSIONS
    return parse_config(text, where, {**earlier, **(values or {})})


def stored_config(paths: RunPaths, values: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration of a run as it stands in its directory now, with other `values` by dotted key."""
    try:
        return parse_stored(yaml_document.read_regular_file(paths.config), str(paths.config), values)
    except yaml_document.NotYaml as error:
        raise RunError(f"has no configuration that can be read ({paths.config.name} {error.what}), so it is no run or "
                       "was never begun", where=str(paths.root), fix="start one with: x3d-expand search") from error


def current_config(paths: RunPaths, spec: dict[str, Any]) -> Config:
    """Return the configuration as it stands in the directory now; where none does, that of the beginning, `spec`."""
    return stored_config(paths) if paths.config.exists() else parse_stored(spec["config"], str(paths.training))


def resolve_config(config: Config, data: PreparedData, name: str) -> Config:
    """Return `config`, whose section `run` is resolved, with nothing left open for the clips `data`. `name` is that of
    the run's folder, which may be any; the configuration names the run only where it could be given that name."""
    limits = config.search.limits
    if limits.clip_s is None:
        limits = replace(limits, clip_s=round(data.median_s, 6))
    paths: dict[str, Any] = {key: str(expand_home(path, f"data.{key}").resolve()) for key in PATHS
                             if (path := getattr(config.data, key)) is not None}
    clips = len(data.train)
    return replace(config, data=replace(config.data, **paths), search=replace(config.search, limits=limits),
                   candidate=resolve_recipe(config.candidate, clips), final=resolve_recipe(config.final, clips),
                   run=replace(config.run, name=name if RUN_NAME.match(name) else None))


def check_recipes(config: Config, space: Space, clips: int = ANY_NUMBER) -> None:
    """Raise `UsageError` where a search cannot train its networks for want of clips in a batch (`check_batches`), with
    `clips` in the train split. The final training counts as the basis, which its winner cannot be smaller than, unless
    the first step of every axis is one that can be trained and that the target allows."""
    basis = space.basis().factors
    check_batches(resolve_recipe(config.candidate, clips), clips, Geometry.of(basis, space.classes), "candidate")
    first = [AXES[name].grow(basis, 1, space.bounds) for name in space.config.axes]
    smallest = first if all(space.complexity(factors) <= space.target for factors in first) else [basis]
    for factors in smallest:
        check_batches(resolve_recipe(config.final, clips), clips, Geometry.of(factors, space.classes), "final")


def check_unchanged(begun: str, config: Config, where: str) -> None:
    """Raise `RunError` with the difference where `config` would alter the results of a run that began with `begun`."""
    changes = [line for line in config_diff(parse_stored(begun, where), config)
               if not line.startswith(tuple(f"{key}:" for key in HARMLESS))]
    if changes:
        raise RunError("the configuration was changed since the run began: " + "; ".join(changes), where=where,
                       fix="put the old values back, or start a new run with the new ones")


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
