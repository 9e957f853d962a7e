"""Options that several commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from expand import streams
from expand.config.schema import EXECUTORS
from expand.home import expand_home

Command = Callable[..., Any]


class PathName(click.ParamType):
    """The type of a path, which becomes a `Path` or stays `text`, with `~` expanded where the shell left it, as in
    --out=~/x."""

    name = "path"

    def __init__(self, *, text: bool = False) -> None:
        self._is_text = text

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path. Raises `UsageError` where it begins with a home folder that does not exist."""
        if self._is_text and not str(value).startswith("~"):
            return value
        where = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name if param else "path"
        path = expand_home(value, where)
        return str(path) if self._is_text else path


data_root_option = click.option("--data-root", type=PathName(text=True), metavar="DIR",
                                help="Folder that relative paths in lists start from.  [default: that of the list]")
data_overrides = click.option("--set", "overrides", multiple=True, metavar="data.KEY=VALUE",
                              help="Any other option of the data; may be repeated.")


def clip_source(command: Command) -> Command:
    """Add --data and --data-root to a command, which gets them as `clips`, options by dotted key."""

    @functools.wraps(command)
    def wrapper(*, data: str | None, data_root: str | None, **rest: Any) -> Any:
        return command(clips={"data.path": data, "data.root": data_root}, **rest)

    for decorate in (
        data_root_option,
        click.option("--data", type=PathName(text=True), metavar="PATH",
                     help="Your clips: a folder {train,val}/<class>/<clip>, <class>/{train,val}/<clip> or "
                          "<class>/<clip>, a list of `path label`, or a published set's annotations (docs/data.md).  "
                          "[default: the built-in clips]"),
    ):
        wrapper = decorate(wrapper)
    return wrapper


def configuration(command: Command) -> Command:
    """Add CONFIG, --data, --data-root, --target-gflops and --set to a command."""
    for decorate in (
        click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
                     help="Any other option of the configuration; may be repeated."),
        click.option("--target-gflops", type=float, metavar="G",
                     help="The budget: multiply-adds of one clip, in 10^9."),
        clip_source,
        click.argument("config", required=False, type=PathName(text=True)),
    ):
        command = decorate(command)
    return command


def run_options(command: Command) -> Command:
    """Add --name, --run-dir, --seed, --device and --threads to a command, which gets `run_dir`, and the others as
    `run_values`, options by dotted key."""

    @functools.wraps(command)
    def wrapper(*, name: str | None, run_dir: Path | None, seed: int | None, device: str | None, threads: int | None,
               **rest: Any) -> Any:
        if name and run_dir:
            raise click.UsageError("--name and --run-dir both say where it is kept; give one of them")
        values = {"run.name": name, "run.seed": seed, "run.device": device, "run.threads": threads}
        return command(run_dir=run_dir, run_values=values, **rest)

    for decorate in (
        click.option("--threads", type=int, metavar="N",
                     help="CPU threads of each process.  [default: the cores, shared by the workers]"),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]),
                     help="Device to train on.  [default: auto]"),
        click.option("--seed", type=int, metavar="N", help="Seed of all random numbers.  [default: 0]"),
        click.option("--run-dir", type=PathName(), metavar="DIR", help="Directory of the run, in place of runs/NAME."),
        click.option("--name", metavar="NAME",
                     help="Name of the run, which is kept in runs/NAME.  [default: a free name]"),
    ):
        wrapper = decorate(wrapper)
    return wrapper


def executor_options(command: Command) -> Command:
    """Add --executor and --workers to a command, which gets them as `executor_values`, options by dotted key."""

    @functools.wraps(command)
    def wrapper(*, executor: str | None, workers: int | None, **rest: Any) -> Any:
        return command(executor_values={"run.executor": executor, "run.workers": workers}, **rest)

    for decorate in (
        click.option("--workers", type=int, metavar="N",
                     help="Candidates trained at the same time.  [default: 1, or as the run was begun]"),
        click.option("--executor", type=click.Choice(EXECUTORS),
                     help="Where candidates are trained: in processes of this machine, or on a Ray cluster "
                          "(docs/cluster.md).  [default: local, or as the run was begun]"),
    ):
        wrapper = decorate(wrapper)
    return wrapper


def as_json(command: Command) -> Command:
    """Add --json to a command."""
    return click.option("--json", "json_", is_flag=True, help="Print JSON and nothing else (docs/json.md).")(command)


def is_first_process() -> bool:
    """Return whether this process is the one that speaks to the user, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def print_json(value: Any) -> None:
    """Print strict JSON on standard output, in ASCII where that is not UTF-8. Raises `OutputLost` where it cannot be
    written."""
    from expand.rundir.files import to_json

    streams.require_output()
    click.echo(to_json(value, indent=2, ascii_only=not streams.is_unicode(streams.output_encoding())))
