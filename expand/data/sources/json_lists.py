"""Find the clips in the JSON of usual programs: an object for each clip, a table by columns, or paths and classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from expand.data.file_kinds import VIDEOS
from expand.data.sources.columns import find_columns, split_of_value

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
        return _by_columns(value) if kinds & {list, dict} else [value]
    if isinstance(value.get("classes"), list) and isinstance(value.get("labels"), dict):
        return _name_numbers(value["classes"], value["labels"])
    if kinds <= {list, dict} and all(split_of_value(name) for name in value):
        return _join([(clip_objects(item, depth + 1), {"split": name}) for name, item in value.items()])
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


def _by_columns(value: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of {column: [values]} or of {column: {row: value}}."""
    columns = list(value.values())
    if all(isinstance(column, list) for column in columns):
        rows: Sequence[Any] = range(len(columns[0]))
        if any(len(column) != len(rows) for column in columns):
            return None
    elif all(isinstance(column, dict) for column in columns):
        rows = list(columns[0])
        if any(column.keys() != columns[0].keys() for column in columns):
            return None
    else:
        return None
    return [{name: column[row] for name, column in value.items()} for row in rows]


def _name_numbers(classes: list[Any], labels: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    if not all(isinstance(number, int) and 0 <= number < len(classes) for number in labels.values()):
        return None
    return [{"file_name": name, "label": str(classes[number])} for name, number in labels.items()]


def _join(parts: Sequence[tuple[list[dict[str, Any]] | None, dict[str, str]]]) -> list[dict[str, Any]] | None:
    if any(objects is None for objects, _ in parts):
        return None
    return [item | more for objects, more in parts for item in objects or ()]


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
