"""The kinds of error, each with a text that a person can act on.

Every error that a user may meet is an `ExpandError`: what happened, where, and the way out. The command line prints
exactly that and exits with the error's code, so the texts are part of the interface and are tested.

Errors of torch and CUDA are told apart here too: lack of memory, or a GPU that this process cannot use any more. Not
every version of torch and not every library under it has exception classes for them, so texts decide.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

SHOWN = 10
"""Mistakes named in an error; the rest are counted."""


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


@lru_cache(1024)  # a class that is misspelt is so in many lines
def suggest(word: str, known: tuple[str, ...]) -> str:
    """Return the suggestion of `did_you_mean` as the end of a line, after a semicolon; "" if there is none."""
    hint = did_you_mean(word, known)
    return f"; {hint}" if hint else ""


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


GPU_WAY_OUT = ("look at nvidia-smi and the system's log, take another GPU (CUDA_VISIBLE_DEVICES=1), or use "
               "--device cpu")
"""The advice for a GPU that fails repeatedly."""

NO_MEMORY = ("allocate memory", "bad_alloc", "out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
             "could not create a primitive", "could not create a memory object", "could not execute a primitive",
             "unable to find an engine")
"""Texts of errors without a class of their own. The three of oneDNN ("could not ...") and that of cuDNN's engines may
have other reasons too: smaller batches are then tried in vain, down to a single clip."""
MAYBE_NO_MEMORY = ("CUDNN_STATUS_NOT_INITIALIZED", "CUBLAS_STATUS_NOT_INITIALIZED")
"""Texts of CUDA's libraries, both if they lack memory and if the GPU failed."""
DEVICE_FAULT = re.compile(
    r"CUDA (driver )?error|Triton Error \[CUDA\]|device-side assert|illegal memory access|uncorrectable ECC|"
    r"unspecified launch failure|CU(DNN|BLAS)_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR|EXECUTION_FAILED|MAPPING_ERROR)|"
    r"Offset increment outside graph capture|stream is capturing|captures_underway", re.IGNORECASE)
"""Texts of errors after which a process's CUDA context is unusable, or may be: after an illegal access every further
call fails, a library's included, and a failed recording can leave torch in the middle of it."""


def lacks_memory(error: BaseException) -> bool:
    """Return True if `error` is a lack of memory: Python's, torch's, oneDNN's, or that of a library of CUDA."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error) for words in (*NO_MEMORY, *MAYBE_NO_MEMORY))


def is_device_fault(error: BaseException) -> bool:
    """Return True if, after `error`, this process cannot use its GPU any more, so that another process must resume. For
    errors that may also be a lack of memory (`MAYBE_NO_MEMORY`), callers try smaller batches first."""
    if not isinstance(error, RuntimeError):
        return False
    if lacks_memory(error) and not any(words in str(error) for words in MAYBE_NO_MEMORY):
        return False
    return type(error).__name__ == "AcceleratorError" or DEVICE_FAULT.search(str(error)) is not None


def first_line(error: BaseException | str) -> str:
    """Return the first line of the text of an error or a warning."""
    return (str(error).strip() or repr(error)).splitlines()[0]


@contextmanager
def explain_device_faults() -> Iterator[None]:
    """Raise `DeviceFault` in place of torch's own error if this process cannot use the GPU any more."""
    try:
        yield
    except RuntimeError as error:
        if not is_device_fault(error):
            raise
        raise DeviceFault(f"the GPU failed ({first_line(error)})",
                          fix=f"start it again; if it fails again, {GPU_WAY_OUT}") from error


def abbreviate(lines: list[str]) -> str:
    """Return the first `SHOWN` of `lines`, indented, and the number of the others."""
    rest = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(f"  {line}" for line in lines[:SHOWN] + rest)


def quantity(number: int, noun: str) -> str:
    """Return a number and its noun: "1 clip", "2 clips", "2 classes"."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"
