"""YAML, flags and `--set` into one typed, frozen `Config`, with every mistake reported at once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from expand.config import document
from expand.config.checks import conflicts
from expand.config.options import flatten, options, section, with_values
from expand.config.ready import config_names, find
from expand.config.schema import Config
from expand.config.suggest import unknown
from expand.config.values import WrongValue, checked, show
from expand.errors import ConfigError, Problem

__all__ = ["config_diff", "config_names", "dump_config", "load_config", "parse_config"]


def load_config(source: str | Path | None = None, overrides: Sequence[str] = (),
                values: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a file or a ready name, changed by `--set` texts and then by flags.

    `source`: a path, or a name of `config_names()`; None: `default`. `overrides`: texts "section.key=value", the value
    read as YAML, later ones win. `values`: dotted keys with Python values, None for a flag that was not given; they
    win over `overrides`. Raises UsageError for an unknown source, ConfigError with every mistake otherwise.
    """
    path = find(source)
    reader = _Reader()
    try:
        reader.file(document.read_text(path), _shown(path))
    except document.NotYaml as error:
        reader.problems.append(error.problem(_shown(path)))
    return _finish(reader, overrides, values or {})


def parse_config(text: str, where: str = "config.yaml", values: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a YAML text, changed by `values` as in `load_config`; `where` names it in the mistakes
    (ConfigError)."""
    reader = _Reader()
    reader.file(text, where)
    return _finish(reader, (), values or {})


def _finish(reader: _Reader, overrides: Sequence[str], values: Mapping[str, Any]) -> Config:
    for text in overrides:
        reader.override(text)
    for key, value in values.items():
        if value is not None:
            reader.flag(key, value)
    return reader.config()


def _shown(path: Path) -> str:
    """A path as a person would name it: relative where it lies below the current folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


# Far more than a person makes; a file of another kind is refused without a page for each of its lines.
_MOST_MISTAKES = 100


class _Reader:
    """Collects values, where each came from, and mistakes."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}
        self.bad: set[str] = set()
        self.problems: list[Problem] = []

    def file(self, text: str, where: str) -> None:
        try:
            node = document.parse(text)
        except document.NotYaml as error:
            self.problems.append(error.problem(where))
            return
        if node is not None:
            self._section(Config, "", node, where, node.start_mark.line + 1)

    def override(self, text: str) -> None:
        """One `--set section.key=value`."""
        where = f"--set {text if len(text) <= 80 else text[:76] + ' ...'}"
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            self._problem(where, "must be section.key=value", "for instance --set candidate.epochs=20")
            return
        try:
            node = document.parse(value)
        except document.NotYaml as error:
            self._problem(where, error.what, "put the value in quotes")
            return
        owner = self._owner(key, where)
        if owner is None:
            return
        if dataclasses.is_dataclass(owner):
            self._section(owner, f"{key}.", node, where, 0)
        else:
            self._value(key, None if node is None else document.value_of(node), where)

    def flag(self, key: str, value: Any) -> None:
        """One value of a command-line flag or a caller."""
        where = f"{key}={show(value)}"
        owner = self._owner(key, where)
        if owner is None:
            return
        if dataclasses.is_dataclass(owner):
            self._problem(where, f"{key} is a section, not a key")
        else:
            self._value(key, value, where)

    def config(self) -> Config:
        """The result; ConfigError if there was any mistake, those across options included."""
        config = with_values(Config(), self.values)
        for conflict in conflicts(config):
            if not self.bad.intersection(conflict.keys):
                where = next((self.origin[key] for key in conflict.keys if key in self.origin), conflict.keys[0])
                self._problem(where, conflict.what, conflict.suggestion)
        if self.problems:
            raise ConfigError(self.problems)
        return config

    def _problem(self, where: str, what: str, suggestion: str | None = None) -> None:
        self.problems.append(Problem(where, what, suggestion))

    def _owner(self, key: str, where: str) -> type | None:
        """The section or the option's type behind a dotted key; None, with the mistake noted, where there is none."""
        owner, prefix = Config, ""
        for name in key.split("."):
            known = section(owner) if dataclasses.is_dataclass(owner) else {}
            if name not in known:
                self._problem(where, *unknown(name, prefix, tuple(known), dotted=True))
                return None
            owner, prefix = known[name], f"{prefix}{name}."
        return owner

    def _section(self, cls: type, prefix: str, node: yaml.Node | None, where: str, line: int) -> None:
        """Reads a mapping into a section; `line` 0: the origin has no lines (a flag)."""
        if not isinstance(node, yaml.MappingNode):
            value = None if node is None else document.value_of(node)
            if value is not None:
                self._not_a_section(cls, prefix, value, f"{where}:{line}" if line else where)
            return
        seen: dict[str, int] = {}
        for name, key_line, value in document.pairs(node):
            here = f"{where}:{key_line}" if line else where
            if len(self.problems) >= _MOST_MISTAKES:
                if len(self.problems) == _MOST_MISTAKES:
                    self._problem(here, f"reading stops here after {_MOST_MISTAKES} mistakes", "is it the right file?")
                return
            if name in seen:
                self._problem(here, f"duplicate key '{name}'", f"it stands on line {seen[name]} already")
                continue
            seen[name] = key_line
            hint = section(cls).get(name)
            if hint is None:
                noun = "section" if isinstance(value, yaml.MappingNode) else "key"
                self._problem(here, *unknown(name, prefix, tuple(section(cls)), noun=noun))
            elif dataclasses.is_dataclass(hint):
                self._section(hint, f"{prefix}{name}.", value, where, key_line if line else 0)
            else:
                self._value(prefix + name, document.value_of(value), here)

    def _not_a_section(self, cls: type, prefix: str, value: Any, where: str) -> None:
        name = prefix.rstrip(".") or "a configuration"
        self._problem(where, f"{name} is a mapping, got {show(value)}", f"its keys are {', '.join(section(cls))}")

    def _value(self, key: str, value: Any, where: str) -> None:
        try:
            self.values[key] = checked(options()[key], value)
        except WrongValue as error:
            self.bad.add(key)
            self._problem(where, error.what, error.suggestion)
        self.origin[key] = where


class _Dumper(yaml.SafeDumper):
    """Lists on one line, sections as blocks, and text in quotes that would be taken for something else."""

    def represent_text(self, text: str) -> yaml.Node:
        is_text = isinstance(document.resolved(text), str)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text else "'")


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence(
    "tag:yaml.org,2002:seq", value, flow_style=True))


def dump_config(config: Config) -> str:
    """The YAML of a configuration, every option in schema order; `parse_config` gives the same configuration back."""
    return yaml.dump(_tree(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _tree(config: Any) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: _tree(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}


def config_diff(a: Config, b: Config) -> list[str]:
    """One line for each option in which two configurations differ: "search.expansion_rate: 2.0 -> 1.5"."""
    before, after = flatten(a), flatten(b)
    return [f"{key}: {show(before[key])} -> {show(after[key])}" for key in before if before[key] != after[key]]
