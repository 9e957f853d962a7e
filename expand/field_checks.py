"""Plain values from a file, which may be a stranger's, against what they should be.

A check is a function `(value, name)` that raises `Wrong` with a sentence naming the field; `name` is its path in the
record, as in `candidates[2].gflops`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

Check = Callable[[Any, str], None]

LONGEST_TEXT = 100_000
"""Characters of a reason or a note."""
SHOWN = 60
"""Characters of a wrong value that a sentence shows."""


class Wrong(ValueError):
    """A value that cannot be what its field should hold; its text is a sentence."""


def shown(value: Any) -> str:
    """A wrong value, shortened, in printable ASCII. A number of thousands of digits is never written out."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**SHOWN:
        return "a number of many digits"
    if isinstance(value, str):
        return ascii(value[:SHOWN]) + ("..." if len(value) > SHOWN else "")
    if isinstance(value, (Mapping, list)):
        return "a list" if isinstance(value, list) else "a mapping"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def number(low: float, high: float) -> Check:
    """A finite number from `low` to `high`."""
    def check(value: Any, name: str) -> None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:  # a NaN is neither
            raise Wrong(f"'{name}' is {shown(value)}, not a number from {low:g} to {high:g}")

    return check


def whole(low: int, high: int) -> Check:
    """A whole number from `low` to `high`."""
    def check(value: Any, name: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Wrong(f"'{name}' is {shown(value)}, not a whole number from {low:,} to {high:,}")

    return check


def flag(value: Any, name: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise Wrong(f"'{name}' is {shown(value)}, neither true nor false")


def text(longest: int = LONGEST_TEXT) -> Check:
    """Text of at most `longest` characters that can be written as UTF-8 (an escape in JSON may stand for none)."""
    def check(value: Any, name: str) -> None:
        if not isinstance(value, str):
            raise Wrong(f"'{name}' is {shown(value)}, not text")
        if len(value) > longest:
            raise Wrong(f"'{name}' is a text of more than {longest:,} characters")
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise Wrong(f"'{name}' holds an escape that stands for no character") from error

    return check


def matching(pattern: re.Pattern[str], what: str) -> Check:
    """Text that `pattern` matches whole."""
    def check(value: Any, name: str) -> None:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise Wrong(f"'{name}' is {shown(value)}, not {what}")

    return check


def one_of(known: Collection[str]) -> Check:
    """One of some texts."""
    def check(value: Any, name: str) -> None:
        if not isinstance(value, str) or value not in known:
            raise Wrong(f"'{name}' is {shown(value)}, not one of {', '.join(known)}")

    return check


def or_null(inner: Check) -> Check:
    """As `inner`, or null."""
    def check(value: Any, name: str) -> None:
        if value is not None:
            inner(value, name)

    return check


def list_of(inner: Check, most: int, least: int = 0) -> Check:
    """A list of `least` to `most` values that pass `inner`."""
    def check(value: Any, name: str) -> None:
        if not isinstance(value, list):
            raise Wrong(f"'{name}' is {shown(value)}, not a list")
        if not least <= len(value) <= most:
            raise Wrong(f"'{name}' has {len(value):,} entries, not {least} to {most:,}")
        for place, item in enumerate(value):
            inner(item, f"{name}[{place}]")

    return check


def mapping_of(key: Check, inner: Check, most: int) -> Check:
    """A mapping of at most `most` entries: names that pass `key` to values that pass `inner`."""
    def check(value: Any, name: str) -> None:
        if not isinstance(value, Mapping):
            raise Wrong(f"'{name}' is {shown(value)}, not a mapping")
        if len(value) > most:
            raise Wrong(f"'{name}' has {len(value):,} entries, more than {most:,}")
        for place, (own, item) in enumerate(value.items()):
            key(own, f"name {place + 1} in {name}")
            inner(item, f"{name}.{own}")

    return check


def record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """A mapping with the fields `required`, perhaps those that are `optional`; others, of later versions, are passed
    over."""
    checks = {**required, **(optional or {})}

    def check(value: Any, name: str) -> None:
        if not isinstance(value, Mapping):
            raise Wrong(f"'{name}' is {shown(value)}, not a mapping")
        prefix = f"{name}." if name else ""
        for own, inner in checks.items():
            if own in value:
                inner(value[own], prefix + own)
            elif own in required:
                raise Wrong(f"'{prefix}{own}' is missing")

    return check
