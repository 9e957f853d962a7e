"""Lists and tables as programs write them: encodings of text, CSV, JSON, and the usual names of columns."""

from __future__ import annotations

import codecs
import contextlib
import csv
import errno
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expand.data.sources.clip import SPLIT_NAMES
from expand.data.sources.walk import VIDEOS
from expand.errors import DataError
from expand.untrusted_input import read_bounded

LARGEST = 1 << 30
"""Bytes of a list; one of a million clips has a tenth of that."""
LONGEST = 10_000
"""Characters of a line. A path has at most 4,096 bytes, and regular expressions are slow on long lines."""
PEEK = 1 << 16
"""Bytes or characters that are read to detect the format of a file."""
SEPARATOR_HINT = re.compile(r"sep=.")
"""A first line that names the delimiter to a spreadsheet."""
BOMS = ((codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF8, "utf-8"))
"""Byte order marks at the beginning of a text, and its encoding."""


def decode_text(content: bytes) -> str | None:
    """Return the text in `content`, UTF-8, UTF-16, or UTF-32 with a byte order mark; None if it is no text.

    Bytes that are not UTF-8 become surrogates, as in file names.
    """
    for mark, encoding in BOMS:
        if content.startswith(mark):
            try:
                text = content[len(mark):].decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
            except UnicodeDecodeError:
                continue
            return None if "\0" in text else text
    if b"\0" not in content:
        return content.decode("utf-8", "surrogateescape")
    for encoding, zeros, letters in (("utf-16-le", content[1:16:2], content[:16:2]),
                                     ("utf-16-be", content[:16:2], content[1:16:2])):
        if len(zeros) == 8 and not any(zeros) and all(letters):
            with contextlib.suppress(UnicodeDecodeError):
                text = content.decode(encoding)
                return None if "\0" in text else text
    return None


def read_text(path: Path) -> str:
    """Return the text of `path`, decoded by `decode_text`. Raises `DataError` for a file that is no text."""
    try:
        text = decode_text(read_bounded(path, LARGEST))
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise DataError("is larger than any list", where=str(path), fix="a list has one line for each clip; to use "
                            "clips without a list, name their folder") from error
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if text is None:
        raise DataError("is not text in UTF-8", where=str(path),
                        fix="if it is a list, save it as UTF-8; if it is a clip, name the folder of the class folders")
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return number and text of every line that is not blank, without the blanks around it; any line end will do.

    Raises `DataError` as `read_text`, and for a line that is too long for a list; JSON may be one line.
    """
    ended = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    lines = [(number, line.strip()) for number, line in enumerate(ended.split("\n"), 1)]
    is_json = path.suffix.lower() == ".json" and ended.lstrip()[:1] in ("{", "[")
    for number, line in lines:
        if len(line) > LONGEST and not is_json:
            raise DataError(f"a line of {len(line):,} characters", where=f"{path}:{number}",
                            fix="a list has one line for each clip")
    return [(number, line) for number, line in lines if line]


def csv_rows(path: Path, delimiter: str = ",", quote: str = '"') -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its last line, fields) of each record of a CSV. Raises `DataError` as `read_text`, and for a
    quote that is not closed."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, quotechar=quote,
                        skipinitialspace=True)
    try:
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(f"cannot be read: {error}", where=f"{path}:{reader.line_num}",
                        fix="is there a quote without its end?") from error


def read_json(path: Path, fix: str) -> Any:
    """Return the value in the JSON file `path`. Raises `DataError` as `read_text`, and with `fix` for text that is no
    JSON or escapes a character that no file name can have."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no JSON: {error}", where=str(path), fix=fix) from error
    if "\\u" in text:
        written = json.dumps(value, ensure_ascii=False)
        try:
            written.encode("utf-8", "surrogateescape")
            is_writable = "\\u0000" not in written
        except UnicodeEncodeError:
            is_writable = False
        if not is_writable:
            raise DataError("has an escape that stands for no character", where=str(path), fix=fix)
    return value


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Return `rows` as a CSV with line feeds; undecodable bytes of file names stay as they are."""
    text = io.StringIO(newline="")
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:  # unquoted, a carriage return would be read as the end of a line
        (quoted if any("\r" in str(field) for field in row) else plain).writerow(row)
    return text.getvalue().encode("utf-8", "surrogateescape")


PATHS = ("path", "video_path", "clip_path", "file_path", "full_path", "relative_path", "rel_path", "absolute_path",
         "abs_path", "local_path", "file", "file_name", "fname",
         "video_file", "clip_file", "video_file_name", "clip_file_name",
         "video", "clip", "video_name", "clip_name", "movie", "image", "frame_dir", "frames", "directory", "dir",
         "folder", "paths", "files", "file_names", "videos", "clips")
"""Columns that name a clip's file, the surest first. The names in this module are compared without regard to case,
blanks, hyphens and underscores: `file_name` is also `filename`, `File Name` and `fileName`."""
IDS = ("name", "video_id", "clip_id", "youtube_id", "yt_id", "vid", "vid_id", "id", "uid", "key", "uri", "url", "link",
       "video_url")
"""Columns that name a clip in another way, often without a suffix; its file is looked for by that name."""
LABELS = ("label_name", "class_name", "label", "class", "category_name", "action_name", "activity_name", "tag_name",
          "target_name", "category", "action", "activity", "tag", "target", "gesture", "sign", "gloss", "emotion",
          "event", "label_text", "class_label", "action_label", "ground_truth_label", "gt_label", "true_label",
          "labels", "classes", "categories", "tags", "targets",
          "template", "annotation", "ground_truth", "gt", "choice", "choices", "klass", "cls", "verb", "behavior",
          "behaviour", "exercise", "sport", "movement", "motion", "scene", "sentiment")
LABEL_NUMBERS = ("label_id", "class_id", "category_id", "action_id", "activity_id", "target_id", "tag_id", "label_idx",
                 "class_idx", "category_idx", "label_index", "class_index", "label_number", "class_number", "label_num",
                 "class_num", "label_encoded", "y")
"""Columns with the number of a class; a column with its name goes before them."""
SPLITS = ("split", "subset", "set", "partition", "usage", "phase", "data_split", "split_name", "train_test",
          "train_val_test", "train_val")
"""Columns with a clip's split; any other value in them is a mistake."""
MAYBE_SPLITS = ("fold", "type", "mode", "stage", "dataset")
"""Columns with a clip's split if all their values are splits."""
FLAGS = {"train": ("is_train", "is_training", "train", "training"),
         "val": ("is_val", "is_valid", "is_validation", "val", "valid", "validation"), "test": ("is_test", "test")}
"""Columns of yes and no."""
SPLIT_VALUES = {**SPLIT_NAMES, "tr": "train", "trn": "train", "dev": "val", "development": "val", "eval": "val",
                "evaluation": "val", "publictest": "val", "privatetest": "test", "te": "test", "tst": "test"}
YES, NO = {"1", "1.0", "true", "yes", "t", "y", "x"}, {"0", "0.0", "false", "no", "f", "n", ""}
PATH_LIKE = re.compile(r"(?:video|clip|file|movie|media|mp4|avi|rgb|image|img|frames?|relative|rel|absolute|abs|local|"
                       r"full|input|source|src|my|data)+(?:path|file|filename|filepath|dir|directory|folder|"
                       r"location)s?")
LABEL_LIKE = re.compile(r"(?:video|clip|action|activity|gesture|sign|event|emotion|target|true|gt|groundtruth|class|"
                        r"label|category|coarse|fine)+(?:label|class|category|tag|name|text)s?")
SPLIT_LIKE = re.compile(r".+(?:subset|split|partition)")


@dataclass(frozen=True)
class Columns:
    """The places of a list's columns; None for columns that it lacks."""

    path: int | None
    label: int | None
    split: int | None = None
    maybe_split: int | None = None
    """A column that may be the split, if all its values are."""
    flags: dict[str, int] = field(default_factory=dict)
    group: int | None = None
    number: int | None = None
    """The class's place among the classes."""
    by_id: bool = False
    """True if the path column is one of `IDS`."""


def normalise(name: str) -> str:
    """Return `name` in the form in which names of columns are compared."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def find_columns(header: Sequence[str]) -> Columns:
    """Return the places of the columns of a list that begins with `header`."""
    names = [normalise(name) for name in header]

    def first(known: Sequence[str], pattern: re.Pattern[str] | None = None, taken: int | None = None) -> int | None:
        wanted = [normalise(name) for name in known]
        found = next((names.index(name) for name in wanted if name in names and names.index(name) != taken), None)
        if found is None and pattern:
            fitting = (place for place, name in enumerate(names) if place != taken and pattern.fullmatch(name))
            found = next(fitting, None)
        return found

    path = first(PATHS, PATH_LIKE)
    by_id = path is None
    path = first(IDS) if by_id else path
    label = first((*LABELS, *LABEL_NUMBERS), LABEL_LIKE, path)
    flags = {split: place for split, known in FLAGS.items() if (place := first(known)) is not None}
    return Columns(path, label, first(SPLITS, SPLIT_LIKE), first(MAYBE_SPLITS), flags, first(("group",)),
                   first(("number",)), by_id and path is not None)


def is_column_name(name: str) -> bool:
    """Return true if `name` is a usual name of a column with clips or classes."""
    found = find_columns([name])
    return found.path is not None or found.label is not None


def split_of_value(text: str) -> str | None:
    """Return the split that the value `text` of a column means; None if it is no name of a split."""
    return SPLIT_VALUES.get(normalise(text))


def split_of_flags(values: dict[str, str]) -> str | None:
    """Return the split by the yes or no of columns, {split: value}; None if they do not tell."""
    answers = {}
    for split, value in values.items():
        text = value.strip().casefold()
        if text not in YES and text not in NO:
            return None
        answers[split] = text in YES
    said = [split for split, answer in answers.items() if answer]
    if len(said) == 1:
        return said[0]
    if said:
        return None
    left = [split for split in ("train", "val", "test") if split not in answers]
    return left[0] if left else None


WRAPPERS = ("database", "data", "videos", "clips", "samples", "items", "annotations", "images", "root")
"""Usual keys of the value with all clips."""
DEEPEST = 6


def clip_objects(value: Any, depth: int = 0) -> list[dict[str, Any]] | None:
    """Return an object with named fields for each clip in `value`; None if it has no known form.

    Known forms: arrays of objects; {split: any of these}; {"database": ...} and the like; tables by columns, as pandas
    writes them; {path: class}; {path: object}; {class: [paths]}; {"classes": [names], "labels": {name: number}}.
    """
    if depth > DEEPEST:
        return None
    if isinstance(value, list):
        return [_flatten(item) for item in value] if all(isinstance(item, dict) for item in value) else None
    if not isinstance(value, dict) or not value:
        return None
    columns, kinds = find_columns(list(value)), {type(item) for item in value.values()}
    if columns.path is not None and columns.label is not None:
        if not kinds & {list, dict}:
            return [value]
        # a table: {column: [values]} or {column: {row: value}}
        table = {name: dict(enumerate(column)) if isinstance(column, list) else column
                 for name, column in value.items()}
        rows = next(iter(table.values()))
        is_whole = len(kinds) == 1 and all(column.keys() == rows.keys() for column in table.values())
        return [{name: column[row] for name, column in table.items()} for row in rows] if is_whole else None
    if isinstance(value.get("classes"), list) and isinstance(value.get("labels"), dict):
        classes, labels = value["classes"], value["labels"]
        if not all(isinstance(number, int) and 0 <= number < len(classes) for number in labels.values()):
            return None
        return [{"file_name": name, "label": str(classes[number])} for name, number in labels.items()]
    if kinds <= {list, dict} and all(split_of_value(name) for name in value):
        parts = {name: clip_objects(item, depth + 1) for name, item in value.items()}
        if None in parts.values():
            return None
        return [item | {"split": name} for name, objects in parts.items() for item in objects or ()]
    if inside := next((value[name] for name in WRAPPERS if isinstance(value.get(name), list | dict)), None):
        return clip_objects(inside, depth + 1)
    if kinds == {dict}:
        return [_flatten(item) if find_columns(list(item)).path is not None else {"file_name": name} | _flatten(item)
                for name, item in value.items()]
    if kinds == {list}:
        items = [(path, name) for name, paths in value.items() for path in paths]
        is_paths = all(isinstance(path, str) and _is_video(path) for path, _ in items)
        return [{"file_name": path, "label": name} for path, name in items] if is_paths else None
    if kinds <= {str, int, float} and all(map(_is_video, value)):
        return [{"file_name": path, "label": name} for path, name in value.items()]
    return None


def _is_video(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in VIDEOS


def _flatten(item: Mapping[str, Any]) -> dict[str, Any]:
    """`item` with the fields of its inner objects, and the single choice of a Label Studio annotation, as its own."""
    flat: dict[str, Any] = {}
    for name, value in item.items():
        if isinstance(value, dict):
            flat |= {inner: field for inner, field in value.items() if inner not in item}
        elif name == "annotations" and isinstance(value, list):
            flat |= _choice(value)
        elif isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            flat[name] = value[0]
        else:
            flat[name] = value
    return flat


def _choice(annotations: Sequence[Any]) -> dict[str, Any]:
    """{"label": choice}; several choices stay a list, which is no label of a clip; {} without a choice."""
    chosen: list[Any] = []
    for annotation in annotations:
        if isinstance(annotation, dict) and "label" in annotation:
            chosen.append(annotation["label"])
        results = annotation.get("result") if isinstance(annotation, dict) else None
        for result in results if isinstance(results, list) else ():
            value = result.get("value") if isinstance(result, dict) else None
            choices = value.get("choices") if isinstance(value, dict) else None
            chosen += choices if isinstance(choices, list) else []
    distinct = [choice for place, choice in enumerate(chosen) if choice not in chosen[:place]]
    return {"label": distinct[0] if len(distinct) == 1 else distinct} if distinct else {}
