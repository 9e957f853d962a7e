"""`search` and `resume`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from expand.cli.options import configuration

if TYPE_CHECKING:
    from expand.session import Estimate

ASK_ABOVE_S = 1800
"""A longer search is confirmed first, on an interactive terminal."""


@click.command()
@configuration
@click.option("--name", metavar="N", help="Name of the run; it is kept in runs/N.")
@click.option("--run-dir", type=click.Path(path_type=Path), metavar="DIR", help="Keep the run in DIR instead.")
@click.option("--seed", type=int, metavar="N", help="Seed of everything random.  [default: 0]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train.  [default: auto]")
@click.option("--threads", type=int, metavar="N", help="CPU threads.  [default: all cores]")
@click.option("--yes", is_flag=True, help="Do not ask before a long search.")
def search(config: str | None, data: str | None, target_gflops: float | None, overrides: tuple[str, ...],
           name: str | None, run_dir: Path | None, seed: int | None, device: str | None, threads: int | None,
           yes: bool) -> None:
    """Search from the smallest network to the budget, and train the winner.

    CONFIG is a YAML file or the name of a ready configuration (default, quickstart, folder, kinetics).
    """
    from expand import api
    from expand.cli.display import make_display

    if name and run_dir:
        raise click.UsageError("--name and --run-dir both say where the run is kept; give one of them")
    values = {"data.path": data, "search.target_gflops": target_gflops, "run.name": name, "run.seed": seed,
              "run.device": device, "run.threads": threads}
    with make_display() as display:
        summary = api.search(config, overrides=overrides, values=values, run_dir=run_dir, display=display,
                             confirm=lambda estimate: yes or _confirm(estimate, display))
    _report(summary)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def resume(run: Path) -> None:
    """Go on with a run after an interruption of any kind."""
    from expand import api
    from expand.cli.display import make_display

    with make_display() as display:
        summary = api.resume(run, display=display)
    _report(summary)


def _confirm(estimate: Estimate, display: Any) -> bool:
    if estimate.seconds <= ASK_ABOVE_S or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    with display.paused():
        return click.confirm("Start?", default=True)


def _report(summary: dict[str, Any]) -> None:
    from expand.cli.inspect import echo_status
    from expand.rundir.paths import RunPaths

    paths = RunPaths(Path(summary["run"]))
    click.echo()
    echo_status(summary)
    click.echo(f"\nThe winner: {paths.final}    The plot: {paths.plot_png}")
