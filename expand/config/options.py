"""The schema read as a table: every option by its dotted key, with its type and bounds.

Everything else in this room is driven by this table, so a field added to `expand.config.schema` is loaded, checked,
written and suggested without another line of code.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expand.config.schema import Config

SCALARS = (bool, int, float, str)


@dataclass(frozen=True)
class Option:
    """One option: `key` is dotted, `kind` the scalar type; `many`: a list of such values;
    `nullable`: null is a value."""

    key: str
    kind: type
    many: bool
    nullable: bool
    gt: float | None = None
    ge: float | None = None
    le: float | None = None
    choices: tuple[str, ...] | None = None


def _option(key: str, hint: Any, metadata: Mapping[str, Any]) -> Option:
    """The option of a field; TypeError for a type that no YAML value can be checked against."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [member for member in members if member is not type(None)]
    kind, many = kinds[0], False
    if typing.get_origin(kind) is tuple and typing.get_args(kind)[1:] == (Ellipsis,):
        kind, many = typing.get_args(kind)[0], True
    if len(kinds) != 1 or kind not in SCALARS:
        raise TypeError(f"{key}: a configuration field cannot have the type {hint}")
    bounds = {name: metadata.get(name) for name in ("gt", "ge", "le", "choices")}
    return Option(key, kind, many, len(members) > len(kinds), **bounds)


@functools.cache
def section(cls: type) -> Mapping[str, type]:
    """The fields of a section in schema order: name -> resolved type (a dataclass for a section within)."""
    hints = typing.get_type_hints(cls)
    return types.MappingProxyType({field.name: hints[field.name] for field in dataclasses.fields(cls)})


@functools.cache
def options(cls: type = Config, prefix: str = "") -> Mapping[str, Option]:
    """Every option below a section, by dotted key, in schema order."""
    found: dict[str, Option] = {}
    metadata = {field.name: field.metadata for field in dataclasses.fields(cls)}
    for name, hint in section(cls).items():
        if dataclasses.is_dataclass(hint):
            found.update(options(hint, f"{prefix}{name}."))
        else:
            found[prefix + name] = _option(prefix + name, hint, metadata[name])
    return types.MappingProxyType(found)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every value of a configuration by dotted key, in schema order."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values.update(flatten(value, f"{prefix}{field.name}."))
        else:
            values[prefix + field.name] = value
    return values


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """The configuration with some values replaced: `with_values(config, {"candidate.epochs": 30})`; nothing is checked
    but the keys (KeyError)."""
    direct: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        name, _, rest = key.partition(".")
        if name not in section(type(config)) or bool(rest) != dataclasses.is_dataclass(section(type(config))[name]):
            raise KeyError(key)
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            direct[name] = value
    for name, inner in nested.items():
        direct[name] = with_values(getattr(config, name), inner)
    return dataclasses.replace(config, **direct)
