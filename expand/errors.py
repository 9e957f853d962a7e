"""The kinds of error, each with a text that a person can act on.

Every error that a user may meet is an `ExpandError`: what happened, where, and the way out. The command line prints
exactly that and exits with the error's code, so the texts are part of the interface and are tested.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class ExpandError(Exception):
    """An error that a user can act on.

    `what` is one sentence; `where` names a file, a line, a key or a run; `fix` says what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what if self.where is None else f"{self.where}: {self.what}"]
        if self.fix:
            lines.append(f"  {self.fix}")
        return "\n".join(lines)


class UsageError(ExpandError):
    """A command or a call with options that are wrong or contradict each other."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration: its place, what is wrong, and a suggestion."""

    where: str
    what: str
    suggestion: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.suggestion}" if self.suggestion else "")


class ConfigError(UsageError):
    """All the mistakes of a configuration at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        super().__init__(f"{count} mistake{'s' if count != 1 else ''} in the configuration")

    def __str__(self) -> str:
        return "\n".join([f"{self.what}:", *(f"  {problem}" for problem in self.problems)])


class DataError(ExpandError):
    """Clips that are missing, unreadable or do not fit the search."""


class RunError(ExpandError):
    """A run directory that cannot be used as asked."""


class CandidateFailed(ExpandError):
    """A candidate whose training cannot give a result (a loss that is not finite, no memory); the search goes on."""


class DeviceFault(ExpandError):
    """A GPU that failed under this process (an illegal access, an ECC error). Every later call to it fails too, so
    another process has to continue."""


class Interrupted(ExpandError):
    """The user (Ctrl-C) or the system (SIGTERM) asked for a stop; the work so far is on disk."""

    exit_code = 130


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return a suggestion for a mistyped `word`, or None where nothing known is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else None


_speaks_command_line = False


@contextmanager
def hints_for_the_command_line() -> Iterator[None]:
    """Let hints name options of the command line meanwhile; else they name arguments of the Python functions."""
    global _speaks_command_line
    before, _speaks_command_line = _speaks_command_line, True
    try:
        yield
    finally:
        _speaks_command_line = before


def hint(*, command: str, python: str) -> str:
    """Return what to do next, in the words of the interface that is in use."""
    return command if _speaks_command_line else python
