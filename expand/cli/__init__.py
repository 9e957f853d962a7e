"""The command line. Each command is one call of the function of the same name in `expand`.

Nothing heavy is imported here, and of the commands only the one that is asked for, so that it answers at once.
"""

from __future__ import annotations

import contextlib
import os
import pkgutil
import sys
import warnings

import click

from expand import errors, streams
from expand.cli.options import is_first_process
from expand.errors import ExpandError
from expand.version import __version__

_HOMES = {**dict.fromkeys(("search", "resume", "train", "status", "plot", "plan", "complexity", "doctor"), "runs"),
          **dict.fromkeys(("test", "predict", "export"), "networks"), "data": "data"}
"""The module of each command."""


class _Commands(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for name in (cmd_name,) if cmd_name in _HOMES else _HOMES:  # all of them where click looks for a similar name
            if name not in self.commands:
                self.add_command(pkgutil.resolve_name(f"expand.cli.{_HOMES[name]}:{name}"))
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="x3d-expand")
def cli() -> None:
    """Find the X3D-family network that spends a compute budget best on your clips."""


def main() -> None:
    """Run the command line: exit 2 for usage and configuration, 1 for a failed run, 130 when interrupted."""
    if sys._getframe(1).f_globals.get("__name__") == "__main__":  # as a program, not called by another one
        streams.read_names_as_utf8()
    streams.prepare()
    warnings.showwarning = _warn
    try:
        with errors.hints_for_the_command_line():
            cli.main(standalone_mode=False)
            sys.stdout.flush()
    except click.exceptions.Abort:
        _end("interrupted", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except streams.OutputLost as error:
        sys.exit(1) if error.reader_has_gone else _end(str(error), error.exit_code)
    except ExpandError as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        _end("interrupted; files on disk are intact, and the same command goes on from there", 130)
    except Exception as error:  # our own mistake: one line, and the trace on request
        if os.environ.get("X3D_EXPAND_DEBUG"):
            raise
        _end(f"internal error: {type(error).__name__}: {error}\n"
             "  set X3D_EXPAND_DEBUG=1 to see where; files on disk are intact, and `resume` goes on from there", 1)
    finally:
        with contextlib.suppress(streams.OutputLost):  # what is left matters no more than what the exit code says
            sys.stdout.flush()


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """Show the text of a warning alone, without the place in the source."""
    if is_first_process():
        click.echo(f"Warning: {message}", err=True)


def _end(text: str, code: int) -> None:
    if is_first_process():  # the others have met the same
        click.echo(f"Error: {text}" if code != 130 else text, err=True)
    sys.exit(code)
