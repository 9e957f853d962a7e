"""A run's own list of clips, `clips.csv`: written when the run begins, read when it is resumed, perhaps edited between.

People edit it to say where clips were moved. Beside it, `clips-begun.csv` keeps the list as the run began with it: its
order, from which the run's fingerprint follows, and the hashes of the clips' bytes.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from expand.config.schema import DataConfig
from expand.data.sources.clip import MOST_DIGITS, SPLITS, Clip, ClipList, is_number, unreadable_lines
from expand.data.sources.labels import label_key, label_number
from expand.data.sources.paths import ClipPaths, foreign_reason, from_windows_text, strip_quotes, trim
from expand.data.sources.tables import (
    LONGEST,
    SEPARATOR_HINT,
    Columns,
    csv_bytes,
    decode_text,
    find_columns,
    split_of_value,
)
from expand.errors import DataError, RunError, abbreviate, quantity
from expand.home import expand_home_if_any
from expand.rundir.files import write_atomic
from expand.untrusted_input import read_bounded, size_text

HEADER = ["path", "label", "split", "group", "number"]
CONTENT = "content"
"""A further column of `clips-begun.csv`."""
EMPTY_CLASS = re.compile(r"# class ([0-9]+) has no clip: (.*)", re.DOTALL)
LARGEST = 256_000_000
"""Bytes of such a list at most; one of a million clips has some 150 MB."""
LARGEST_BEGUN = 2 * LARGEST
"""Bytes of one with the hashes of the clips."""
NEAR = 2
"""Folders right above a clip whose names must agree if a list was moved as a whole."""
FIX = "it was changed by hand or cut: mend it, or restore it from a copy"
PUT_BACK = ("put them back, or mount their disk; or, if they were moved, write their new places into that file: "
            "names and contents must be the same")
ORDINARY = re.compile(r"/[A-Za-z0-9_./ +=,@:()-]*[A-Za-z0-9_)]")
"""Absolute paths that can be written in one way only: they are not looked up."""

Rows = list[tuple[int, Clip]]
"""(line number, clip)."""


def write_clips(path: Path, listed: ClipList, *, contents: bool = False) -> None:
    """Write `listed` as the CSV `path`: absolute paths, class names, splits, groups and the classes' numbers, and with
    `contents` the known hashes of the clips' bytes.

    `read_clips` returns the same clips and classes in the same order; notes are not kept. Raises `RunError` if the file
    cannot be written, `DataError` for a list that is larger than `read_clips` accepts.
    """
    # a path keeps its `..`, which after a link may lead elsewhere than the text says
    rows = [(os.path.join(os.getcwd(), expand_home_if_any(os.fspath(clip.path))), listed.classes[clip.label],
             clip.split, clip.group or "", clip.label, *([clip.content] if contents else [])) for clip in listed.clips]
    used = {clip.label for clip in listed.clips}
    empty = [(f"# class {number} has no clip: {name}",) for number, name in enumerate(listed.classes)
             if number not in used]
    content = csv_bytes([[*HEADER, CONTENT] if contents else HEADER, *rows, *empty])
    if len(content) > (LARGEST_BEGUN if contents else LARGEST):  # the run could not go on after an interruption
        raise DataError(f"the list of its {len(rows):,} clips is larger than {size_text(LARGEST)}", where=str(path),
                        fix="use fewer clips, or a folder with a shorter path")
    write_atomic(Path(path), content)


def read_clips(path: Path) -> ClipList:
    """Return the clips that `write_clips` wrote to `path`, also after an editor or a spreadsheet saved it. Raises
    `DataError` for a list that is missing, cut, or has lines that cannot be read (all of them)."""
    names, rows = _read_rows(path)
    return ClipList(names, tuple(clip for _, clip in rows))


def _read_rows(path: Path, classes: Sequence[str] | None = None, *, fix: str = FIX,
               contents: bool = False) -> tuple[tuple[str, ...], Rows]:
    """Return the classes and the clips of the list `path`, with their lines, in the order of the lines.

    `classes`: those of the run, if they are known; then the list need not have them all. Other encodings, delimiters,
    quotes, line ends, orders of columns, blank lines, comments and `0.0` for `0` make no difference. Relative paths
    start at the list's folder or, if nothing is there, at the current one. Raises `DataError` for a list that is
    missing or cut, with the lines that cannot be read, and `fix`.
    """
    try:
        content = read_bounded(path, LARGEST_BEGUN if contents else LARGEST)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path), fix=fix) from error
    text = decode_text(content)
    if text is None:  # a zero byte is in no path; a file that was cut may end in some
        raise DataError("is not text", where=str(path), fix=fix)
    try:
        names, rows = _read_as_written(text)
        if classes is not None and names != tuple(classes):
            raise ValueError("other classes")
    except (ValueError, csv.Error):
        names, rows = _read_as_edited(text, path, classes, fix)
    folder = os.path.dirname(os.path.abspath(path))
    places = [ClipPaths(folder), ClipPaths(os.getcwd())]
    mistakes: list[str] = []
    for number, (line, clip) in enumerate(rows):
        written = str(clip.path)
        if ORDINARY.fullmatch(written):
            continue
        found = next((found for place in places if (found := place.find_spelled(written))), None)
        if found is None and not written.startswith("/") and (reason := foreign_reason(written)):
            mistakes.append(f"{path}:{line}: {written[:80]!r} {reason}")
        full = found or os.path.join(folder, expand_home_if_any(written))
        rows[number] = line, replace(clip, path=Path(full))
    if mistakes:
        raise unreadable_lines(mistakes, fix, where=str(path))
    return names, rows


def _read_as_written(text: str) -> tuple[tuple[str, ...], Rows]:
    """Read a list that is as `write_clips` wrote it. Raises `ValueError` or `csv.Error` for any other text."""
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    if header not in (HEADER, [*HEADER, CONTENT]):
        raise ValueError("another header")
    names: dict[int, str] = {}
    rows: Rows = []
    for fields in reader:
        if len(fields) == 1 and (match := EMPTY_CLASS.fullmatch(fields[0])):
            names[int(match.group(1)[:MOST_DIGITS])] = match.group(2)
            continue
        path, name, split, group, number, *content = fields
        if (len(fields) != len(header) or not is_number(number) or split not in SPLITS
                or not _has_usual_length(path, name)):
            raise ValueError("another line")
        if names.setdefault(int(number), name) != name:
            raise ValueError("two names of a class")
        rows.append((reader.line_num, Clip(Path(path), int(number), split, group or None, *content)))
    if sorted(names) != list(range(len(names))):
        raise ValueError("a class is missing")
    return tuple(names[number] for number in range(len(names))), rows


def _has_usual_length(path: str, name: str) -> bool:
    return 0 < len(path) <= LONGEST and len(name) <= LONGEST


def _read_as_edited(text: str, path: Path, classes: Sequence[str] | None, fix: str) -> tuple[tuple[str, ...], Rows]:
    """Read a list that was edited: a table with any delimiter and quote, with the columns in any order."""
    lines = [line for line in io.StringIO(text, newline="") if line.strip()]
    is_hint = bool(lines) and SEPARATOR_HINT.fullmatch(trim(lines[0])) is not None
    head = next((line for line in lines if _is_header([strip_quotes(trim(field)) for field in
                                                       re.split(r"[,;\t|]", line)])), "".join(lines[is_hint:][:1]))
    delimiter = max(",;\t|", key=head.count)  # the first one of equals
    quote = "'" if head.count("'") > head.count('"') else '"'
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quotechar=quote, skipinitialspace=True)
    records: list[tuple[int, list[str]]] = []
    try:
        for fields in reader:
            values = [trim(field) for field in fields]
            while values and not values[-1]:  # an empty column at the beginning is one, and at the end none
                values.pop()
            if values and not (reader.line_num == 1 and is_hint):
                records.append((reader.line_num, values))
    except csv.Error as error:
        raise DataError(f"cannot be read: {error}; is there a quote without its end?", where=str(path),
                        fix=fix) from error
    names: dict[int, str] = dict(enumerate(classes)) if classes else {}
    for _, fields in records:
        if (match := EMPTY_CLASS.fullmatch(fields[0])) and classes is None:
            names.setdefault(int(match.group(1)[:MOST_DIGITS]), match.group(2))
    records = [(line, fields) for line, fields in records if not fields[0].startswith("#")]
    header = next((fields for _, fields in records if _is_header(fields)), None)
    if header is None:
        if not records or not all(len(fields) == len(HEADER) and split_of_value(fields[2]) for _, fields in records):
            first = ", ".join(map(repr, records[0][1][:8])) if records else "nothing"
            raise DataError(f"is no list of a run's clips: it has no line with the columns {','.join(HEADER)}; it "
                            f"begins with {first}", where=str(path), fix=fix)
        header = HEADER  # it was deleted
    columns = find_columns(header)
    rows: Rows = []
    mistakes: list[str] = []
    for line, fields in records:
        if _is_header(fields):
            continue
        try:
            rows.append((line, _read_edited_clip(fields, columns, names, classes is not None)))
        except ValueError as error:
            mistakes.append(f"{path}:{line}: {error}")
    if mistakes:
        raise unreadable_lines(mistakes, fix, where=str(path))
    if sorted(names) != list(range(len(names))):
        missing = next(number for number in range(len(names)) if number not in names)
        raise DataError(f"lacks a class: none of its lines has the number {missing}", where=str(path), fix=fix)
    return tuple(names[number] for number in range(len(names))), rows


def _is_header(fields: Sequence[str]) -> bool:
    """True for the header, which a spreadsheet may have sorted in among the other lines."""
    names = {field.casefold() for field in fields}
    return {"path", "split"} <= names and bool({"label", "number"} & names)


def _read_edited_clip(fields: Sequence[str], columns: Columns, names: dict[int, str], is_known: bool) -> Clip:
    """The clip of a line. A new class is added to `names`, unless all classes are known (`is_known`).

    Raises `ValueError` with what was expected of the line."""
    def field(column: int | None) -> str:
        return strip_quotes(fields[column]) if column is not None and column < len(fields) else ""

    path, name, split, group, number = map(field, (columns.path, columns.label, columns.split, columns.group,
                                                   columns.number))
    if not path or not (name or number) or not split:
        lacks = "path" if not path else "split" if not split else "label"
        raise ValueError(f"expected {','.join(HEADER)}, got a line without a {lacks}: {','.join(fields)[:80]!r}")
    if not _has_usual_length(path, name):
        raise ValueError(f"expected a path and a label of at most {LONGEST:,} characters, got a longer one")
    known_split = split_of_value(split)
    if known_split is None:
        raise ValueError(f"expected train, val or test as the split, got {split[:80]!r}")
    number = number.replace(",", ".")
    label = label_number(number) if number else None
    if not number:
        alike = [label for label, own in names.items() if own == name] or [
            label for label, own in names.items() if _is_same_class(own, name)]
        if len(alike) != 1:
            raise ValueError(f"expected one of the run's classes or its number, got {name[:80]!r} and no number")
        label = alike[0]
    elif label is None or label < 0:
        raise ValueError(f"expected a whole number as the class's number, got {number[:80]!r}")
    elif is_known and label not in names:
        raise ValueError(f"expected a class from 0 to {len(names) - 1}, got {label}")
    else:
        own = names.setdefault(label, name)
        if name and not _is_same_class(own, name):
            raise ValueError(f"says class {label} {name!r}, but class {label} is {own!r}")
    return Clip(Path(path), label, known_split, group or None)


def _is_same_class(own: str, name: str) -> bool:
    """True if `name` may be the class name `own` after a program changed its form."""
    if own == name or label_key(own).casefold() == label_key(name).casefold():
        return True
    if label_number(own) is not None and label_number(own) == label_number(name):
        return True
    try:
        return label_key(own) == label_key(from_windows_text(name))
    except UnicodeDecodeError:
        return False


def _begun_file(path: Path) -> Path:
    return Path(path).with_name(f"{Path(path).stem}-begun.csv")


def write_run_list(path: Path, config: DataConfig, listed: ClipList) -> None:
    """Write the clips of a run to `path`, so that the run can be resumed with the same clips if their source changes.

    The built-in clips are not written: they follow from `config` and may be rendered elsewhere. Raises as
    `write_clips`.
    """
    if not config.is_builtin:
        write_clips(_begun_file(path), listed, contents=True)
        write_clips(path, listed)


def read_run_list(path: Path, classes: Sequence[str] | None = None, *, to_resume: bool = False) -> ClipList | None:
    """Return the clips that `write_run_list` wrote to `path`; None if it wrote none. `classes`: those of the run.

    `to_resume`: return the very clips that the run began with, in their order; write the list anew if it was deleted.
    Raises `DataError` for a list that cannot be read, or if none of its clips exists; `RunError` if a run would be
    resumed with other clips.
    """
    path = Path(path)
    file, begun = _begun_file(path), None
    if file.exists():
        names, rows = _read_rows(file, contents=True, fix=f"remove it: the run then goes on with {path.name} as it is, "
                                "but does not notice clips that changed since it began")
        begun = ClipList(names, tuple(clip for _, clip in rows))
    if path.exists():
        fix = FIX if begun is None else ("it was changed by hand or cut: mend it, or delete it: `x3d-expand resume` "
                                         "writes it anew as it was")
        names, rows = _read_rows(path, begun.classes if begun else classes, fix=fix)
        listed = (_restore_order(begun, rows, path) if begun and to_resume else
                  ClipList(names, tuple(clip for _, clip in rows)))
    elif begun is None:
        return None
    else:
        listed = begun
        if to_resume:
            write_clips(path, begun)
    if listed.clips and not any(os.path.exists(clip.path) for clip in listed.clips):
        raise DataError(f"none of the {quantity(len(listed.clips), 'clip')} of this run exists any more, the first is "
                        f"{listed.clips[0].path}", where=str(path), fix=PUT_BACK)
    return listed


def _restore_order(begun: ClipList, rows: Rows, path: Path) -> ClipList:
    """The clips of the list `path`, `rows`, in the order of `begun`, and with the hashes of `begun`.

    Lines may be in any order, and clips may have moved if they keep their names. Raises `RunError` with each line that
    is missing, new, or has another class or split.
    """
    clips = [clip for _, clip in rows]
    old = _match_clips(begun.clips, clips)
    found: dict[int, Clip] = {}
    changes: list[tuple[int, str]] = []
    for (line, clip), number in zip(rows, old, strict=True):
        if number is None:
            changes.append((line, f"{path}:{line}: {clip.path} is no clip of this run, or is named twice"))
            continue
        was = begun.clips[number]
        found[number] = replace(clip, group=was.group, content=was.content)
        for what, then, now in (("class", begun.classes[was.label], begun.classes[clip.label]),
                                ("split", was.split, clip.split)):
            if then != now:
                text = f"{path}:{line}: {clip.path} has the {what} {now!r}; it was {then!r} when the run began"
                changes.append((line, text))
    lines = [text for _, text in sorted(changes)]
    lines += [f"a line is missing: {clip.path},{begun.classes[clip.label]},{clip.split}"
              for number, clip in enumerate(begun.clips) if number not in found]
    if lines:
        raise RunError(f"{quantity(len(lines), 'difference')} from the clips that the run began with:\n"
                       f"{abbreviate(lines)}", where=str(path), fix=f"mend these lines, or delete {Path(path).name}: "
                       "`x3d-expand resume` writes it anew as it was; other clips need a new run")
    return ClipList(begun.classes, tuple(found[number] for number in range(len(begun.clips))))


def _match_clips(begun: Sequence[Clip], clips: Sequence[Clip]) -> list[int | None]:
    """For each of `clips`, its place in `begun`, or None: the clip with its path; else, if clips were moved, the
    one that shares most of its path, from the name upwards, and if possible class and split."""
    def is_same(was: Clip, clip: Clip) -> bool:
        return (was.label, was.split) == (clip.label, clip.split) and (
            was.path == clip.path or _path_parts(was)[-1 - NEAR:] == _path_parts(clip)[-1 - NEAR:])

    if len(begun) == len(clips) and all(map(is_same, begun, clips)):
        return list(range(len(clips)))
    def key_of(clip: Clip, depth: int, with_class: bool) -> object:
        return _path_parts(clip)[-depth:], with_class and (clip.label, clip.split)

    deepest = max((len(clip.path.parts) for clip in begun), default=0)
    keys: list[Callable[[Clip], object]] = [lambda clip: (clip.path, clip.label, clip.split), lambda clip: clip.path]
    keys += [partial(key_of, depth=depth, with_class=with_class)
             for with_class in (True, False) for depth in range(deepest, 0, -1)]
    partners: list[int | None] = [None] * len(clips)
    free = set(range(len(begun)))
    for key in keys:
        left = [place for place, partner in enumerate(partners) if partner is None]
        if not left or not free:
            break
        waiting: dict[object, list[int]] = defaultdict(list)
        for number in sorted(free, reverse=True):
            waiting[key(begun[number])].append(number)
        for place in left:
            if candidates := waiting.get(key(clips[place])):
                partners[place] = number = candidates.pop()
                free.discard(number)
    return partners


def _path_parts(clip: Clip) -> tuple[str, ...]:
    """The parts of a clip's path, without the suffix, which a conversion changes."""
    *folders, name = clip.path.parts
    return (*folders, os.path.splitext(name)[0])


def other_orders(listed: ClipList, source: ClipList | None) -> Iterator[ClipList]:
    """Yield `listed` in other orders that a run may have begun with, if its lines were sorted since: by path, and as in
    `source`, the clips that the run's configuration names now."""
    ranked = sorted(listed.clips, key=lambda clip: (SPLITS.index(clip.split), clip.path.parts))
    yield replace(listed, clips=tuple(ranked))
    if source is not None:
        places = {clip.path: place for place, clip in enumerate(source.clips)}
        if all(clip.path in places for clip in listed.clips):
            ranked = sorted(listed.clips, key=lambda clip: (SPLITS.index(clip.split), places[clip.path]))
            yield replace(listed, clips=tuple(ranked))


def refuse_changed(listed: ClipList, now: ClipList, path: Path) -> None:
    """Raise `RunError` if clips of `listed`, which a run began with, have other bytes `now`."""
    changed = [str(clip.path) for clip, other in zip(listed.clips, now.clips, strict=False)
               if clip.content and other.content and clip.content != other.content]
    if changed:
        raise RunError(f"{len(changed)} of the {quantity(len(listed.clips), 'clip')} of this run have another content "
                       f"than when it began, so that its results would mix:\n{abbreviate(changed)}", where=str(path),
                       fix="put the old files back, the very same bytes, or start a new run with the new ones")
