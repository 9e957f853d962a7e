"""`status`, `plot`, `plan`, `complexity` and `doctor`: commands that change no run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from expand import streams
from expand.cli.options import PathName, as_json, configuration, print_json


def echo_status(summary: dict[str, Any]) -> None:
    """Print the status as text, as wide as the terminal."""
    from expand.report.tables import status_text

    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    click.echo(status_text(summary, width, streams.output_encoding()))


@click.command()
@click.argument("run", type=PathName())
@as_json
def status(run: Path, json_: bool) -> None:
    """Show what a run has done and is doing.

    Works from any shell and at any time, also while the run goes on.
    """
    from expand import api

    summary = api.status(run)
    print_json(summary) if json_ else echo_status(summary)


@click.command()
@click.argument("run", type=PathName())
@click.option("--out", type=PathName(), metavar="FILE",
              help="A .png or .svg file.  [default: RUN/report/expansion.png]")
def plot(run: Path, out: Path | None) -> None:
    """Draw accuracy against compute for a run's candidates."""
    from expand import api

    streams.tolerate_lost_output()
    click.echo(api.plot(run, out))


@click.command()
@configuration
@click.option("--path", metavar="AXIS,AXIS,...",
              help="Show the plan after these expansions, such as x_bottleneck,x_fast.")
@click.option("--classes", type=click.IntRange(1, 1_000_000), metavar="N",
              help="Number of classes.  [default: those of the clips; 400, as published, where none are named]")
@as_json
def plan(config: str | None, clips: dict[str, Any], target_gflops: float | None, overrides: tuple[str, ...],
         path: str | None, classes: int | None, json_: bool) -> None:
    """Show what a search would try, without training anything."""
    from expand import api

    axes = [axis.strip() for axis in path.split(",") if axis.strip()] if path else []
    planned = api.plan(config, overrides=overrides, path=axes, classes=classes,
                       values={**clips, "search.target_gflops": target_gflops})
    if json_:
        print_json(planned)
        return
    from expand.report.plan_text import plan_text

    click.echo(plan_text(planned, streams.output_encoding()))


@click.command()
@click.argument("network", type=PathName(text=True))
@as_json
def complexity(network: str, json_: bool) -> None:
    """Count a network's multiply-adds and parameters.

    NETWORK is xs, s, m, l, xl, x2d, a network's YAML file, or a run (for its winner).
    """
    from expand import api

    counted = api.complexity(network)
    if json_:
        print_json(counted)
        return
    from expand.report.plan_text import complexity_text

    click.echo(complexity_text(counted))


@click.command()
@as_json
def doctor(json_: bool) -> None:
    """Check this machine and this installation.

    Shows what a search can use here, what it does use, and how to get more. Looks at versions, processor, memory, GPUs,
    the compiled CPU kernels, and the folders for frames and runs; changes nothing. The exit code is 1 if something will
    fail.
    """
    from expand import api

    found = api.doctor()
    if json_:
        print_json(found)
    else:
        from expand.expansion.text import one_line

        for name, check in found["checks"].items():
            click.echo(f"{check['state']:<8} {name:<10} {one_line(check['text'])}")
            if check["fix"]:
                click.echo(f"{'':<19} -> {one_line(check['fix'])}")
    if found["state"] == "problem":
        sys.exit(1)
