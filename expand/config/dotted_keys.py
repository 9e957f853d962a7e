"""Options by their dotted keys (`search.basis.frames`): all of them, values read and replaced, keys suggested."""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any

from expand.config.schema import Config
from expand.errors import did_you_mean


@functools.cache
def section_fields(section: type) -> Mapping[str, Any]:
    """The annotation of each field of a section, in schema order; a dataclass is a section within."""
    return MappingProxyType(typing.get_type_hints(section, include_extras=True))


@functools.cache
def option_annotations() -> Mapping[str, Any]:
    """The annotation of every option by dotted key, in schema order."""
    def below(section: type, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, annotation in section_fields(section).items():
            is_section = isinstance(annotation, type) and is_dataclass(annotation)
            found |= below(annotation, f"{prefix}{name}.") if is_section else {prefix + name: annotation}
        return found

    return MappingProxyType(below(Config, ""))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return every value of a configuration (or of a section) by dotted key, in schema order."""
    values: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        values |= flatten(value, f"{prefix}{field.name}.") if is_dataclass(value) else {prefix + field.name: value}
    return values


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """Return the configuration with some values replaced: `with_values(config, {"candidate.epochs": 30})`.

    Nothing is checked but the keys (KeyError).
    """
    def with_value(section: Any, value: Any, name: str, *below: str) -> Any:
        return replace(section, **{name: with_value(getattr(section, name), value, *below) if below else value})

    if unknown := values.keys() - flatten(config):
        raise KeyError(min(unknown))
    for key, value in values.items():
        config = with_value(config, value, *key.split("."))
    return config


def explain_unknown_key(name: str, prefix: str, known: Iterable[str], *, noun: str = "key",
                        dotted: bool = False) -> tuple[str, str | None]:
    """Return the sentence and the suggestion for an unknown `name` under `prefix` ("search.", "" at the top).

    The same name in another section comes first, then a close name here, then a close one elsewhere, then the list of
    names. `noun`: what to call it. `dotted`: names of this section are suggested with their section too, as `--set`
    takes them.
    """
    what = f"unknown {noun} '{name if len(name) <= 60 else name[:56] + ' ...'}'"
    by_name: dict[str, list[str]] = {}
    for key in option_annotations():
        by_name.setdefault(key.rpartition(".")[2], []).append(key)
    here = None if name in by_name else _closest(name, known)
    meant = name if name in by_name else _closest(name, by_name)
    if here is not None:
        return what, f"did you mean '{prefix if dotted else ''}{here}'?"
    if meant is None:
        return what, f"known here: {', '.join(known)}" if known else None
    keys = [key for key in by_name[meant] if prefix and key.startswith(prefix)] or by_name[meant]
    quoted = [f"'{key}'" for key in keys]
    return what, f"did you mean {' or '.join(filter(None, (', '.join(quoted[:-1]), quoted[-1])))}?"


def _closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `did_you_mean` has in mind: what counts as close is defined there alone."""
    sentence = did_you_mean(word[:60], sorted(known))
    return sentence.split("'")[1] if sentence else None
