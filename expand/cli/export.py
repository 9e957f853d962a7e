"""`export`: a trained network in the format of other software."""

from __future__ import annotations

from pathlib import Path

import click

from expand import streams
from expand.cli.options import PathName, as_json, print_json
from expand.exports import FORMATS

FORMAT_TABLE = "\n".join(["\b", "Formats, and how their files end:", *(
    f"  {name:13} {format.suffix:19} {format.about}" for name, format in FORMATS.items())])


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
    files = api.export(network, format_, out, weights=weights, log=lambda text: click.echo(text, err=True),
                       compared=lambda difference: measured.update(largest_difference=difference))
    if json_:
        print_json({"format": format_, "files": files, **measured})
        return
    for file in files:
        click.echo(file)
    for difference in measured.values():
        click.echo(f"its logits differ from the network's by at most {difference:.1e}", err=True)
