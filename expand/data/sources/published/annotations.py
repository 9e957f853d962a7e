"""Which published set a file or a folder of annotations belongs to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from expand.data.sources.clip import SPLIT_NAMES, Found
from expand.data.sources.published import kinetics, recordings, ssv2
from expand.data.sources.text_files import PEEK
from expand.data.sources.walk import files_in, folders_in
from expand.errors import DataError

FORMATS = {"kinetics": "Kinetics", "ucf101": "UCF101", "hmdb51": "HMDB51", "ssv2": "Something-Something v2"}
ANNOTATION_FILES = (".csv", ".txt", ".json")
HINTS = ("annot", "label", "list", "split", "meta", "kinetics")
"""What the name of a folder has in it that may hold a set's annotations beside its videos."""

Files = Sequence[tuple[str | None, Path]]


@dataclass(frozen=True)
class Annotations:
    """Annotation files of one published set: (split that they are named for or None, file)."""

    kind: str
    files: Files

    def read(self, root: str, fold: int) -> Found:
        """The clips that they name, looked for below `root`. Raises `DataError` as the set's own reader does."""
        readers: dict[str, Callable[[], Found]] = {
            "kinetics": lambda: kinetics.read_kinetics(self.files, root),
            "ucf101": lambda: recordings.read_ucf101(self.files, root, fold),
            "hmdb51": lambda: recordings.read_hmdb51(self.files, root, fold),
            "ssv2": lambda: ssv2.read_ssv2(self.files, root)}
        return readers[self.kind]()


def kind_of(path: Path) -> str:
    """The published set that the annotations `path` belong to, one of `FORMATS`, or "lists". Raises `DataError` where
    the file cannot be read."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            head = file.read(PEEK)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    line = next((line.strip() for line in head.split("\n") if line.strip()), "")
    if path.suffix.lower() == ".json":
        return "ssv2" if ssv2.is_ssv2(head) else "lists"
    if recordings.UCF_LIST.fullmatch(path.name) and recordings.UCF_LINE.fullmatch(line):
        return "ucf101"
    if recordings.HMDB_LIST.fullmatch(path.name) and recordings.HMDB_LINE.fullmatch(line):
        return "hmdb51"
    if kinetics.is_kinetics(head):
        return "kinetics"
    return "ssv2" if ssv2.ANSWERS.fullmatch(path.name) and ssv2.is_answers(head) else "lists"


def survey(root: str) -> list[Annotations]:
    """The published sets whose annotations lie in `root`, in a folder there that is called like one of `HINTS`, or in
    one right below that."""
    found: dict[str, dict[str, list[Path]]] = {}
    hinted = [name for name in folders_in(root)
              if name.lower() not in SPLIT_NAMES and any(hint in name.lower() for hint in HINTS)]
    for folder in [root, *_with_inner(os.path.join(root, name) for name in hinted)]:
        for name in files_in(folder):
            path = Path(folder, name)
            is_likely = path.suffix.lower() in ANNOTATION_FILES and _may_be(name) and path.is_file()
            if is_likely and (kind := kind_of(path)) != "lists":
                found.setdefault(kind, {}).setdefault(folder, []).append(path)
    # a set's files lie together; a second folder of them would name its clips twice
    return [Annotations(kind, [(None, path) for path in next(iter(folders.values()))])
            for kind, folders in found.items()]


def _with_inner(folders: Iterable[str]) -> Iterator[str]:
    """Each folder and then those in it, since an archive may be unpacked into a folder of its own name."""
    for folder in folders:
        yield folder
        yield from (os.path.join(folder, name) for name in folders_in(folder))


def _may_be(name: str) -> bool:
    """Whether a file's name is worth a look: of the many files beside clips, few need be opened."""
    return (name.lower().endswith(".csv") or recordings.UCF_LIST.fullmatch(name) is not None
            or recordings.HMDB_LIST.fullmatch(name) is not None or ssv2.LIST.fullmatch(name) is not None)
