"""Untrusted input: files are read within bounds (no more memory than allowed, no endless wait for a pipe), and the
plain values in them are checked.

A check is a function `(value, name)` that returns the value as its field holds it (a list as a tuple, a mapping as the
dataclass that it describes), or raises `Wrong` with a sentence naming the field; `name` is the field's path in the
record, as in `candidates[2].gflops`. The annotations of a dataclass can carry the checks of its fields: see
`instance_of`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Len

Check = Callable[[Any, str], Any]
T = TypeVar("T")
NOT_READ = MappingProxyType({"is_read": False})
"""The metadata of a dataclass's field that is not read from a file."""

LONGEST_TEXT = 100_000
"""Characters of a reason or a note."""
LONGEST_SHOWN = 60
"""Characters of a wrong value that a sentence shows."""

LARGEST_YAML = 1_000_000
"""Largest size in bytes of a configuration, a network's description, or anything else in YAML."""
KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
         (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))


def file_type(mode: int) -> str:
    """Return the type of a file with this `st_mode`, in words."""
    return next((name for is_kind, name in KINDS if is_kind(mode)), "a file")


def read_bounded(path: Path | str, most: int) -> bytes:
    """Return the content of the regular file `path`, which may be untrusted.

    Raises `OSError` if it cannot be read, is not a regular file (a pipe would block for ever), or has more than `most`
    bytes; the error's `strerror` says which.
    """
    # a pipe without a writer opens at once with O_NONBLOCK; for a regular file the flag means nothing
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"it is {file_type(found.st_mode)}, not a file", str(path))
    with open(handle, "rb", buffering=0) as file:
        if found.st_size <= most:
            content = bytearray()
            while part := file.read(most + 1 - len(content)):  # it may grow meanwhile
                content += part
            if len(content) <= most:
                return bytes(content)
        raise OSError(errno.EFBIG, f"it is larger than {size_text(most)}", str(path))


def size_text(count: int) -> str:
    """Return a number of bytes in words: `1 MB`, `64 kB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"


class Wrong(ValueError):
    """A value that cannot be what its field should hold; its text is a sentence."""


def show_value(value: Any) -> str:
    """Return a wrong value, shortened, in printable ASCII. A number of thousands of digits is never written out."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**LONGEST_SHOWN:
        return "a number of many digits"
    if isinstance(value, str):
        return ascii(value[:LONGEST_SHOWN]) + ("..." if len(value) > LONGEST_SHOWN else "")
    if isinstance(value, (Mapping, list)):
        return "a list" if isinstance(value, list) else "a mapping"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def number(low: float, high: float) -> Check:
    """A finite number from `low` to `high`."""
    def check(value: Any, name: str) -> Any:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:  # a NaN is neither
            raise Wrong(f"'{name}' is {show_value(value)}, not a number from {low:g} to {high:g}")
        return value

    return check


def whole(low: int, high: int) -> Check:
    """A whole number from `low` to `high`."""
    def check(value: Any, name: str) -> Any:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Wrong(f"'{name}' is {show_value(value)}, not a whole number from {low:,} to {high:,}")
        return value

    return check


def flag(value: Any, name: str) -> bool:
    """Return `value`, which is to be true or false."""
    if not isinstance(value, bool):
        raise Wrong(f"'{name}' is {show_value(value)}, neither true nor false")
    return value


def text(longest: int = LONGEST_TEXT) -> Check:
    """Text of at most `longest` characters that can be written as UTF-8 (an escape in JSON may stand for none)."""
    def check(value: Any, name: str) -> Any:
        if not isinstance(value, str):
            raise Wrong(f"'{name}' is {show_value(value)}, not text")
        if len(value) > longest:
            raise Wrong(f"'{name}' is a text of more than {longest:,} characters")
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise Wrong(f"'{name}' holds an escape that stands for no character") from error
        return value

    return check


def matches(pattern: re.Pattern[str], what: str) -> Check:
    """Text that `pattern` matches whole."""
    def check(value: Any, name: str) -> Any:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise Wrong(f"'{name}' is {show_value(value)}, not {what}")
        return value

    return check


def one_of(known: Collection[str]) -> Check:
    """One of some texts."""
    def check(value: Any, name: str) -> Any:
        if not isinstance(value, str) or value not in known:
            raise Wrong(f"'{name}' is {show_value(value)}, not one of {', '.join(known)}")
        return value

    return check


def or_null(inner: Check) -> Check:
    """As `inner`, or null."""
    def check(value: Any, name: str) -> Any:
        return None if value is None else inner(value, name)

    return check


def list_of(inner: Check, most: int, least: int = 0) -> Check:
    """A list of `least` to `most` values that pass `inner`."""
    def check(value: Any, name: str) -> Any:
        if not isinstance(value, list):
            raise Wrong(f"'{name}' is {show_value(value)}, not a list")
        if not least <= len(value) <= most:
            raise Wrong(f"'{name}' has {len(value):,} entries, not {least} to {most:,}")
        return tuple(inner(item, f"{name}[{place}]") for place, item in enumerate(value))

    return check


def mapping_of(key: Check, inner: Check, most: int) -> Check:
    """A mapping of at most `most` entries: names that pass `key` to values that pass `inner`."""
    def check(value: Any, name: str) -> Any:
        if not isinstance(value, Mapping):
            raise Wrong(f"'{name}' is {show_value(value)}, not a mapping")
        if len(value) > most:
            raise Wrong(f"'{name}' has {len(value):,} entries, more than {most:,}")
        return {key(own, f"name {place + 1} in {name}"): inner(item, f"{name}.{own}")
                for place, (own, item) in enumerate(value.items())}

    return check


def record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """A mapping with the fields `required`, perhaps those that are `optional`; others, of later versions, are passed
    over."""
    checks = {**required, **(optional or {})}

    def check(value: Any, name: str) -> Any:
        if not isinstance(value, Mapping):
            raise Wrong(f"'{name}' is {show_value(value)}, not a mapping")
        prefix, read = f"{name}." if name else "", {}
        for own, inner in checks.items():
            if own in value:
                read[own] = inner(value[own], prefix + own)
            elif own in required:
                raise Wrong(f"'{prefix}{own}' is missing")
        return read

    return check


def check_of(annotation: Any) -> Check:
    """Return the check that an annotation states: `Annotated[float, number(0, 1)]`, `bool`, a dataclass with such
    annotations, `Annotated[tuple[X, ...], Len(1, 16)]`, `Annotated[Mapping[K, V], Len(0, 16)]`, or `X | None`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        container, mark = args[:2]
        if not isinstance(mark, Len):
            return mark
        inner, most = [check_of(arg) for arg in get_args(container) if arg is not Ellipsis], mark.max_length
        if most is None:
            raise TypeError(f"{annotation} states no greatest length")
        if get_origin(container) is tuple:
            return list_of(inner[0], most, mark.min_length)
        return mapping_of(inner[0], inner[1], most)
    if origin in (Union, UnionType) and args[1:] == (NoneType,):
        return or_null(check_of(args[0]))
    if annotation is bool:
        return flag
    if isinstance(annotation, type) and is_dataclass(annotation):
        return instance_of(annotation)
    raise TypeError(f"{annotation} states no check")


def read_fields(cls: Any, value: Any, name: str) -> dict[str, Any]:
    """Return from the mapping `value` the fields of the dataclass `cls`, each as its annotation states; those with a
    default may be missing."""
    return _fields_check(cls)(value, name)


@cache
def _fields_check(cls: Any) -> Check:
    hints = get_type_hints(cls, include_extras=True)
    required: dict[str, Check] = {}
    optional: dict[str, Check] = {}
    for own in fields(cls):
        if not own.metadata.get("is_read", True):
            continue
        is_optional = own.default is not MISSING or own.default_factory is not MISSING
        (optional if is_optional else required)[own.name] = check_of(hints[own.name])
    return record(required, optional)


def instance_of(cls: Callable[..., T]) -> Callable[[Any, str], T]:
    """A mapping with the fields of the dataclass `cls`, which is returned as one."""
    return lambda value, name: cls(**read_fields(cls, value, name))
