"""Paths: of the lists and the cache that a configuration names, and of clips that are not written as on this system."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from expand.config.schema import DataConfig
from expand.data.sources.clip import SPLITS
from expand.data.sources.walk import files_in, folders_in, is_clip_file
from expand.errors import DataError
from expand.home import expand_home, expand_home_if_any, user_cache

SUFFIX = re.compile(r"\.[A-Za-z]\w{1,4}$")
"""The end of a file's name."""
DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\\w")
"""The beginning of a path with a Windows drive or server."""
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
INVISIBLE = "\u200b\u2060\ufeff\u200e\u200f"
"""Invisible characters that come along when text is copied from web pages and documents."""
DEPTH = 3
"""Levels of folders in which a clip is looked for by its name alone."""
PLAIN = re.compile(r"(?!/|~)(?=[^/]*/)[A-Za-z0-9_./ +=,@-]*[A-Za-z0-9_]\.[A-Za-z]\w{1,4}")
"""Relative paths through a folder that can be written in one way only: they are not looked up."""


def lists_of(config: DataConfig) -> dict[str, Path]:
    """Return the lists that `data.train`, `.val` and `.test` name, by split."""
    return {split: expand_home(getattr(config, split), f"data.{split}") for split in SPLITS if getattr(config, split)}


def cache_dir(config: DataConfig) -> Path:
    """Return the folder of rendered clips and decoded frames."""
    return expand_home(config.cache_dir, "data.cache_dir") if config.cache_dir else user_cache()


def trim(text: str) -> str:
    """Return `text` without blanks and invisible characters around it."""
    return text.strip().strip(INVISIBLE).strip()


def strip_quotes(text: str) -> str:
    """Return `text` without a pair of quotes around it."""
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text


def from_windows_text(text: str) -> str:
    """Return `text` with bytes that are no UTF-8 read as Western Windows. Raises `UnicodeDecodeError` for others."""
    is_utf8 = not any("\udc80" <= letter <= "\udcff" for letter in text)
    return text if is_utf8 else text.encode("utf-8", "surrogateescape").decode("cp1252")


def spellings(text: str) -> Iterator[str]:
    """Yield the paths that `text` may stand for, the likeliest first.

    First `text` itself. Then, each step on the result of the one before: without surrounding blanks, without quotes,
    as the path in a `file:` address, with slashes for backslashes, with `%20` and the like resolved, in the encoding
    of Windows.
    """
    def from_address(path: str) -> str:
        return unquote(urlsplit(path).path) if path.lower().startswith("file:") else path

    seen = {text}
    yield text
    for step in (trim, strip_quotes, from_address, lambda path: path.replace("\\", "/"), unquote, from_windows_text):
        try:
            changed = step(text)
        except ValueError:
            continue
        if changed and changed not in seen:
            seen.add(changed)
            yield changed
            text = changed


def foreign_reason(text: str) -> str | None:
    """Return why no file of this machine can have the path `text`; None if the file may simply be missing."""
    text = strip_quotes(trim(text))
    if ADDRESS.match(text) and not text.lower().startswith("file:"):
        return "is a network address: clips must be files on this machine; download them and name the files"
    if DRIVE.match(text):
        return ("is a Windows path: write the path as this system has it, or relative to the list's folder "
                "(`/mnt/c/...` under WSL)")
    return None


class ClipPaths:
    """Finds the files that the paths of a list mean. Relative paths start at the folder `start`.

    A folder is listed once.
    """

    def __init__(self, start: str) -> None:
        self.start = start
        self._names: dict[str, frozenset[str] | None] = {}
        self._stems: dict[str, dict[str, str]] = {}
        self._index: dict[str, list[str]] | None = None

    def find(self, text: str, hints: Sequence[str] = ()) -> str | None:
        """Return the path of the clip that `text` means, which begins with `start` if it is relative; None if there is
        no such clip. A missing suffix or folder is looked for; `hints` are names of folders on the way to the clip."""
        if found := self.find_spelled(text):
            return found
        for path in map(trim, spellings(text)):
            if not path or path.endswith("/"):
                continue
            if found := self._find_with_suffix(self._full(path)):
                return found
            inside = path.lstrip("/")
            folders = [""] if path.startswith("/") else []  # of the data, as if its folder were the root
            folders += hints if "/" not in inside else []
            for folder in folders:
                full = os.path.join(self.start, folder, inside)
                if found := self._find_exact(full) or self._find_with_suffix(full):
                    return found
            if "/" in inside:
                continue
            if self._index is None:
                self._index = {}
                self._add_to_index(self._index, "", DEPTH)
            if len(best := best_places(self._index.get(inside, []), hints)) == 1:
                return os.path.join(self.start, best[0])
        return None

    def find_spelled(self, text: str) -> str | None:
        """Return the existing path that `text` names in one of its spellings; None if there is none."""
        return next((found for path in spellings(text) if (found := self._find_exact(self._full(path)))), None)

    def exists(self, text: str) -> bool:
        """Return true if `text`, as it is written or without its suffix, is the path of a file or folder."""
        full = self._full(text)
        return self._find_exact(full) is not None or self._find_with_suffix(full) is not None

    def _full(self, path: str) -> str:
        return os.path.join(self.start, expand_home_if_any(path))

    def _names_in(self, folder: str) -> frozenset[str] | None:
        """The names in `folder`; None if it cannot be listed, but may have some."""
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder or "."))
            except PermissionError:
                self._names[folder] = None
            except (OSError, ValueError):
                self._names[folder] = frozenset()
        return self._names[folder]

    def _has(self, folder: str, name: str) -> bool:
        if name in ("", ".", ".."):
            return os.path.isdir(os.path.join(folder, name))
        names = self._names_in(folder)
        return os.path.lexists(os.path.join(folder, name)) if names is None else name in names

    def _find_exact(self, full: str) -> str | None:
        """`full` if it exists; else the path that differs from it only in how accented letters are composed."""
        if "\0" in full:
            return None
        folder, name = os.path.split(full)
        if self._has(folder, name):
            return full
        if full.isascii():
            return None
        way = "/" if full.startswith("/") else ""
        for part in filter(None, full.split("/")):
            if self._has(way, part):
                way = os.path.join(way, part)
                continue
            wanted = unicodedata.normalize("NFC", part)
            alike = [name for name in sorted(self._names_in(way) or ())
                     if unicodedata.normalize("NFC", name) == wanted]
            if not alike:
                return None
            way = os.path.join(way, alike[0])
        return way

    def _find_with_suffix(self, full: str) -> str | None:
        """The video file that is `full` but for its suffix."""
        folder, name = os.path.split(full)
        if folder not in self._stems:
            names = sorted(self._names_in(folder) or ())
            self._stems[folder] = {os.path.splitext(file)[0]: file for file in reversed(names) if SUFFIX.search(file)
                                   and is_clip_file(file)}
        file = self._stems[folder].get(name)
        return os.path.join(folder, file) if file else None

    def _add_to_index(self, index: dict[str, list[str]], folder: str, depth: int) -> None:
        full = os.path.join(self.start, folder)
        try:
            files, folders = files_in(full), folders_in(full)
        except DataError:  # the content of a folder without read permission is unknown
            return
        for name in files:
            if is_clip_file(name):
                for key in {name, os.path.splitext(name)[0]}:
                    index.setdefault(key, []).append(os.path.join(folder, name))
        for name in folders if depth else ():
            self._add_to_index(index, os.path.join(folder, name), depth - 1)


def best_places(places: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Return those of the paths `places` that have the most names of `folders` among their folders."""
    expected = {part for folder in folders for part in folder.split("/") if part}
    scores = [len(expected.intersection(place.split("/")[:-1])) for place in places]
    most = max(scores, default=0)
    return [place for place, score in zip(places, scores, strict=True) if score == most]
