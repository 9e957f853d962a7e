"""YAML text read into nodes that know their lines, within bounds that no text can break.

Values are resolved by the rules of YAML 1.2 where 1.1 surprises: `1e-3` is a number, `010` is not eight, a date is
text. Nothing is ever constructed but null, booleans, numbers, text and lists of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from expand.errors import Problem
from expand.untrusted_input import LARGEST_YAML, read_bounded

MAX_BYTES = LARGEST_YAML
MAX_DEPTH = 16
MAX_ALIASES = 32
MAX_CHARS_WITH_SURROGATES = 100_000
"""Characters of a text that escapes bytes outside UTF-8 (`\\udce9`): the C parser refuses such escapes, and the parser
in Python takes seconds for a text of this length."""

# The C parser reads the largest file that is allowed in well under a second; without libyaml it takes some seconds.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULL = re.compile(r"(~|null|Null|NULL|)\Z")
_TRUE = re.compile(r"(?i:true|yes|on)\Z")
_FALSE = re.compile(r"(?i:false|no|off)\Z")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NOT_FINITE = re.compile(r"[-+]?\.?(?i:inf|nan)\Z")


class NotYaml(Exception):
    """A text that cannot be read at all; `line` counts from 1, 0 where no line is to blame."""

    def __init__(self, what: str, line: int = 0, suggestion: str | None = None) -> None:
        self.what, self.line, self.suggestion = what, line, suggestion
        super().__init__(what)

    def problem(self, where: str) -> Problem:
        """Return the mistake to report; `where` names the file."""
        return Problem(f"{where}:{self.line}" if self.line else where, self.what, self.suggestion)


@dataclass(frozen=True)
class Mapping:
    """Stands for a mapping where a value was expected; its content is never looked at."""


def read_regular_file(path: Path) -> str:
    """Return the text of a regular YAML file that a program keeps, read by `read_bounded`; NotYaml where it is missing,
    unreadable, too large or not UTF-8."""
    try:
        return decode_utf8(read_bounded(path, MAX_BYTES))
    except OSError as error:
        raise NotYaml(f"cannot be read: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """Return the text of a configuration file, which may be a pipe; NotYaml where it is missing, unreadable, too large
    or not UTF-8."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotYaml(f"cannot be read ({error.strerror or error})") from error
    if len(raw) > MAX_BYTES:
        raise NotYaml("larger than 1 MB, which no configuration is", suggestion="is it the right file?")
    return decode_utf8(raw)


def decode_utf8(raw: bytes) -> str:
    """Return `raw` as text; NotYaml where it is not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise NotYaml("not UTF-8 text", line, "save the file as UTF-8") from error


def parse(text: str, loader: Any = _Loader) -> yaml.Node | None:
    """Return the root node of a text (None: empty); NotYaml for a syntax error or one of YAML's traps."""
    if len(text) > MAX_BYTES:
        raise NotYaml("larger than 1 MB, which no configuration is")
    try:
        _refuse_traps(text, loader)
        return yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        lines = text.splitlines()
        has_tab = mark and mark.line < len(lines) and "\t" in lines[mark.line]
        hint = "indent with spaces, not with tabs" if has_tab else "check the indentation and the quotes"
        what = f"not valid YAML: {error.problem or error.context}"
        raise NotYaml(what, mark.line + 1 if mark else 0, hint) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = getattr(error, "reason", None) or str(error).splitlines()[0]
        raise NotYaml(f"not valid YAML: {reason}") from error


def _refuse_traps(text: str, loader: Any) -> None:
    """Bound depth and aliases before any node is made, so that no text costs more than its length."""
    depth = aliases = 0
    for event in yaml.parse(text, Loader=loader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
        if depth > MAX_DEPTH:
            raise NotYaml(f"nested more than {MAX_DEPTH} levels deep", line)
        if aliases > MAX_ALIASES:
            raise NotYaml(f"more than {MAX_ALIASES} aliases (*name)", line, "write the values out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise NotYaml(f"tags such as '{tag[:40]}' are not understood", line, "take the tag away")


def pairs(node: yaml.MappingNode) -> Iterator[tuple[str, int, yaml.Node]]:
    """Yield (key, line, value) of a mapping, duplicates included; a key that is no scalar shows as '?'."""
    for key, value in node.value:
        yield (key.value if isinstance(key, yaml.ScalarNode) else "?"), key.start_mark.line + 1, value


def value_of(node: yaml.Node) -> Any:
    """Return the plain value of a node: None, bool, int, float, str, a list of these, or `Mapping()`."""
    if isinstance(node, yaml.MappingNode):
        return Mapping()
    if isinstance(node, yaml.SequenceNode):
        # An inner list stays empty: nothing takes lists of lists, and an alias may make them endless.
        return [[] if isinstance(item, yaml.SequenceNode) else value_of(item) for item in node.value]
    return node.value if getattr(node, "style", None) else resolve_scalar(node.value)


def resolve_scalar(text: str) -> Any:
    """Return the value of a plain scalar: `1e-3` is a number, `2024-01-01` is text."""
    if _NULL.match(text):
        return None
    if _TRUE.match(text) or _FALSE.match(text):
        return bool(_TRUE.match(text))
    if len(text) > 400:  # int() and float() would take any length; nothing meant as a number has this one
        return text
    if _INT.match(text):
        return int(text)
    if _FLOAT.match(text):
        return float(text)
    return float(text.replace(".", "")) if _NOT_FINITE.match(text) else text


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes text with a NEL, which comes back as a space otherwise."""

    def represent_text(self, text: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def dump(value: Any) -> str:
    """Return plain values as YAML text, of which `parse_values` makes them again."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_values(text: str) -> Any:
    """Return all of a text as plain values: null, booleans, numbers, text, lists, and mappings with such keys. For what
    a program wrote with `dump` or `yaml.safe_dump` and reads again, so that scalars are what they were by its rules
    (YAML 1.1); dates and numbers to the base of 60, which it never writes plain, are text.

    Raises NotYaml for a syntax error or one of YAML's traps; no text costs more than its length.
    """
    needs_python = len(text) <= MAX_CHARS_WITH_SURROGATES and _SURROGATE.search(text)
    root = parse(text, yaml.SafeLoader if needs_python else _Loader)
    left = MAX_BYTES  # values that aliases may still stand for

    def construct(node: yaml.Node, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise NotYaml("its aliases (*name) stand for too much", suggestion="write the values out")
        if isinstance(node, yaml.SequenceNode):
            return [construct(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            return {construct_key(key): construct(value, depth + 1) for key, value in node.value}
        return _construct_scalar(node)

    def construct_key(node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise NotYaml("a key is a list or a mapping", node.start_mark.line + 1)
        return _construct_scalar(node)

    return None if root is None else construct(root, 0)


_constructor = yaml.constructor.SafeConstructor()
_CONSTRUCT = {"tag:yaml.org,2002:null": _constructor.construct_yaml_null,
              "tag:yaml.org,2002:bool": _constructor.construct_yaml_bool,
              "tag:yaml.org,2002:int": _constructor.construct_yaml_int,
              "tag:yaml.org,2002:float": _constructor.construct_yaml_float}


def _construct_scalar(node: Any) -> Any:
    if node.tag not in _CONSTRUCT or ":" in node.value or len(node.value) > 400:
        return node.value
    try:
        return _CONSTRUCT[node.tag](node)
    except ValueError:  # digits that the base lacks
        return node.value
