"""Where decoded frames and runs are kept: whether they can be, and the room."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from expand.config.schema import DataConfig, RunConfig
from expand.health.check import NOTE, OK, PROBLEM, Check
from expand.home import cache_place

COUNT_FOR_S = 1.0
"""How long files are counted; a cache of a large set has hundreds of thousands."""
LITTLE_GB = 2.0
"""Less than the checkpoints of a search, or the frames of a small set, may take."""


def cache() -> Check:
    """The folder of decoded frames and rendered clips: the one that is used unless `data.cache_dir` names another."""
    folder, reason = cache_place()
    size, counted_all = size_of(folder)
    facts = {**_room(folder), "size_gb": size / 1e9, "counted_all": counted_all,
             "limit_gb": DataConfig().cache_gb, "no_home": reason}
    size_text = f"{'' if counted_all else 'more than '}{size / 1e9:.2f} GB in it (decoded frames: at most " \
                f"{DataConfig().cache_gb:g})"
    elsewhere = "name another folder with --set data.cache_dir=DIR, or XDG_CACHE_HOME"
    found = _judged("cache", facts, size_text, elsewhere)
    if reason and found.state == OK:
        return Check("cache", NOTE, f"{found.text}; {reason}", f"to keep it for longer, {elsewhere}", facts)
    return found


def runs() -> Check:
    """The folder of runs, from here: the one that is used unless `--run-dir` or `run.runs_dir` names another."""
    return _judged("runs", _room(Path(RunConfig().runs_dir)), "", "keep runs elsewhere with --run-dir DIR")


def _judged(name: str, facts: dict[str, Any], more: str, elsewhere: str) -> Check:
    text = f"{facts['folder']}: " + (f"{more}, " if more else "")
    if facts["error"]:
        return Check(name, PROBLEM, f"{text}cannot be written to: {facts['error']}", elsewhere, facts)
    text += f"{facts['free_gb']:.1f} GB free on its disk"
    if facts["free_gb"] < LITTLE_GB:
        return Check(name, NOTE, text, f"make room there, or {elsewhere}", facts)
    return Check(name, OK, text, facts=facts)


def _room(folder: Path) -> dict[str, Any]:
    """The folder, what hinders writing there, or in the folder that it will be made in, and the room on its disk."""
    folder = Path(os.path.abspath(folder))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            error = None
    except OSError as failed:
        error = f"{failed.strerror}" + ("" if there == folder else f" ({there})")
    return {"folder": str(folder), "exists": folder.exists(), "error": error,
            "free_gb": shutil.disk_usage(there).free / 1e9}


def size_of(folder: Path, seconds: float = COUNT_FOR_S) -> tuple[float, bool]:
    """Bytes of all files below `folder`, and whether the `seconds` sufficed to count them."""
    total, end, waiting = 0.0, time.monotonic() + seconds, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if time.monotonic() > end:
                        return total, False
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:  # not there, somebody else's, or removed meanwhile
            continue
    return total, True
