"""Finding clips in folders: files, and folders of frames; one `scandir` a folder and no `stat` a file.

240,000 clips are listed in a second or two, also where the disk is far away.
"""

from __future__ import annotations

import os

from expand.errors import DataError

FRAMES = (".jpg", ".jpeg", ".png")
SIDE_FILES = {".txt", ".csv", ".tsv", ".json", ".yaml", ".yml", ".xml", ".md", ".html", ".pdf", ".npy", ".npz", ".pkl",
              ".srt", ".vtt", ".webp", ".log", ".ini", ".db", ".py", ".sh", ".zip", ".tar", ".gz", ".rar", ".7z",
              *FRAMES}
"""What may lie beside clips; any other file in a class folder is taken for a clip, and named if it is none."""
THUMBNAILS = {"thumb", "thumbs", "thumbnail", "thumbnails", "preview", "previews", "poster", "posters"}
"""Folders whose images are no frames."""


def folders_in(folder: str) -> list[str]:
    """The names of the folders in `folder`, hidden ones aside, in order."""
    return sorted(entry.name for entry in _entries(folder) if _is_dir(entry))


def files_in(folder: str) -> list[str]:
    """The names of what is no folder in `folder`, hidden ones aside, in order."""
    return sorted(entry.name for entry in _entries(folder) if not _is_dir(entry))


def clips_below(folder: str) -> list[str]:
    """Clips at any depth below `folder`, as paths relative to it, in a fixed order.

    A clip is a file (not a hidden one, none of `SIDE_FILES`), or a folder below `folder` that holds JPEG or PNG images
    and no clip file at any depth. Images beside clip files are thumbnails, and so is a folder of images that is named
    like a clip file beside it. Raises `DataError` for a folder that cannot be read.
    """
    files, frames = _walk(folder, "")
    return sorted(files + frames, key=lambda path: path.replace("/", "\0"))  # as paths are ordered: part by part


def stem_of(name: str) -> str:
    """`name` without its last suffix."""
    return name.rpartition(".")[0] or name


def _walk(folder: str, prefix: str, left: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """Clip files and folders of frames below `folder`, each with `prefix` before it; `left`: the folders that links
    were followed out of on the way here."""
    files, frames, below, has_images = [], [], [], False
    for entry in _entries(folder):
        if _is_dir(entry):
            below.append(entry)
        elif (suffix := _suffix(entry.name)) in FRAMES:
            has_images = True
        elif suffix not in SIDE_FILES:
            files.append(prefix + entry.name)
    stems = {stem_of(path[len(prefix):]) for path in files}
    for entry in below:
        way = (*left, os.path.realpath(folder)) if entry.is_symlink() else left
        if entry.is_symlink() and _leads_back(entry.path, way):
            continue
        more_files, more_frames = _walk(entry.path, f"{prefix}{entry.name}/", way)
        files += more_files
        if entry.name.lower() not in THUMBNAILS and entry.name not in stems:
            frames += more_frames
    if has_images and prefix and not files:
        return [], [prefix[:-1]]
    return files, frames


def _leads_back(link: str, way: tuple[str, ...]) -> bool:
    """Whether a link to a folder holds one of the folders on the `way` to it, so that a walk would never end."""
    target = os.path.realpath(link).rstrip("/") + "/"
    return any(f"{folder}/".startswith(target) for folder in way)


def _suffix(name: str) -> str:
    head, dot, tail = name.rpartition(".")
    return f".{tail.lower()}" if dot and head else ""


def _is_dir(entry: os.DirEntry) -> bool:
    """Whether it is a folder; a link that leads nowhere, also in a circle, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=folder) from error
