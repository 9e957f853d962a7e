"""The directory of a run: its name, whether it is free for a new one, and the configuration that is stored in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expand.config import Config, parse_config, yaml_document
from expand.config.schema import RUN_NAME
from expand.errors import RunError, UsageError
from expand.home import expand_home
from expand.rundir.paths import RunPaths


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


def stored_config(paths: RunPaths, values: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration of a run as it stands in its directory now, with other `values` by dotted key."""
    try:
        return parse_config(yaml_document.read_regular_file(paths.config), str(paths.config), values)
    except yaml_document.NotYaml as error:
        raise RunError(f"has no configuration that can be read ({paths.config.name} {error.what}), so it is no run or "
                       "was never begun", where=str(paths.root), fix="start one with: x3d-expand search") from error
