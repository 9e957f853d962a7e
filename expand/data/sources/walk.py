"""Find clips in folders: video files, and folders of frames.

One `scandir` for each folder and no `stat` of a file, so that 240,000 clips are listed in a second or two, also on a
network disk.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

from expand.data.file_kinds import (
    ABOUT_FRAMES,
    FRAME_FOLDERS,
    OTHER_PICTURES,
    PICTURE_FOLDERS,
    PICTURES,
    VIDEOS,
    has_no_recordings,
    is_system_folder,
    other_kind,
    suffix_of,
)
from expand.errors import DataError

KINDS_SHOWN = 6
"""Kinds of skipped files that a note names; the others are counted."""
MOST_COUNTED = 1_000_000
"""Files in a system folder that are counted at most; a recycle bin may be larger than the data set."""


@dataclass
class PassedOver:
    """Files and folders that are no clips."""

    counts: Counter[str] = field(default_factory=Counter)
    """Number of files by kind, such as ".thm (thumbnails)" or "in @eaDir"."""
    unread: dict[str, str] = field(default_factory=dict)
    """{folder: suffix} of folders of pictures that would be clips if their format were one that is read."""

    def notes(self) -> list[str]:
        """Return a line for the log, or nothing if no file was passed over."""
        counts = +self.counts  # without kinds that count nothing
        if not counts:
            return []
        total, ranked = counts.total(), counts.most_common()
        parts = [f"{count:,} {kind}" for kind, count in ranked[:KINDS_SHOWN]]
        if rest := sum(count for _, count in ranked[KINDS_SHOWN:]):
            parts.append(f"{rest:,} others")
        what = "1 file that is no clip" if total == 1 else f"{total:,} files that are no clips"
        return [f"passed over {what}: {', '.join(parts)}"]


def folders_in(folder: str) -> list[str]:
    """Return the sorted names of the folders in `folder`, without hidden ones and those of systems and NAS."""
    return sorted(entry.name for entry in _entries(folder) if _is_dir(entry) and not is_system_folder(entry.name))


def files_in(folder: str) -> list[str]:
    """Return the sorted names of the files in `folder`, without hidden ones."""
    return sorted(entry.name for entry in _entries(folder) if not entry.name.startswith(".") and not _is_dir(entry))


def count_system_folders(folder: str, passed: PassedOver) -> None:
    """Count the files in the folders of systems and NAS that lie directly in `folder`."""
    for entry in _entries(folder):
        if not entry.name.startswith(".") and is_system_folder(entry.name) and _is_dir(entry):
            _count_all(entry, passed)


def clips_below(folder: str, passed: PassedOver | None = None) -> list[str]:
    """Return the clips at any depth below `folder`, as paths relative to it, in a fixed order.

    A clip is a file that `file_kinds` does not name as something else, or a folder below `folder` that holds pictures
    of a kind that is read and no clip file at any depth. Pictures beside clip files are thumbnails, and so is a folder
    of pictures that is named like a clip file beside it. A folder `depth` or the like beside `rgb` is no clip either.
    `passed` counts the files that are no clips. Raises
    `DataError` for a folder that cannot be read.
    """
    files, frames = _walk(folder, "", passed if passed is not None else PassedOver())
    return sorted(files + frames, key=lambda path: path.replace("/", "\0"))  # as paths are ordered: part by part


def stem_of(name: str) -> str:
    """Return `name` without its last suffix."""
    return name.rpartition(".")[0] or name


def _walk(folder: str, prefix: str, passed: PassedOver, left: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """Clip files and folders of frames below `folder`, each with `prefix` before it; `left`: the folders that links
    were followed out of on the way here."""
    files: list[str] = []
    frames: list[str] = []
    below: list[os.DirEntry[str]] = []
    pictures, unread = 0, Counter[str]()
    for entry in _entries(folder):
        name, suffix = entry.name, suffix_of(entry.name)
        if _is_dir(entry):
            below.append(entry)
        elif name.startswith("."):
            passed.counts["hidden files"] += suffix in VIDEOS or suffix == ".icloud"
        elif suffix in PICTURES:
            pictures += 1
        elif kind := other_kind(name):
            passed.counts[kind] += 1
            unread[suffix] += suffix in OTHER_PICTURES
        else:
            files.append(prefix + name)
    stems = {stem_of(path[len(prefix):]) for path in files}
    beside = {entry.name.lower() for entry in below}
    has_frames = bool(beside & FRAME_FOLDERS)
    for entry in below:
        if entry.name.startswith("."):
            continue
        if is_system_folder(entry.name) or has_no_recordings(os.path.basename(folder), entry.name, beside):
            _count_all(entry, passed)
            continue
        way = (*left, os.path.realpath(folder)) if entry.is_symlink() else left
        if entry.is_symlink():
            target = os.path.realpath(entry.path).rstrip("/") + "/"
            if any(f"{parent}/".startswith(target) for parent in way):
                continue  # it leads back to a folder on the way here, and the walk would not end
        more_files, more_frames = _walk(entry.path, f"{prefix}{entry.name}/", passed, way)
        files += more_files
        if has_frames and ABOUT_FRAMES.fullmatch(entry.name):
            passed.counts["folders of pictures about frames"] += len(more_frames)
        elif entry.name.lower() not in PICTURE_FOLDERS and entry.name not in stems:
            frames += more_frames
        else:
            passed.counts["folders of thumbnails"] += len(more_frames)
    if pictures and prefix and not files:
        return [], [prefix[:-1]]
    passed.counts["pictures beside clips"] += pictures
    if unread and prefix and not files and not frames and os.path.basename(folder).lower() not in PICTURE_FOLDERS:
        suffix, count = unread.most_common(1)[0]
        if count > 1:
            passed.unread[folder] = suffix
    return files, frames


def _count_all(entry: os.DirEntry[str], passed: PassedOver) -> None:
    """Count the files of a folder that is not searched; parts that cannot be read are ignored."""
    inside = (name for _, _, names in os.walk(entry.path) for name in names)
    if count := sum(1 for _ in islice(inside, MOST_COUNTED)):
        passed.counts[f"in {entry.name}"] += count


def _is_dir(entry: os.DirEntry[str]) -> bool:
    """True for a folder; a broken or circular link is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=folder) from error
