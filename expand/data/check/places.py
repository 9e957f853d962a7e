"""Where a check leaves its report and the quarantine list, and what people wrote into that list themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expand.config.schema import DataConfig
from expand.data.check.problems import KINDS
from expand.data.sources import quarantine_file, read_quarantine, write_quarantine
from expand.data.sources.clip import absolute
from expand.data.sources.quarantine import NAME
from expand.errors import RunError, UsageError
from expand.rundir.files import make_dir

REPORT = "data-report.json"
Row = tuple[Path, str, str]
"""A clip, the kind of its problem, and the reason."""


@dataclass(frozen=True)
class Places:
    """The files of a check."""

    report: Path
    quarantine: Path
    honoured: bool
    """Whether a search of the same clips finds the quarantine list by itself."""

    @property
    def unfinished(self) -> Path:
        """What is known so far, while a check goes on or if it was interrupted."""
        return self.report.with_name(f".{self.report.name}.unfinished")


def find_places(config: DataConfig, out: Path | None) -> Places:
    """`out`, else beside the clips, else, where that cannot be written, the current folder.

    Raises `UsageError` where `out` cannot be written, or nothing can. Nothing is left behind.
    """
    own = quarantine_file(config)
    if out is not None:
        if not _can_write(out):
            raise UsageError("cannot be written", where=str(out), fix="name another folder with --out")
        return Places(out / REPORT, out / NAME, absolute(out / NAME) == absolute(own))
    if _can_write(own.parent):
        return Places(own.parent / REPORT, own, True)
    if not _can_write(Path.cwd()):
        raise UsageError("neither this folder nor the current one can be written", where=str(own.parent),
                         fix="name a folder for the report with --out")
    return Places(Path.cwd() / REPORT, Path.cwd() / NAME, False)


def _can_write(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=make_dir(folder)):
            return True
    except (OSError, RunError):
        return False


def rows_by_hand(*paths: Path) -> list[Row]:
    """The clips in quarantine lists that no check put there: their kind is none of ours. Lists may be missing.

    Raises `DataError` for a list that cannot be read.
    """
    found: dict[Path, tuple[str, str]] = {}
    for path in paths:
        found |= read_quarantine(path) if path.is_file() else {}
    return [(clip, kind, reason) for clip, (kind, reason) in found.items() if kind not in KINDS]


def write_list(path: Path, rows: Sequence[Row]) -> str | None:
    """Writes the quarantine list `path`; without rows, an old one is taken away. What happened to it, if that is not
    what one expects."""
    if rows:
        write_quarantine(path, rows)
    elif path.is_file():
        path.unlink()
        return f"nothing is to be left out any more: {path} was removed"
    return None
