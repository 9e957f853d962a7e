"""`test`, `predict` and `export`: a trained network measured, applied to files, and written for other software."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from expand import logs, streams
from expand.cli.options import PathName, as_json, data_overrides, data_root_option, print_json
from expand.errors import DataError
from expand.exports import FORMATS

Command = Callable[..., Any]
LISTED_CLASSES = 20
"""Most classes whose figures are printed; of more, the worst."""
FORMAT_TABLE = "\n".join(["\b", "Formats, and how their files end:", *(
    f"  {name:13} {format.suffix:19} {format.about}" for name, format in FORMATS.items())])


def network_options(command: Command) -> Command:
    """Add --weights, --device and --threads to a command."""
    for decorate in (
        click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads.  [default: all cores]"),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
                     help="Device to run the network on."),
        click.option("--weights", type=PathName(), metavar="CHECKPOINT",
                     help="Weights for NETWORK: a file of x3d-expand, SlowFast or PyTorchVideo."),
    ):
        command = decorate(command)
    return command


@click.command()
@click.argument("network", type=PathName(text=True))
@click.option("--views", type=click.Choice(["10", "30"]), default="10", show_default=True,
              help="Views of each video: 10 clips uniform in time, or 30 with three crops of each clip.")
@click.option("--data", type=PathName(text=True), metavar="PATH",
              help="Clips with labels, as in `search`.  [default: those of the run]")
@data_root_option
@click.option("--split", type=click.Choice(["test", "val"]),
              help="Split to measure.  [default: test where there is one, else val]")
@click.option("--out", type=PathName(), metavar="DIR",
              help="Folder for the results.  [default: test/ in the run, else a folder here]")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, metavar="N",
              help="Clips that go through the network at once.")
@data_overrides
@network_options
@as_json
def test(network: str, views: str, data: str | None, data_root: str | None, split: str | None, out: Path | None,
         batch_size: int, overrides: tuple[str, ...], weights: Path | None, device: str, threads: int | None,
         json_: bool) -> None:
    """Measure a trained network on labelled clips.

    NETWORK is a run, a training's folder or a file with weights; with --weights, also xs, s, m, l, xl, x2d or a
    network's YAML file. Videos are scored by the published protocol (10 or 30 views).
    """
    from expand import api
    from expand.run.display import make_reporter

    with make_reporter(silent=json_) as reporter:
        result = api.test(network, views=int(views), data=data, data_root=data_root, overrides=overrides, split=split,
                          weights=weights, out=out, batch_size=batch_size, device=device, threads=threads,
                          progress=reporter.progress)
    print_json(result) if json_ else click.echo("\n".join(_test_lines(result)))


@click.command()
@click.argument("network", type=PathName(text=True))
@click.argument("videos", nargs=-1, required=True, type=PathName(text=True), metavar="VIDEO...")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, metavar="K",
              help="Classes to name for each file.")
@click.option("--views", type=click.IntRange(1, 1000), default=10, show_default=True, metavar="N",
              help="Clips taken from each file, uniform in time.")
@click.option("--timeline", is_flag=True, help="Also predict along the file, window by window.")
@click.option("--window", "window_s", type=float, metavar="S",
              help="Length of a window of the timeline, seconds.  [default: the network's clip, at least 1]")
@click.option("--hop", "hop_s", type=float, metavar="S",
              help="Seconds from the start of one window to the next.  [default: half of the window]")
@network_options
@as_json
def predict(network: str, videos: tuple[str, ...], top: int, views: int, timeline: bool, window_s: float | None,
            hop_s: float | None, weights: Path | None, device: str, threads: int | None, json_: bool) -> None:
    """Predict the class of each VIDEO, a file of any length.

    NETWORK is a run, a training's folder or a file with weights. The exit code is 1 if a file could not be read.
    """
    from expand import api
    from expand.run.display import make_reporter

    with make_reporter(silent=json_) as reporter:
        streams.require_output()  # the answers are kept nowhere
        answers = api.predict(
            network, videos, top=top, views=views, timeline=timeline, window_s=window_s, hop_s=hop_s, weights=weights,
            device=device, threads=threads, progress=reporter.progress,
            report=lambda file: reporter.show("\n".join(_file_lines(file))))
    if json_:
        print_json(answers)
    if unread := sum("error" in file for file in answers["files"]):
        raise DataError(f"{unread} of {len(videos)} files could not be read")


@click.command(epilog=FORMAT_TABLE)
@click.argument("network", type=PathName(text=True))
@click.option("--format", "format_", required=True, metavar="F", help="One of the formats below.")
@click.option("--out", type=PathName(), metavar="PATH",
              help="A file, or a folder.  [default: the run's final/, else the current folder]")
@click.option("--weights", type=PathName(), metavar="CHECKPOINT",
              help="Weights for a NETWORK that is only a description.")
@as_json
def export(network: str, format_: str, out: Path | None, weights: Path | None, json_: bool) -> None:
    """Write a trained network for other software.

    NETWORK is a run, a training's folder or a file with weights; with --weights, also xs, s, m, l, xl, x2d or a
    network's YAML file.
    """
    from expand import api

    streams.tolerate_lost_output()
    measured: dict[str, float] = {}
    with logs.shown_by(lambda text: click.echo(text, err=True)):
        files = api.export(network, format_, out, weights=weights,
                           compared=lambda difference: measured.update(largest_difference=difference))
    if json_:
        print_json({"format": format_, "files": files, **measured})
        return
    for file in files:
        click.echo(file)
    for difference in measured.values():
        click.echo(f"its logits differ from the network's by at most {difference:.1e}", err=True)


def _test_lines(result: dict[str, Any]) -> Iterator[str]:
    from expand.expansion.text import duration, one_line, percent

    left_out = f" ({result['left_out']} unreadable ones left out)" if result["left_out"] else ""
    yield (f"{one_line(result['network'])}: {result['videos']} videos{left_out} of {result['split']} in "
           f"{one_line(result['data'])}, {result['views']} views each")
    for name, key in (("top-1", "accuracy"), ("top-5", "top5")):
        low, high = result[f"{key}_interval"]
        yield f"  {name}  {percent(result[key]):>5} %   95 % interval {percent(low)} to {percent(high)}"
    yield f"  loss   {result['loss']:.3f}"
    if result["note"]:
        yield f"  {result['note']}"
    yield ""
    rows = shown = result["per_class"]  # of many classes, the worst first
    if len(rows) > LISTED_CLASSES:
        shown = sorted(rows, key=lambda row: row["accuracy"])[:LISTED_CLASSES]
        yield f"The worst {LISTED_CLASSES} of {len(rows)} classes (classes.csv has all):"
    names = [one_line(row["class"]) for row in shown]
    width = max(map(len, [*names, "class"]))
    yield f"{'class':<{width}}  videos  top-1 %  top-5 %  most often mistaken for"
    for name, row in zip(names, shown, strict=True):
        mistaken = f"{one_line(row['confused_with'])} ({row['confused']})" if row["confused"] else "-"
        yield (f"{name:<{width}}  {row['videos']:>6}  {percent(row['accuracy']):>7}  {percent(row['top5']):>7}  "
               f"{mistaken}")
    yield ""
    yield (f"{duration(result['wall_s'])} on {result['device']}, {result['precision']}, "
           f"{result['clips_per_s']:.1f} clips/s. Written to {one_line(result['out'])}")


def _file_lines(file: dict[str, Any]) -> Iterator[str]:
    from expand.expansion.text import one_line

    if "error" in file:
        yield f"{one_line(file['path'])}: cannot be read: {one_line(file['error'])}"
        return
    damaged = f", {file['damaged']} damaged packets skipped" if file["damaged"] else ""
    often = file["clock_jumps"]
    jumps = f", its clock jumps {often} time{'s' if often > 1 else ''} and is not followed there" if often else ""
    yield f"{one_line(file['path'])} ({file['length_s']:.1f} s{damaged}{jumps})"
    for guess in file["predictions"]:
        yield f"  {100 * guess['probability']:5.1f} %  {one_line(guess['class'])}"
    # Neighbouring windows that show the same class stand in one line, with the mean of their probabilities.
    for _, group in groupby(file.get("timeline", []), key=lambda window: window["predictions"][0]["label"]):
        windows = list(group)
        best = [window["predictions"][0] for window in windows]
        probability = sum(guess["probability"] for guess in best) / len(best)
        yield (f"  {windows[0]['start_s']:7.1f} to {windows[-1]['end_s']:7.1f} s  {100 * probability:5.1f} %  "
               f"{one_line(best[0]['class'])}")
