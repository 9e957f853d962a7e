"""Finding clips in folders: files, and folders of frames; one `scandir` a folder and no `stat` a file.

240,000 clips are listed in a second or two, also where the disk is far away.
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
    is_no_recordings,
    is_system_folder,
    no_clip,
    suffix_of,
)
from expand.errors import DataError

KINDS_SHOWN = 6
"""Kinds of files that are no clips which a note names; the rest are counted."""
MOST_COUNTED = 1_000_000
"""Files in a system's folder that are counted; a recycle bin may be larger than the set."""


@dataclass
class PassedOver:
    """What was met on the search for clips and is none."""

    counts: Counter[str] = field(default_factory=Counter)
    """Files by what they are, such as ".thm (thumbnails)" or "in @eaDir"."""
    unread: dict[str, str] = field(default_factory=dict)
    """Folders of pictures that would be a clip if their kind, the suffix, were one that is read."""

    def notes(self) -> list[str]:
        """A line for people, or none where nothing was passed over."""
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
    """The names of the folders in `folder`, in order; but hidden ones and those of systems and NAS."""
    return sorted(entry.name for entry in _entries(folder) if _is_dir(entry) and not is_system_folder(entry.name))


def files_in(folder: str) -> list[str]:
    """The names of what is no folder in `folder`, hidden ones aside, in order."""
    return sorted(entry.name for entry in _entries(folder) if not entry.name.startswith(".") and not _is_dir(entry))


def count_system_folders(folder: str, passed: PassedOver) -> None:
    """Counts the files in the folders of systems and NAS that lie directly in `folder`."""
    for entry in _entries(folder):
        if not entry.name.startswith(".") and is_system_folder(entry.name) and _is_dir(entry):
            _count_all(entry, passed)


def clips_below(folder: str, passed: PassedOver | None = None) -> list[str]:
    """Clips at any depth below `folder`, as paths relative to it, in a fixed order.

    A clip is a file that `file_kinds` does not name as something else, or a folder below `folder` that holds pictures
    of a kind that is read and no clip file at any depth. Pictures beside clip files are thumbnails, and so is a folder
    of pictures that is named like a clip file beside it; a folder `depth` and the like beside `rgb` is about it. What
    is no clip goes into `passed`. Raises `DataError` for a folder that cannot be read.
    """
    files, frames = _walk(folder, "", passed if passed is not None else PassedOver())
    return sorted(files + frames, key=lambda path: path.replace("/", "\0"))  # as paths are ordered: part by part


def stem_of(name: str) -> str:
    """`name` without its last suffix."""
    return name.rpartition(".")[0] or name


def _walk(folder: str, prefix: str, passed: PassedOver, left: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """Clip files and folders of frames below `folder`, each with `prefix` before it; `left`: the folders that links
    were followed out of on the way here."""
    files, frames, below, pictures, unread = [], [], [], 0, Counter()
    for entry in _entries(folder):
        name, suffix = entry.name, suffix_of(entry.name)
        if _is_dir(entry):
            below.append(entry)
        elif name.startswith("."):
            passed.counts["hidden files"] += suffix in VIDEOS or suffix == ".icloud"
        elif suffix in PICTURES:
            pictures += 1
        elif kind := no_clip(name):
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
        if is_system_folder(entry.name) or is_no_recordings(os.path.basename(folder), entry.name, beside):
            _count_all(entry, passed)
            continue
        way = (*left, os.path.realpath(folder)) if entry.is_symlink() else left
        if entry.is_symlink() and _leads_back(entry.path, way):
            continue
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


def _count_all(entry: os.DirEntry, passed: PassedOver) -> None:
    """Counts the files of a folder that is not searched; what cannot be read in it is left."""
    inside = (name for _, _, names in os.walk(entry.path) for name in names)
    if count := sum(1 for _ in islice(inside, MOST_COUNTED)):
        passed.counts[f"in {entry.name}"] += count


def _leads_back(link: str, way: tuple[str, ...]) -> bool:
    """Whether a link to a folder holds one of the folders on the `way` to it, so that a walk would never end."""
    target = os.path.realpath(link).rstrip("/") + "/"
    return any(f"{folder}/".startswith(target) for folder in way)


def _is_dir(entry: os.DirEntry) -> bool:
    """Whether it is a folder; a link that leads nowhere, also in a circle, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=folder) from error
