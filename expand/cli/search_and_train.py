"""`search`, `resume` and `train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from expand.cli.options import PathName, clip_source, configuration, executor_options, is_first_process, run_options

if TYPE_CHECKING:
    from expand.run.display import Plain
    from expand.run.environment import Estimate

ASK_ABOVE_S = 1800
"""Estimated seconds above which a search is confirmed first, on an interactive terminal."""


@click.command()
@configuration
@executor_options
@run_options
@click.option("--yes", is_flag=True, help="Do not ask before a long search.")
def search(config: str | None, clips: dict[str, Any], target_gflops: float | None, overrides: tuple[str, ...],
           run_dir: Path | None, run_values: dict[str, Any], executor_values: dict[str, Any], yes: bool) -> None:
    """Search for the best network in the budget, and train it.

    The search begins with the smallest network and expands it one axis at a time. CONFIG is a YAML file or the name
    of a ready configuration (default, quickstart, folder, kinetics).
    """
    from expand import api
    from expand.run.display import make_display

    values = {**clips, "search.target_gflops": target_gflops, **run_values, **executor_values}
    with make_display() as display:
        summary = api.search(config, overrides=overrides, values=values, run_dir=run_dir, display=display,
                             confirm=lambda estimate: yes or _confirm(estimate, display))
    _report(summary)


@click.command()
@click.argument("run", type=PathName())
@executor_options
def resume(run: Path, executor_values: dict[str, Any]) -> None:
    """Continue a run that was interrupted.

    Works after Ctrl-C, a kill, a crash or a power cut. RUN is the directory of a search or a training.
    """
    from expand import api
    from expand.run.display import make_display

    with make_display() as display:
        summary = api.resume(run, values=executor_values, display=display)
    _report(summary) if "steps" in summary else _report_training(summary)


@click.command()
@click.argument("network", type=PathName(text=True))
@clip_source
@click.option("--init", type=PathName(), metavar="CHECKPOINT",
              help="Initial weights: a run, a weights file of x3d-expand, or a checkpoint of SlowFast or PyTorchVideo."
                   "  [default: random]")
@click.option("--epochs", type=int, metavar="N", help="Passes over the train split.  [default: about 2,000 updates]")
@click.option("--batch-size", type=int, metavar="N",
              help="Clips in an update.  [default: by the size of the train split]")
@click.option("--config", metavar="CONFIG", type=PathName(text=True),
              help="A YAML file or a ready configuration, for its sections data, final, run.")
@run_options
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
              help="Any other option, such as final.ema=0.999; may be repeated.")
def train(network: str, clips: dict[str, Any], init: Path | None, epochs: int | None, batch_size: int | None,
          config: str | None, run_dir: Path | None, run_values: dict[str, Any], overrides: tuple[str, ...]) -> None:
    """Train one network and measure it.

    NETWORK is xs, s, m, l, xl, x2d, a network's YAML file, or a run (for its winner). `resume` continues after an
    interruption. To train in several processes: torchrun --nproc-per-node N -m expand train ...
    """
    from expand import api
    from expand.run.display import make_display

    values = {**clips, "final.epochs": epochs, "final.batch_size": batch_size, **run_values}
    with make_display() as display:
        result = api.train(network, config, init=init, overrides=overrides, values=values, run_dir=run_dir,
                           display=display)
    _report_training(result)


def _confirm(estimate: Estimate, display: Plain) -> bool:
    is_short = estimate.seconds is not None and estimate.seconds <= ASK_ABOVE_S
    if is_short or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    with display.pause():
        return click.confirm("Start?", default=True)


def _report(summary: dict[str, Any]) -> None:
    from expand.cli.status_and_plan import echo_status
    from expand.rundir.paths import RunPaths

    paths = RunPaths(Path(summary["run"]))
    click.echo()
    echo_status(summary)
    click.echo(f"\nThe winner: {paths.final}    The plot: {paths.plot_png}")


def _report_training(result: dict[str, Any]) -> None:
    from expand.expansion.text import duration, percent
    from expand.rundir.paths import RunPaths

    if not is_first_process():
        return
    paths, (low, high) = RunPaths(Path(result["run"])), result["accuracy_interval"]
    click.echo(f"\n{percent(result['accuracy'])} % of {result['videos']} videos of {result['split']} "
               f"(95 % interval {percent(low)} to {percent(high)}), top-5 {percent(result['top5'])} %, "
               f"after {duration(result['wall_s'])} of training")
    click.echo(f"The network: {paths.final}    Its card: {paths.card}")
