"""Official annotation files of published sets: which set a file belongs to, and the clips that it names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from expand.data.sources.clip import SPLIT_NAMES, Files, Source
from expand.data.sources.published import kinetics, ssv2, ucf_and_hmdb
from expand.data.sources.text_files import PEEK
from expand.data.sources.walk import files_in, folders_in
from expand.errors import DataError

FORMATS = {"kinetics": "Kinetics", "ucf101": "UCF101", "hmdb51": "HMDB51", "ssv2": "Something-Something v2"}
ANNOTATION_FILES = (".csv", ".txt", ".json")
HINTS = ("annot", "label", "list", "split", "meta", "kinetics")
"""Parts of the names of folders that may hold annotations beside the videos."""


def read_annotations(form: str, files: Files, root: str, fold: int) -> Source:
    """Return the clips that annotation files of the set `form` name, looked for below `root`. Raises `DataError` as
    the set's own reader does."""
    readers: dict[str, Callable[[], Source]] = {
        "kinetics": lambda: kinetics.read_kinetics(files, root),
        "ucf101": lambda: ucf_and_hmdb.read_ucf101(files, root, fold),
        "hmdb51": lambda: ucf_and_hmdb.read_hmdb51(files, root, fold),
        "ssv2": lambda: ssv2.read_ssv2(files, root)}
    return readers[form]()


def format_of(path: Path) -> str:
    """Return the published set that the annotations `path` belong to, one of `FORMATS`, or "lists". Raises `DataError`
    for a file that cannot be read."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            head = file.read(PEEK)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    line = next((line.strip() for line in head.split("\n") if line.strip()), "")
    if path.suffix.lower() == ".json":
        return "ssv2" if ssv2.is_ssv2(head) else "lists"
    if ucf_and_hmdb.UCF_LIST.fullmatch(path.name) and ucf_and_hmdb.UCF_LINE.fullmatch(line):
        return "ucf101"
    if ucf_and_hmdb.HMDB_LIST.fullmatch(path.name) and ucf_and_hmdb.HMDB_LINE.fullmatch(line):
        return "hmdb51"
    if kinetics.is_kinetics(head):
        return "kinetics"
    return "ssv2" if ssv2.ANSWERS.fullmatch(path.name) and ssv2.is_answers(head) else "lists"


def find_annotations(root: str) -> dict[str, Files]:
    """Return the annotation files of each published set in `root`, in a folder there whose name contains one of
    `HINTS`, or in a folder right below that (an archive may be unpacked into a folder of its own name)."""
    hinted = [os.path.join(root, name) for name in folders_in(root)
              if name.lower() not in SPLIT_NAMES and any(hint in name.lower() for hint in HINTS)]
    found: dict[str, dict[str, list[Path]]] = {}
    for folder in [root, *(inner for outer in hinted
                           for inner in (outer, *(os.path.join(outer, name) for name in folders_in(outer))))]:
        for name in files_in(folder):
            path = Path(folder, name)
            # most of the files beside clips need not be opened
            is_likely = name.lower().endswith(".csv") or any(
                pattern.fullmatch(name) for pattern in (ucf_and_hmdb.UCF_LIST, ucf_and_hmdb.HMDB_LIST, ssv2.LIST))
            if (is_likely and path.suffix.lower() in ANNOTATION_FILES and path.is_file()
                    and (form := format_of(path)) != "lists"):
                found.setdefault(form, {}).setdefault(folder, []).append(path)
    # a set's files lie together; a second folder of them would name its clips twice
    return {form: [(None, path) for path in next(iter(folders.values()))] for form, folders in found.items()}
