"""YAML, flags and `--set` into one typed, frozen `Config` with every mistake reported at once, and back into YAML."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from expand.config import yaml_document
from expand.config.option_values import WrongValue, check_value, show
from expand.config.schema import Config, flatten, option_annotations, section_fields, with_values
from expand.errors import ConfigError, Problem, UsageError, did_you_mean

_MOST_MISTAKES = 100
"""Far more than a person makes; a file of another kind is refused without a page for each of its lines."""


def ready_folder() -> Path:
    """Return `search_configs/`: in a wheel inside the package, in a checkout linked from there to the tree's top."""
    package = Path(__file__).parent.parent
    inside = package / "search_configs"
    # A copy of the tree made without symbolic links still has the folder at its top.
    return (inside if inside.is_dir() else package.parent / "search_configs").resolve()


def config_names() -> list[str]:
    """Return the names of the ready configurations, sorted."""
    return sorted(path.stem for path in ready_folder().glob("*.yaml"))


def find_config(source: str | Path | None) -> Path:
    """Return the file of a configuration given by path or by ready name (None: `default`); UsageError where there is
    none."""
    source = "default" if source is None else source
    ready = config_names()
    if isinstance(source, str) and source in ready:
        return ready_folder() / f"{source}.yaml"
    path, text = Path(source), str(source)
    if os.path.isdir(path):  # unlike Path.is_dir, no error for a name that is too long or holds a NUL
        raise UsageError(f"'{text}' is a folder, not a configuration", fix="name a folder of clips with --data")
    if os.path.exists(path):
        return path
    is_file_name = isinstance(source, Path) or os.sep in text or path.suffix in (".yaml", ".yml")
    fix = f"ready by name: {', '.join(ready)}; or give the path of a YAML file"
    close = did_you_mean(path.stem, ready)
    raise UsageError(f"there is no {'file' if is_file_name else 'configuration'} '{text}'",
                     fix=f"{close} {fix}" if close else fix)


def load_config(source: str | Path | None = None, overrides: Sequence[str] = (),
                values: Mapping[str, Any] | None = None) -> Config:
    """Read the configuration of a file or a ready name, changed by `--set` texts and then by flags.

    `source`: a path, or a name of `config_names()`; None: `default`. `overrides`: texts "section.key=value", the value
    read as YAML, later ones win. `values`: dotted keys with Python values, None for a flag that was not given; they
    win over `overrides`. Raises UsageError for an unknown source, ConfigError with every mistake otherwise.
    """
    path, reader = find_config(source), _Reader()
    relative = os.path.relpath(path)
    where = str(path) if relative.startswith(os.pardir) else relative  # as a person would name it
    try:
        reader.read_document(yaml_document.read_text(path), where)
    except yaml_document.NotYaml as error:
        reader.problems.append(error.problem(where))
    for text in overrides:
        reader.read_override(text)
    return reader.finish(values)


def parse_config(text: str, where: str = "config.yaml", values: Mapping[str, Any] | None = None) -> Config:
    """Read the configuration of a YAML text, changed by `values` as in `load_config`; `where` names it in the mistakes
    (ConfigError)."""
    reader = _Reader()
    reader.read_document(text, where)
    return reader.finish(values)


class _Reader:
    """Collects values, where each came from, and mistakes."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}
        self.bad: set[str] = set()
        self.problems: list[Problem] = []

    def read_document(self, text: str, where: str) -> None:
        """Read a whole configuration."""
        try:
            node = yaml_document.parse(text)
        except yaml_document.NotYaml as error:
            self.problems.append(error.problem(where))
            return
        if node is not None:
            self._read_section(Config, "", node, where, node.start_mark.line + 1)

    def read_override(self, text: str) -> None:
        """Read one `--set section.key=value`; the value may be a whole section."""
        where = f"--set {text if len(text) <= 80 else text[:76] + ' ...'}"
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            self._note(where, "must be section.key=value", "for instance --set candidate.epochs=20")
            return
        try:
            node = yaml_document.parse(value)
        except yaml_document.NotYaml as error:
            self._note(where, error.what, "put the value in quotes")
            return
        annotation = self._find(key, where)
        if isinstance(annotation, type) and is_dataclass(annotation):
            self._read_section(annotation, f"{key}.", node, where, 0)
        elif annotation is not None:
            self._take(key, None if node is None else yaml_document.value_of(node), where)

    def finish(self, flags: Mapping[str, Any] | None) -> Config:
        """Read the flags, and return the result; ConfigError if there was any mistake, those across options
        included."""
        for key, value in (flags or {}).items():
            if value is None:
                continue
            where = f"{key}={show(value)}"
            annotation = self._find(key, where)
            if is_dataclass(annotation):
                self._note(where, f"{key} is a section, not a key")
            elif annotation is not None:
                self._take(key, value, where)
        config = with_values(Config(), self.values)
        for conflict in config.conflicts():
            if not self.bad.intersection(conflict.keys):
                where = next((self.origin[key] for key in conflict.keys if key in self.origin), conflict.keys[0])
                self._note(where, conflict.what, conflict.suggestion)
        if self.problems:
            raise ConfigError(self.problems)
        return config

    def _note(self, where: str, what: str, suggestion: str | None = None) -> None:
        self.problems.append(Problem(where, what, suggestion))

    def _find(self, key: str, where: str) -> Any:
        """Return the section or the option's annotation behind a dotted key; None, with the mistake noted, where there
        is none."""
        found, prefix = Config, ""
        for name in key.split("."):
            known = section_fields(found) if is_dataclass(found) else {}
            if name not in known:
                self._note(where, *explain_unknown_key(name, prefix, known, dotted=True))
                return None
            found, prefix = known[name], f"{prefix}{name}."
        return found

    def _read_section(self, section: type, prefix: str, node: yaml.Node | None, where: str, line: int) -> None:
        """Read a mapping into a section; `line` 0: the origin has no lines (a flag)."""
        known = section_fields(section)
        if not isinstance(node, yaml.MappingNode):
            value = None if node is None else yaml_document.value_of(node)
            if value is not None:
                self._note(f"{where}:{line}" if line else where,
                           f"{prefix.rstrip('.') or 'a configuration'} is a mapping, got {show(value)}",
                           f"its keys are {', '.join(known)}")
            return
        seen: dict[str, int] = {}
        for name, key_line, value in yaml_document.pairs(node):
            here = f"{where}:{key_line}" if line else where
            if len(self.problems) >= _MOST_MISTAKES:
                if len(self.problems) == _MOST_MISTAKES:
                    self._note(here, f"reading stops here after {_MOST_MISTAKES} mistakes", "is it the right file?")
                return
            if name in seen:
                self._note(here, f"duplicate key '{name}'", f"it stands on line {seen[name]} already")
                continue
            seen[name] = key_line
            if name not in known:
                noun = "section" if isinstance(value, yaml.MappingNode) else "key"
                self._note(here, *explain_unknown_key(name, prefix, known, noun=noun))
            elif is_dataclass(known[name]):
                self._read_section(known[name], f"{prefix}{name}.", value, where, key_line if line else 0)
            else:
                self._take(prefix + name, yaml_document.value_of(value), here)

    def _take(self, key: str, value: Any, where: str) -> None:
        self.origin[key] = where
        try:
            self.values[key] = check_value(key, value)
        except WrongValue as error:
            self.bad.add(key)
            self._note(where, error.what, error.suggestion)


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
    """Return the known word that `did_you_mean` has in mind: what counts as close is defined there alone."""
    sentence = did_you_mean(word[:60], sorted(known))
    return sentence.split("'")[1] if sentence else None


class _Dumper(yaml.SafeDumper):
    """Lists on one line, sections as blocks, and text in quotes that would be taken for something else."""

    def represent_text(self, text: str) -> yaml.Node:
        """Return the node of a text."""
        is_text = isinstance(yaml_document.resolve_scalar(text), str)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text else "'")


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence(
    "tag:yaml.org,2002:seq", value, flow_style=True))


def dump_config(config: Config) -> str:
    """Return the YAML of a configuration, every option in schema order; `parse_config` is the inverse."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def config_diff(a: Config, b: Config) -> list[str]:
    """Return a line for each option in which two configurations differ: "search.expansion_rate: 2.0 -> 1.5"."""
    before, after = flatten(a), flatten(b)
    return [f"{key}: {show(before[key])} -> {show(after[key])}" for key in before if before[key] != after[key]]
