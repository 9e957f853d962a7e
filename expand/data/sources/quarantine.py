"""The quarantine list: a CSV `path,kind,reason` of clips to leave out, which `x3d-expand data check` writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from expand.config.schema import DataConfig
from expand.data.sources.clip import absolute
from expand.data.sources.paths import cache_dir, lists_of
from expand.data.sources.text_files import csv_bytes, csv_rows
from expand.errors import DataError, quantity
from expand.home import expand_home, expand_home_if_any
from expand.rundir.files import write_atomic

NAME = "quarantine.csv"
HEADER = ("path", "kind", "reason")
FIX = "it is a CSV with the header path,kind,reason; mend it, or write it anew with `x3d-expand data check`"


def quarantine_file(config: DataConfig) -> Path:
    """Return the path of the quarantine list: `data.quarantine`, else a file beside the clips."""
    if config.quarantine:
        return expand_home(config.quarantine, "data.quarantine")
    if config.path:
        path = expand_home(config.path, "data.path")
        return (path.parent if path.is_file() else path) / NAME
    lists = lists_of(config)
    return (next(iter(lists.values())).parent if lists else cache_dir(config)) / NAME


def read_quarantine(path: Path) -> dict[Path, tuple[str, str]]:
    """Return {absolute path: (kind, reason)} of the quarantine list `path`; relative paths start at its folder.

    Raises `DataError` for a file that cannot be read or is no such list.
    """
    folder = os.path.dirname(absolute(path))
    rows = csv_rows(path)
    header = [name.strip().lower() for name in next(rows, (0, ()))[1]]
    if "path" not in header:
        raise DataError("has no column path", where=str(path), fix=FIX)
    column, found = header.index("path"), {}
    for number, row in rows:
        if not any(row):
            continue
        if len(row) <= column or not row[column].strip():
            raise DataError("a line without a path", where=f"{path}:{number}", fix=FIX)
        named = dict(zip(header, row, strict=False))
        found[Path(absolute(os.path.join(folder, expand_home_if_any(row[column]))))] = (named.get("kind", ""),
                                                                                        named.get("reason", ""))
    return found


def write_quarantine(path: Path, rows: Iterable[tuple[Path, str, str]]) -> None:
    """Write (clip, kind, reason) as the quarantine list `path`, at once or not at all.

    Clips below its folder are written relative to it, so that both may be moved together. Raises `RunError` if the
    file cannot be written.
    """
    folder = os.path.dirname(absolute(path))
    lines: list[tuple[str, ...]] = [HEADER]
    for clip, kind, reason in rows:
        full = absolute(clip)
        inside = full.startswith(folder.rstrip("/") + "/")
        lines.append((os.path.relpath(full, folder) if inside else full, kind, " ".join(reason.split())))
    write_atomic(Path(path), csv_bytes(lines))


def find_kept(config: DataConfig, paths: Sequence[str | Path]) -> tuple[list[bool], list[str]]:
    """Return for each of the clips `paths` whether the quarantine list for `config` does not name it, and lines for the
    log. Without a list all are kept. Raises `DataError` if `data.quarantine` names a missing file."""
    path = quarantine_file(config)
    if not path.is_file():
        if config.quarantine:
            raise DataError("no such file", where=str(path), fix="data.quarantine names a list of clips to leave out; "
                            "`x3d-expand data check` writes it")
        return [True] * len(paths), []
    excluded = set(map(str, read_quarantine(path)))
    kept = [absolute(clip) not in excluded for clip in paths] if excluded else [True] * len(paths)
    if count := kept.count(False):
        return kept, [f"left out {quantity(count, 'clip')} that {path} names"]
    return kept, [f"{path} names {quantity(len(excluded), 'clip')}, none of them among these"] if excluded else []
