"""`search`, `resume`, `train`, `status` and `plot`, for runs; `plan`, `complexity` and `doctor`, before one begins."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from expand import streams
from expand.cli.options import (
    PathName,
    as_json,
    clip_source,
    configuration,
    executor_options,
    is_first_process,
    print_json,
    run_options,
)

if TYPE_CHECKING:
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
        def confirm(estimate: Estimate) -> bool:
            is_short = estimate.seconds is not None and estimate.seconds <= ASK_ABOVE_S
            if yes or is_short or not (sys.stdin.isatty() and sys.stdout.isatty()):
                return True
            with display.pause():
                return click.confirm("Start?", default=True)

        summary = api.search(config, overrides=overrides, values=values, run_dir=run_dir, display=display,
                             confirm=confirm)
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


@click.command()
@click.argument("run", type=PathName())
@as_json
def status(run: Path, json_: bool) -> None:
    """Show what a run has done and is doing.

    Works from any shell and at any time, also while the run goes on.
    """
    from expand import api

    summary = api.status(run)
    print_json(summary) if json_ else _echo_status(summary)


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
    from expand.report.tables import plan_text

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
    from expand.report.tables import complexity_text

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


def _report(summary: dict[str, Any]) -> None:
    from expand.rundir.paths import RunPaths

    paths = RunPaths(Path(summary["run"]))
    click.echo()
    _echo_status(summary)
    click.echo(f"\nThe winner: {paths.final}    The plot: {paths.plot_png}")


def _echo_status(summary: dict[str, Any]) -> None:
    """Print the status as text, as wide as the terminal."""
    from expand.report.tables import status_text

    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    click.echo(status_text(summary, width, streams.output_encoding()))


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
