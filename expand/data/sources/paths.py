"""Which file a path in a list means, where it is not written as this system has it."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from urllib.parse import unquote, urlsplit

from expand.data.file_kinds import is_clip_file
from expand.data.sources.walk import files_in, folders_in, stem_of
from expand.errors import DataError
from expand.home import expand_home_if_any

SUFFIX = re.compile(r"\.[A-Za-z]\w{1,4}$")
"""How a file's name ends."""
DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\\w")
"""How a path begins that has a drive or a server of Windows."""
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
INVISIBLE = "\u200b\u2060\ufeff\u200e\u200f"
"""Characters that show nothing and come along when text is copied from web pages and documents."""
DEPTH = 3
"""Levels of folders in which a clip is looked for by its name alone."""
PLAIN = re.compile(r"(?!/|~)(?=[^/]*/)[A-Za-z0-9_./ +=,@-]*[A-Za-z0-9_]\.[A-Za-z]\w{1,4}")
"""Relative paths through a folder that can be written in one way only: nothing is looked up for them."""


def trim(text: str) -> str:
    """`text` without blanks and characters that show nothing around it."""
    return text.strip().strip(INVISIBLE).strip()


def unquoted(text: str) -> str:
    """`text` without a pair of quotes around it."""
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text


def spellings(text: str) -> Iterator[str]:
    """What the path `text` may stand for, the likeliest first: itself; then without what surrounds it, as the path in
    a `file:` address, with slashes for backslashes, with `%20` and the like resolved, in the encoding of Windows."""
    seen = {text}
    yield text
    steps = (trim, unquoted, _from_address, lambda path: path.replace("\\", "/"), unquote, _from_windows_text)
    for step in steps:
        try:
            changed = step(text)
        except ValueError:
            continue
        if changed and changed not in seen:
            seen.add(changed)
            yield changed
            text = changed


def _from_address(text: str) -> str:
    return unquote(urlsplit(text).path) if text.lower().startswith("file:") else text


def _from_windows_text(text: str) -> str:
    """`text` whose bytes were no UTF-8, read as the encoding of Western Windows."""
    if not any("\udc80" <= letter <= "\udcff" for letter in text):
        return text
    return text.encode("utf-8", "surrogateescape").decode("cp1252")


def foreign(text: str) -> str | None:
    """What is wrong with a path that no spelling makes a file here; None where it may simply be missing."""
    text = unquoted(trim(text))
    if ADDRESS.match(text) and not text.lower().startswith("file:"):
        return "is an address on a network: clips must be files on this machine; load them down and name the files"
    if DRIVE.match(text):
        return ("is a path of Windows: write the path as this system has it, or relative to the list's folder "
                "(`/mnt/c/...` under WSL)")
    return None


class ClipPaths:
    """Finds the files that paths mean; relative ones start at the folder `start`. A folder is listed once."""

    def __init__(self, start: str) -> None:
        self.start = start
        self._names: dict[str, frozenset[str] | None] = {}
        self._stems: dict[str, dict[str, str]] = {}
        self._index: dict[str, list[str]] | None = None

    def find(self, text: str, hints: Sequence[str] = ()) -> str | None:
        """The path of the clip that `text` means, beginning with `start` where it is relative; None where there is
        none. One that lacks its suffix, or its folder, is looked for; `hints` are folders' names on the way to it."""
        if found := self.as_spelled(text):
            return found
        for path in map(trim, spellings(text)):
            if found := self._by_name(path, hints):
                return found
        return None

    def as_spelled(self, text: str) -> str | None:
        """The path of what `text` names in any of its spellings, where it is; None where there is nothing."""
        return next((found for path in spellings(text) if (found := self._there(self._full(path)))), None)

    def exists(self, text: str) -> bool:
        """Whether `text`, as it is written or without its suffix, is the path of something."""
        full = self._full(text)
        return self._there(full) is not None or self._with_suffix(full) is not None

    def _full(self, path: str) -> str:
        return os.path.join(self.start, expand_home_if_any(path))

    def _listing(self, folder: str) -> frozenset[str] | None:
        """The names in `folder`; None where it cannot be listed, but may have some."""
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
        names = self._listing(folder)
        return os.path.lexists(os.path.join(folder, name)) if names is None else name in names

    def _there(self, full: str) -> str | None:
        """`full` if it is there; else the path that differs from it in how letters with accents are composed."""
        if "\0" in full:
            return None
        folder, name = os.path.split(full)
        if self._has(folder, name):
            return full
        if full.isascii():
            return None
        way = "/" if full.startswith("/") else ""
        for part in filter(None, full.split("/")):
            if not self._has(way, part):
                wanted = unicodedata.normalize("NFC", part)
                part = next((name for name in sorted(self._listing(way) or ())
                             if unicodedata.normalize("NFC", name) == wanted), None)
                if part is None:
                    return None
            way = os.path.join(way, part)
        return way

    def _with_suffix(self, full: str) -> str | None:
        """The video file that is `full` but for its suffix."""
        folder, name = os.path.split(full)
        if folder not in self._stems:
            names = sorted(self._listing(folder) or ())
            self._stems[folder] = {stem_of(file): file for file in reversed(names) if SUFFIX.search(file)
                                   and is_clip_file(file)}
        file = self._stems[folder].get(name)
        return os.path.join(folder, file) if file else None

    def _by_name(self, path: str, hints: Sequence[str]) -> str | None:
        """The file for a path that lacks its suffix, starts at the data's folder although it begins with a slash, or
        is a bare name."""
        if not path or path.endswith("/"):
            return None
        if found := self._with_suffix(self._full(path)):
            return found
        inside = path.lstrip("/")
        if path.startswith("/"):
            full = os.path.join(self.start, inside)
            if found := self._there(full) or self._with_suffix(full):
                return found
        if "/" in inside:
            return None
        for folder in hints:
            full = os.path.join(self.start, folder, inside)
            if found := self._there(full) or self._with_suffix(full):
                return found
        return self._anywhere(inside, hints)

    def _anywhere(self, name: str, hints: Sequence[str]) -> str | None:
        """The only file of that name below `start`, or the only one whose folders are called like most `hints`."""
        if self._index is None:
            self._index = {}
            self._survey("", DEPTH)
        places = self._index.get(name, [])
        expected = {part for hint in hints for part in hint.split("/")}
        scores = [len(expected.intersection(place.split("/")[:-1])) for place in places]
        best = [place for place, score in zip(places, scores) if score == max(scores)]
        return os.path.join(self.start, best[0]) if len(best) == 1 else None

    def _survey(self, folder: str, depth: int) -> None:
        full = os.path.join(self.start, folder)
        try:
            files, folders = files_in(full), folders_in(full)
        except DataError:  # of a folder that may not be read, nothing is known
            return
        for name in files:
            if is_clip_file(name):
                for key in {name, stem_of(name)}:
                    self._index.setdefault(key, []).append(os.path.join(folder, name))
        for name in folders if depth else ():
            self._survey(os.path.join(folder, name), depth - 1)
