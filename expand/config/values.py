"""A plain value against the type and bounds of its option, and the sentence for each way in which it can be wrong."""

from __future__ import annotations

import json
import math
from typing import Any

from expand.config.document import Mapping
from expand.config.options import Option
from expand.errors import did_you_mean

_NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_PLURALS = {bool: "true or false", int: "whole numbers", float: "numbers", str: "texts"}
_LARGEST_INT = 2**63 - 1


class WrongValue(Exception):
    """A value that its option cannot take: a sentence and perhaps a suggestion."""

    def __init__(self, what: str, suggestion: str | None = None) -> None:
        self.what, self.suggestion = what, suggestion
        super().__init__(what)


def show(value: Any) -> str:
    """A value as it would stand in YAML, shortened: null, true, 0.1, 'text', [x_fast, x_width]."""
    if isinstance(value, (list, tuple)):
        text = "[" + ", ".join(item if isinstance(item, str) else show(item) for item in value) + "]"
    elif isinstance(value, Mapping):
        text = "a mapping"
    elif isinstance(value, str):
        text = f"'{value}'"
    elif isinstance(value, float) and not math.isfinite(value):
        text = str(value)
    else:
        text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:76] + " ..."


def checked(option: Option, value: Any) -> Any:
    """The value as the schema's type (an int becomes a float, a list a tuple); WrongValue where it does not fit."""
    if value is None:
        if option.nullable:
            return None
        raise WrongValue(f"{option.key} must be {_expected(option)}, got null", "leave the line out for the default")
    if not option.many:
        return _scalar(option, value)
    if not isinstance(value, (list, tuple)):
        hint = f"write [{', '.join(value.replace(',', ' ').split())}]" if isinstance(value, str) else None
        raise WrongValue(f"{option.key} must be {_expected(option)}, got {show(value)}", hint)
    return _many(option, value)


def _many(option: Option, value: list[Any] | tuple[Any, ...]) -> tuple[Any, ...]:
    items = tuple(_scalar(option, item) for item in value)
    if option.choices and not items:
        raise WrongValue(f"{option.key} must name at least one of {', '.join(option.choices)}, got []")
    twice = next((item for i, item in enumerate(items) if item in items[:i]), None)
    if option.choices and twice is not None:
        raise WrongValue(f"{option.key} names {show(twice)} twice")
    return items


def _scalar(option: Option, value: Any) -> Any:
    if option.kind is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if type(value) is not option.kind:
        raise WrongValue(f"{option.key} must be {_expected(option)}, got {show(value)}", _type_hint(option, value))
    if option.kind is str:
        return _text(option, value)
    if option.kind is not bool:
        _bounded(option, value)
    return value


def _expected(option: Option) -> str:
    if option.choices and not option.many:
        return f"one of {', '.join(option.choices)}"
    noun = f"a list of {_PLURALS[option.kind]}" if option.many else _NOUNS[option.kind]
    return noun + (" or null" if option.nullable else "")


def _type_hint(option: Option, value: Any) -> str | None:
    if option.kind is str and not option.choices and isinstance(value, (bool, int, float)):
        return "put it in quotes if text is meant"
    if option.kind is not str and isinstance(value, str) and value.replace(".", "", 1).isdecimal():
        return "write it without quotes"
    return None


def _text(option: Option, value: str) -> str:
    if option.choices:
        if value not in option.choices:
            must = "may name" if option.many else "must be one of"
            what = f"{option.key} {must} {', '.join(option.choices)}, got {show(value)}"
            raise WrongValue(what, did_you_mean(value, option.choices))
        return value
    if not value:
        raise WrongValue(f"{option.key} must not be empty", "null stands for none" if option.nullable else None)
    if any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000 for char in value):
        raise WrongValue(f"{option.key} holds a control character or is not UTF-8: {json.dumps(value)[:80]}")
    return value


def _bounded(option: Option, value: float) -> None:
    if not math.isfinite(value):
        raise WrongValue(f"{option.key} must be a finite number, got {show(value)}")
    if isinstance(value, int) and abs(value) > _LARGEST_INT:
        raise WrongValue(f"{option.key} must be below 2^63, got {show(value)}")
    low = (option.gt is None or value > option.gt) and (option.ge is None or value >= option.ge)
    if not (low and (option.le is None or value <= option.le)):
        raise WrongValue(f"{option.key} must be {_bounds(option)}, got {show(value)}")


def _bounds(option: Option) -> str:
    words = (("above", option.gt), ("at least", option.ge), ("at most", option.le))
    return " and ".join(f"{word} {bound:.10g}" for word, bound in words if bound is not None)
