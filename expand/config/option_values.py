"""A value checked by pydantic against the annotation of its option, and the sentence for each way to be wrong."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic does not take the standard one before Python 3.12

from expand.config.schema import option_annotations
from expand.config.yaml_document import Mapping
from expand.errors import did_you_mean

_NOUNS = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "text",
          "array of integer": "a list of whole numbers", "array of number": "a list of numbers",
          "array of string": "a list of texts"}


class WrongValue(Exception):
    """A value that its option cannot take: a sentence and perhaps a suggestion."""

    def __init__(self, what: str, suggestion: str | None = None) -> None:
        self.what, self.suggestion = what, suggestion
        super().__init__(what)


@functools.cache
def _validator() -> TypeAdapter[dict[str, Any]]:
    """The validator of all options by dotted key, with the rules that hold for each of them: no "3" for 3, no infinite
    number, no empty text."""
    # written as a call, since its keys are those of the schema, which a type checker cannot see
    options = TypedDict("options", dict(option_annotations()), total=False)  # type: ignore[misc]  # noqa: UP013
    rules = ConfigDict(strict=True, allow_inf_nan=False, str_min_length=1, extra="forbid")
    options.__pydantic_config__ = rules  # type: ignore[attr-defined]  # pydantic looks for it there
    return TypeAdapter[Any](options)


@functools.cache
def _json_schema() -> dict[str, Any]:
    return _validator().json_schema()["properties"]


def check_value(key: str, value: Any) -> Any:
    """Return a value as the schema's type (an int becomes a float, a list a tuple); WrongValue where it does not fit
    the option `key`."""
    value = tuple(value) if isinstance(value, list) else value
    try:
        return _validator().validate_python({key: value})[key]
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise _explain(key, value, first["type"], first["loc"][1:]) from None


def _explain(key: str, value: Any, error: str, place: tuple[int | str, ...]) -> WrongValue:
    """Say in the user's words what pydantic's `error` at `place` (an item's number, for a list) in `value` means."""
    schema = _json_schema()[key]
    nullable = "anyOf" in schema
    schema = schema["anyOf"][0] if nullable else schema
    is_list = schema["type"] == "array"
    item_schema = schema["items"] if is_list else schema
    choices, kind = item_schema.get("enum"), item_schema["type"]
    expected = f"one of {', '.join(choices)}" if choices and not is_list else (
        _NOUNS[f"array of {kind}" if is_list else kind] + (" or null" if nullable else ""))
    item = value[place[0]] if place else value
    if kind == "number" and type(item) is int and error not in ("float_type", "tuple_type"):
        item = float(item)

    if value is None:
        return WrongValue(f"{key} must be {expected}, got null", "leave the line out for the default")
    match error:
        case "tuple_type":
            hint = f"write [{', '.join(value.replace(',', ' ').split())}]" if isinstance(value, str) else None
            return WrongValue(f"{key} must be {expected}, got {show(value)}", hint)
        case "too_short":
            return WrongValue(f"{key} must name at least one of {', '.join(choices)}, got []")
        case "predicate_failed" if is_list and kind == "number":
            return WrongValue(f"{key} must increase from item to item, got {show(value)}")
        case "predicate_failed" if is_list:
            twice = next(item for i, item in enumerate(value) if item in value[:i])
            return WrongValue(f"{key} names {show(twice)} twice")
        case "literal_error" | "string_unicode" if choices and isinstance(item, str):
            what = f"{key} {'may name' if is_list else 'must be one of'} {', '.join(choices)}, got {show(item)}"
            return WrongValue(what, did_you_mean(item, choices))
        case "string_too_short":
            return WrongValue(f"{key} must not be empty", "null stands for none" if nullable else None)
        case "predicate_failed" | "string_unicode":
            return WrongValue(f"{key} holds a control character or is not UTF-8: {json.dumps(item)[:80]}")
        case "finite_number":
            return WrongValue(f"{key} must be a finite number, got {show(item)}")
        case "float_type" if type(item) is int:
            return WrongValue(f"{key} must be a finite number, got inf")  # a whole number that no float can hold
        case "less_than" if kind == "integer":
            return WrongValue(f"{key} must be below 2^63, got {show(item)}")
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            words = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below",
                     "maximum": "at most"}
            bounds = [f"{word} {item_schema[name]:.10g}" for name, word in words.items() if name in item_schema]
            return WrongValue(f"{key} must be {' and '.join(bounds)}, got {show(item)}")
    hint = None
    if kind == "string" and not choices and isinstance(item, (bool, int, float)):
        hint = "put it in quotes if text is meant"
    elif kind != "string" and isinstance(item, str) and item.replace(".", "", 1).isdecimal():
        hint = "write it without quotes"
    return WrongValue(f"{key} must be {expected}, got {show(item)}", hint)


def show(value: Any) -> str:
    """Return a value as it would stand in YAML, shortened: null, true, 0.1, 'text', [x_fast, x_width]."""
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
