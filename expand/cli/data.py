"""`data check`, `data cache` and `data synth`: clips checked, decoded ahead, and made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from expand import streams
from expand.cli.options import PathName, as_json, data_overrides, data_root_option, print_json
from expand.config.schema import FORMATS, BuiltinConfig
from expand.untrusted_input import size_text

Command = Callable[..., Any]
KNOBS = (
    ("size", int, "PX", "Side of the square frames, pixels; an odd number is rounded up."),
    ("seconds", float, "S", "Length of a clip, seconds."),
    ("fps", int, "N", "Frames a second."),
    ("hue", float, "X", "Strength of the tint, warm or cool: any network sees it."),
    ("texture", float, "X", "Strength of the fine lines, rows or columns: needs pixels (X-Spatial)."),
    ("lines", int, "N", "Fine lines in a frame's side: a crop of as many pixels cannot show them."),
    ("motion", float, "X", "Strength of the drifting bands, up or down: needs a frame rate (X-Fast)."),
    ("drift_hz", float, "HZ",
     "Bands that pass a point in a second: frames half a period apart cannot show which way they go."),
    ("period", float, "X", "Strength of the pulsing light, fast or slow: needs a duration, by degrees (X-Temporal)."),
    ("pulse_s", float, "S", "Seconds between two fast pulses of the light; slow ones take three times as long."),
    ("steps", float, "X",
     "Strength of the upright bars that jump, onward or back: needs a duration, all or nothing (X-Temporal)."),
    ("step_s", float, "S", "Seconds between two jumps of the bars: a clip must hold two of them."),
    ("appearance", float, "X", "Strength of the coloured paper behind it all: needs features (X-Bottleneck, X-Width)."),
)
"""Options of `data synth`: those of `data.builtin`, with unit and help text."""


@click.group()
def data() -> None:
    """Check clips, decode them ahead, or make some."""


def clips_named(command: Command) -> Command:
    """Add DATA, --data-root, --format, --set and --workers to a command."""
    for decorate in (
        click.option("--workers", type=click.IntRange(1, 1024), metavar="N",
                     help="Processes that decode.  [default: the cores of this machine]"),
        data_overrides,
        click.option("--format", "format_", type=click.Choice(FORMATS), metavar="NAME",
                     help=f"What DATA is: {', '.join(FORMATS)}.  [default: auto, recognised by content]"),
        data_root_option,
        click.argument("data", metavar="[DATA]", required=False, type=PathName(text=True)),
    ):
        command = decorate(command)
    return command


@data.command()
@clips_named
@click.option("--out", type=PathName(), metavar="DIR",
              help="Where the report and the quarantine list are written.  [default: beside the clips, where a search "
                   "finds the list by itself]")
@as_json
def check(data: str | None, data_root: str | None, format_: str | None, overrides: tuple[str, ...],
          workers: int | None, out: Path | None, json_: bool) -> None:
    """Decode every clip once and report problems.

    DATA is as for `search`: a folder of clips, a list, or a published set's annotations; without it, the lists of
    --set data.train=LIST, or the built-in clips.

    Finds clips that cannot be read (missing, empty, corrupt, without pictures, that crash or hang the decoder), that
    end early or are damaged, that are too short, and that are the same in two splits or two classes. Says what the
    clips allow. Writes all of it to data-report.json, and the clips that a search should not use to quarantine.csv;
    where that file lies beside the clips, a search leaves them out by itself. The exit code is 1 if there are problems.
    After an interruption, the same command continues.
    """
    from expand import api
    from expand.run.display import make_reporter

    values = {"data.path": data, "data.root": data_root, "data.format": format_}
    with make_reporter(silent=json_) as reporter:
        checked = api.check_clips(overrides=overrides, values=values, out=out, workers=workers,
                                  progress=reporter.progress)
    from expand.data.check import refuse_problems
    from expand.report.clips import check_text

    if json_:
        print_json(checked)
    else:
        width = min(120, shutil.get_terminal_size((100, 24)).columns)
        click.echo(check_text(checked, width, streams.output_encoding()), nl=False)
    refuse_problems(checked)


@data.command()
@clips_named
@click.option("--size", type=click.IntRange(8, 8192), metavar="PX", required=True,
              help="Short side of the frames that are kept; smaller clips are kept at their own size.")
@click.option("--limit-gb", type=float, metavar="G",
              help="Largest size of all decoded frames, GB (10^9 bytes).  [default: data.cache_gb, 50]")
@as_json
def cache(data: str | None, data_root: str | None, format_: str | None, overrides: tuple[str, ...],
          workers: int | None, size: int, limit_gb: float | None, json_: bool) -> None:
    """Decode all clips ahead of a search, into its cache.

    DATA is as for `search`. A search keeps frames at one short side for all its networks: the largest crop that it
    can reach, times data.jitter_max (1.25), rounded down, plus one pixel. For crops up to 160 px that is 201, up to
    224 px 281. Frames of another size are of no use to it, but clips that are no larger than that are kept whole and
    serve every search.
    """
    from expand import api
    from expand.run.display import make_reporter

    values = {"data.path": data, "data.root": data_root, "data.format": format_, "data.cache_gb": limit_gb}
    with make_reporter(silent=json_) as reporter:
        kept = api.cache_clips(short_side=size, overrides=overrides, values=values, workers=workers,
                               progress=reporter.progress)
    if json_:
        print_json(kept)
        return
    from expand.expansion.text import duration, one_line

    stored = f"{size_text(kept['bytes'])}, at a short side of at most {kept['short_side']} px"
    place = f"{one_line(kept['folder'])} ({duration(kept['wall_s'])})"
    lines = [f"{kept['kept']:,} of {kept['clips']:,} clips are in the cache, {stored}: {place}"]
    if kept["direct"]:
        lines.append(f"{kept['direct']:,} are decoded at each access, which is slower; --limit-gb sets the limit")
    if kept["unreadable"]:
        lines.append(f"{kept['unreadable']:,} cannot be read; `x3d-expand data check` finds out why, and lists them")
    click.echo("\n".join(lines))


def knobs(command: Command) -> Command:
    """Add an option for each of `KNOBS` to a command, which gets them as `settings`."""
    for name, kind, unit, words in reversed(KNOBS):
        text = f"{words}  [default: {getattr(BuiltinConfig, name):g}]"
        command = click.option(f"--{name.replace('_', '-')}", name, type=kind, metavar=unit, help=text)(command)
    return command


@data.command()
@click.argument("out", type=PathName())
@click.option("--classes", type=click.IntRange(2), metavar="N",
              help="Classes: as many as the cues give, times 2 to 36 papers.  [default: 16]")
@click.option("--clips", type=click.IntRange(1), metavar="M",
              help="Clips in all: half of them to train, a quarter for val, a quarter for test.  [default: 1600]")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed of the rendering.  [default: 0]")
@knobs
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N",
              help="Processes that render.  [default: the cores of this machine]")
@as_json
def synth(out: Path, classes: int | None, clips: int | None, seed: int | None, workers: int | None, json_: bool,
          **settings: float | None) -> None:
    """Make a set of clips, into the folder OUT.

    You choose the cues that tell the classes apart, and so what a network needs to see them. Every cue has a strength:
    0 removes it from the classes and the pictures, 1 is as in the built-in clips. The other options say how large or
    slow a cue is. Each of hue, texture, motion and period doubles the number of classes (by default all four: 16).
    """
    from expand import api
    from expand.run.display import make_reporter

    values = {f"data.builtin.{name}": value for name, value in {**settings, "seed": seed}.items()}
    with make_reporter(silent=json_) as reporter:
        made = api.synthesize(out, classes=classes, clips=clips, values=values, workers=workers,
                              progress=reporter.progress)
    if json_:
        print_json(made)
        return
    counts = ", ".join(f"{count} {split}" for split, count in made["splits"].items())
    click.echo(f"{made['folder']}: {len(made['classes'])} classes, {counts} clips\n"
               f"  x3d-expand search --data {made['folder']} --target-gflops G")
