"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]


def configuration(command: Command) -> Command:
    """CONFIG, --data, --target-gflops and --set."""
    for decorate in (
        click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
                     help="Any other option of the configuration; may be repeated."),
        click.option("--target-gflops", type=float, metavar="G",
                     help="The budget: multiply-adds of one clip, in 10^9."),
        click.option("--data", metavar="PATH",
                     help="Your clips: a folder {train,val}/<class>/<clip>, or one with train.csv and val.csv. "
                          "Default: the built-in clips."),
        click.argument("config", required=False),
    ):
        command = decorate(command)
    return command


def as_json(command: Command) -> Command:
    """--json."""
    return click.option("--json", "json_", is_flag=True, help="Print JSON and nothing else (docs/json.md).")(command)


def is_first_process() -> bool:
    """Whether this process is the one that talks, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def print_json(value: Any) -> None:
    """Strict JSON on standard output."""
    from expand.rundir.files import to_json

    click.echo(to_json(value, indent=2))
