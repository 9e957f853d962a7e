"""Rules that bind several options to one another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from expand.config.options import flatten, options
from expand.config.schema import Config

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


@dataclass(frozen=True)
class Conflict:
    """A broken rule, the options that it binds (those to blame first), and a way out."""

    keys: tuple[str, ...]
    what: str
    suggestion: str | None = None


def conflicts(config: Config) -> Iterator[Conflict]:
    """Every rule across options that a configuration breaks."""
    yield from _sources(config)
    yield from _jitter(config)
    yield from _limits(config)
    yield from _run_name(config)


def _sources(config: Config) -> Iterator[Conflict]:
    lists = {name: getattr(config.data, name) for name in ("train", "val", "test")}
    given = [f"data.{name}" for name, value in lists.items() if value is not None]
    if given and config.data.path is not None:
        yield Conflict(("data.path", *given), f"data.path and {' and '.join(given)} name different clips",
                       "keep either the folder or the lists")
    val, test = config.data.val_share, config.data.test_share
    if val + test >= 1:
        yield Conflict(("data.val_share", "data.test_share"),
                       f"data.val_share and data.test_share leave nothing to train on: {val:g} + {test:g}",
                       "make them smaller")
    if config.data.group is not None:
        yield from _pattern(config.data.group)


def _pattern(text: str) -> Iterator[Conflict]:
    try:
        groups = re.compile(text).groups
    except re.error as error:
        yield Conflict(("data.group",), f"data.group is no regular expression: {error}, in '{text}'")
        return
    if groups != 1:
        yield Conflict(("data.group",), f"data.group needs one pair of parentheses around the group, got '{text}'",
                       "for instance '_(g[0-9]+)_'")


def _jitter(config: Config) -> Iterator[Conflict]:
    low, high = config.data.jitter_min, config.data.jitter_max
    if low > high:
        yield Conflict(("data.jitter_min", "data.jitter_max"),
                       f"data.jitter_min must be at most data.jitter_max, got {low:.10g} > {high:.10g}")


def _limits(config: Config) -> Iterator[Conflict]:
    """A limit below the basis would leave an axis that has to shrink before it grows."""
    values = flatten(config)
    for key in options():
        basis = key.replace("search.limits.", "search.basis.")
        if basis == key or basis not in values or values[key] is None:
            continue
        if values[key] < values[basis]:
            yield Conflict((key, basis), f"{key} must be at least {basis}, got {values[key]:g} < {values[basis]:g}")


def _run_name(config: Config) -> Iterator[Conflict]:
    name = config.run.name
    if name is not None and not RUN_NAME.match(name):
        yield Conflict(("run.name",), f"run.name must be letters, digits, '.', '_' and '-', at most 100, got '{name}'",
                       "the folder around it is run.runs_dir")
