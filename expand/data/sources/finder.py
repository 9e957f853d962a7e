"""Where the files lie that a published set's annotations name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from expand.data.file_kinds import is_clip_file
from expand.data.sources.walk import clips_below, files_in, folders_in, stem_of


class Finder:
    """Finds clips below `root`: in the folders where they should be, else anywhere by their name without suffix.

    A folder is listed once, and all of `root` only when something is not where it should be.
    """

    def __init__(self, root: str) -> None:
        self.root, self.missing = root, 0
        self._listings: dict[str, dict[str, str]] = {}
        self._likely: dict[tuple[str, ...], list[tuple[str, dict[str, str]]]] = {}
        self._index: dict[str, list[str]] | None = None

    def find(self, folders: tuple[str, ...], names: Sequence[str], suffix: str = "") -> str:
        """The path of the clip that is called one of `names` (with or without suffix) and should be in one of `folders`
        (relative to the root, the likeliest first; they also tell between clips of one name elsewhere).

        Where there is none, the path where it should be, with `suffix`; `missing` counts those.
        """
        if folders not in self._likely:
            self._likely[folders] = [(folder, listing) for folder in folders if (listing := self._listing(folder))]
        for folder, listing in self._likely[folders]:
            for name in names:
                if name in listing:
                    return os.path.join(self.root, folder, listing[name])
        for name in names:
            if places := self._anywhere(name):
                return os.path.join(self.root, _likeliest(places, folders))
        self.missing += 1
        fullest = max(self._likely[folders], key=lambda found: len(found[1]), default=(folders[0], {}))[0]
        return os.path.join(self.root, fullest, names[0] + suffix)

    def _listing(self, folder: str) -> dict[str, str]:
        """File by name and by name without suffix, and folder by name, in a folder below the root."""
        if folder not in self._listings:
            self._listings[folder] = self._listed(os.path.join(self.root, folder))
        return self._listings[folder]

    def _listed(self, folder: str) -> dict[str, str]:
        if not os.path.isdir(folder):
            return {}
        names = {name: name for name in folders_in(folder)}
        files = [name for name in files_in(folder) if is_clip_file(name)]
        names |= {stem_of(name): name for name in files}  # files come after folders: a video goes before its frames
        return names | {name: name for name in files}

    def _anywhere(self, name: str) -> list[str]:
        if self._index is None:
            self._index = {}
            for path in clips_below(self.root) if os.path.isdir(self.root) else ():
                base = os.path.basename(path)
                for key in {base, stem_of(base)}:
                    self._index.setdefault(key, []).append(path)
        return self._index.get(name, [])


def _likeliest(places: Sequence[str], folders: Iterable[str]) -> str:
    """The one of `places` that has most of the expected folders' names on its way; the first of equals."""
    expected = {part for folder in folders for part in folder.split("/") if part}
    return max(places, key=lambda place: len(expected.intersection(place.split("/")[:-1])))
