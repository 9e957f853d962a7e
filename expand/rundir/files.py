"""Writes that leave the old file or the new one, never a part, and JSON that every parser reads.

A file is written under a temporary name in its own folder, flushed to the disk, renamed, and the folder flushed too,
so that neither a kill nor a power cut can undo what was acknowledged.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from expand.errors import RunError
from expand.untrusted_input import Check, Wrong, read_bounded

LARGEST_JSON = 128_000_000
"""Bytes of a JSON file. The largest is an outcome with its confusion matrices: two of 2,000 classes have 80 MB."""
TEMPORARY = ".tmp-"
"""How the name of an unfinished file begins; the end is the target's name, so that a suffix keeps its meaning."""


def sync_dir(folder: Path) -> None:
    """Flush the entries of `folder` (a rename is durable only then); where folders cannot be flushed, nothing."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def make_dir(folder: Path, *, above: bool = True) -> Path:
    """Create `folder` and, unless `above` is false, what is missing above it, durably. Raises `RunError` where that is
    impossible."""
    folder = Path(folder)
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=above, exist_ok=True)
        for path in missing:
            sync_dir(path.parent)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


@contextmanager
def atomic_path(path: Path, *, above: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`, to be written in the block; it becomes `path` when the block ends well.

    After an exception `path` is as before and the temporary file is gone. After a kill `path` is the old or the new
    content; a temporary file may stay until `clear_leftovers`. The file's folder is made where it is missing, and what
    is missing above that unless `above` is false: a training must not begin a run anew that was moved or deleted
    meanwhile. Raises `RunError` where the disk refuses.
    """
    path = Path(path)
    make_dir(path.parent, above=above)
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_dir(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str, *, above: bool = True) -> None:
    """Make `data` the content of `path`, in one piece: text as UTF-8, in which undecodable bytes of a file name (lone
    surrogates) are written out as `\\udcXX`. Raises `RunError` where the disk refuses."""
    content = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    with atomic_path(path, above=above) as temporary, open(temporary, "wb") as file:
        file.write(content)


def clear_leftovers(folders: Iterable[Path]) -> None:
    """Delete the temporary files that a kill left in `folders`. Only the owner of the run's lock may call it."""
    for folder in folders:
        for leftover in folder.glob(f"{TEMPORARY}*"):
            with suppress(OSError):
                leftover.unlink()


def cannot_write(path: Path, error: OSError) -> RunError:
    """Return the `RunError` for a write that the system refused."""
    fix = "Check the free space and the permissions there, then start again; nothing was lost."
    if error.errno in (errno.ENOENT, errno.ESTALE):
        fix = "Its folder is gone: put it back where it was, then start again."
    return RunError(f"cannot be written: {error.strerror or error}", where=str(path), fix=fix)


def jsonable(value: Any) -> Any:
    """Return `value` as strict JSON holds it: NaN and infinities as None, tuples as lists, paths as text, scalars of
    numpy and torch as numbers, and undecodable bytes of a file name (lone surrogates) written out as `\\udcXX`.

    Raises `TypeError` for anything else.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (str, Path)):
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {jsonable(str(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if getattr(value, "ndim", None) == 0:
        return jsonable(value.item())
    raise TypeError(f"{type(value).__name__} has no place in JSON: {value!r}")


def to_json(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Return `value` as strict JSON text (RFC 8259), without a line end."""
    return json.dumps(jsonable(value), ensure_ascii=ascii_only, allow_nan=False, indent=indent)


def from_json(text: bytes) -> Any:
    """Return the value of UTF-8 JSON, read strictly. Raises `ValueError` for anything that is not, NaN and infinities
    included."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text.decode("utf-8"), parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write_json(path: Path, value: Any, *, above: bool = True) -> None:
    """Write `value` (see `jsonable`) as indented JSON, atomically."""
    write_atomic(path, to_json(value, indent=2) + "\n", above=above)


def read_json(path: Path, check: Check | None = None, most: int = LARGEST_JSON) -> Any:
    """Return the value in the JSON file `path`. Raises `RunError` where the file is missing, unreadable, damaged,
    larger than `most` bytes, or where `check` refuses the value."""
    try:
        value = from_json(read_bounded(path, most))
        if check:
            check(value, "")
        return value
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror or error}", where=str(path),
                       fix="The run needs this file; take it back from a copy, or start the run anew.") from error
    except ValueError as error:
        what = "cannot be what the run wrote" if isinstance(error, Wrong) else "is damaged"
        raise RunError(f"{what}: {error}", where=str(path),
                       fix="Something else wrote to it; take it back from a copy, or start the run anew.") from error
