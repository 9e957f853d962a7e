"""Reading text, lines, CSV and JSON in the encodings and forms that programs write; writing CSV."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from expand.errors import DataError

LARGEST = 1 << 30
"""Bytes of a list; one of a million clips has a tenth of that."""
LONGEST = 10_000
"""Characters of a line. A path has at most 4,096 bytes, and regular expressions are slow on long lines."""
PEEK = 1 << 16
"""Bytes or characters that are read to detect the format of a file."""
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
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > LARGEST:
                raise DataError("is larger than any list", where=str(path), fix="a list has one line for each "
                                "clip; to use clips without a list, name their folder")
            head = file.read(PEEK)
            is_binary = b"\0" in head and decode_text(head[:len(head) // 4 * 4]) is None
            text = None if is_binary else decode_text(head + file.read())
    except OSError as error:
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
