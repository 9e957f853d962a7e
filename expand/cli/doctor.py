"""`doctor`: what this machine and this installation have for a search."""

from __future__ import annotations

import sys
from typing import Any

import click

from expand.cli.options import as_json, print_json


@click.command()
@as_json
def doctor(json_: bool) -> None:
    """Check this machine and this installation.

    Shows what is there for a search, what of it is in use, and what to do where that is less than it could be. Looks at
    versions, processor, memory, GPUs, the compiled CPU kernels, and the folders for frames and runs; changes nothing.
    The exit code is 1 where something will fail.
    """
    from expand import api

    found = api.doctor()
    print_json(found) if json_ else click.echo(doctor_text(found))
    if found["state"] == "problem":
        sys.exit(1)


def doctor_text(found: dict[str, Any]) -> str:
    """Return a line for each check, and below it what to do where something is wrong."""
    from expand.expansion.text import one_line

    lines = []
    for name, check in found["checks"].items():
        lines.append(f"{check['state']:<8} {name:<10} {one_line(check['text'])}")
        if check["fix"]:
            lines.append(f"{'':<19} -> {one_line(check['fix'])}")
    return "\n".join(lines)
