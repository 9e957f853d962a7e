"""The compiled CPU kernels (cpu.cpp), called through ctypes, so that one build fits any version of torch.

Beside this file lies one build for each instruction set (`builds.py`); the best one that the processor runs is used.
The environment variable X3D_EXPAND_KERNELS chooses another, or none.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expand.errors import UsageError
from expand.kernels import builds

VARIABLE = "X3D_EXPAND_KERNELS"
OFF = "off"
CHOICES = (OFF, "base", "avx2", "avx512")
RUNS = {"AVX512": ("avx512", "avx2", "base"), "AVX2": ("avx2", "base")}
"""The builds that a processor runs, best first, by torch's name of its capability."""
SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
"""The endings of the names of a function's two forms."""
NUMBERS = (int, float, type(None))
"""Arguments that are passed as they are; testing for these is cheaper than testing for tensors."""


class UnusableBuild(Exception):
    """A build that is missing or must not be called; the text is the reason, in a line."""


class Library:
    """The functions of one build, the file `path`. With `source`, a hash, it must have been made from these sources.

    Raises `UnusableBuild`.
    """

    def __init__(self, path: Path, source: str | None = None) -> None:
        self.path = path
        self._functions: dict[tuple[str, torch.dtype], Any] = {}
        try:
            self._library = ctypes.CDLL(str(path))
            self._library.source_hash.restype = ctypes.c_char_p
            made_from = self._library.source_hash().decode()
            use_openmp = self._library.use_openmp
        except OSError as error:
            raise UnusableBuild(f"cannot be loaded: {error}") from error
        except AttributeError as error:
            raise UnusableBuild(f"no build of these kernels: {error}") from error
        if source is not None and made_from != source:
            raise UnusableBuild("made from other sources than those beside it")
        parallel = None
        with suppress(OSError, AttributeError):  # torch's OpenMP is not GNU's
            # torch's own starts the threads; it is looked up through torch, since other packages may bring a second one
            parallel = ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p)
        use_openmp(parallel)
        self.shares_threads = parallel is not None
        """True if its threads are torch's own; else every call starts new ones."""

    def call(self, name: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
        """Call the function `name` for `dtype`, float32 or float64, on torch's number of threads.

        It receives a tensor's address (null for None), an int as int64, a float as double; the first call fixes the
        type of each argument. Nothing is checked: tensors must be on the CPU, contiguous as the function needs them,
        and of its type. Raises `MemoryError` if memory ran out; the results must not be used then.
        """
        function = self._functions.get((name, dtype))
        if function is None:
            if dtype not in SUFFIXES:
                raise TypeError(f"the CPU kernels are for float32 and float64, not for {dtype}")
            function = getattr(self._library, f"{name}_{SUFFIXES[dtype]}")
            function.restype = ctypes.c_int
            function.argtypes = [ctypes.c_int, *(
                ctypes.c_int64 if isinstance(value, int) else ctypes.c_double if isinstance(value, float)
                else ctypes.c_void_p for value in arguments)]
            self._functions[name, dtype] = function
        if function(torch.get_num_threads(), *[a if isinstance(a, NUMBERS) else a.data_ptr() for a in arguments]):
            raise MemoryError(f"the CPU kernel {name} got no memory")


@dataclass(frozen=True)
class KernelStatus:
    """The name and file of the build in use, both None if PyTorch's own operators do the work. `why` is the reason why
    no better build is in use, in a line, and `fix` the remedy; both None if all is well. `shares_threads`: as in
    `Library`."""

    build: str | None = None
    path: Path | None = None
    why: str | None = None
    fix: str | None = None
    shares_threads: bool = False

    @property
    def remark(self) -> str | None:
        """The reason why trainings are slower than they could be, in a line; None if all is well."""
        if self.why is None:
            return None
        now = f"only those for `{self.build}` are in use" if self.build else "PyTorch's own operators train instead"
        return f"compiled CPU kernels: {self.why}; {now}, which is slower (x3d-expand doctor)"


def load() -> Library | None:
    """Return the build in use, None without one. Raises `UsageError` for a choice (X3D_EXPAND_KERNELS) that cannot be
    met."""
    return _load(os.environ.get(VARIABLE, ""))[0]


def status() -> KernelStatus:
    """Return the status of the build that `load` returns. Raises `UsageError` as `load` does."""
    return _load(os.environ.get(VARIABLE, ""))[1]


@cache
def _load(choice: str) -> tuple[Library | None, KernelStatus]:
    capability = torch.backends.cpu.get_cpu_capability()
    return find(builds.HERE, choice.strip().lower(), RUNS.get(capability, ("base",)))


def find(folder: Path, choice: str, runs: tuple[str, ...]) -> tuple[Library | None, KernelStatus]:
    """Return the first usable build of `runs` in `folder`, and the status; with a `choice` (one of `CHOICES`, or
    empty), that build or none.

    Raises `UsageError` for a choice that cannot be met.
    """
    if choice == OFF:
        return None, KernelStatus(why=f"switched off ({VARIABLE}={OFF})", fix=f"unset {VARIABLE} to use them")
    if choice and choice not in CHOICES:
        raise UsageError(f"{choice!r} is no choice of CPU kernels", where=VARIABLE,
                         fix=f"set it to {', '.join(CHOICES)}, or unset it for the best that there is")
    if choice and choice not in runs:
        raise UsageError(f"this processor does not run `{choice}`", where=VARIABLE,
                         fix=f"set it to {', '.join((OFF, *runs))}, or unset it for the best that there is")
    reasons: dict[str, str] = {}
    for build in (choice,) if choice else runs:
        try:
            path, library = _open(folder, build)
        except UnusableBuild as error:
            reasons[build] = str(error)
        else:
            why, fix = _explain(folder, reasons) if reasons else (None, None)
            return library, KernelStatus(build, path, why, fix, library.shares_threads)
    why, fix = _explain(folder, reasons)
    if choice:
        raise UsageError(why, where=VARIABLE, fix=fix)
    return None, KernelStatus(why=why, fix=fix)


def _open(folder: Path, build: str) -> tuple[Path, Library]:
    """Open a build. Raises `UnusableBuild` with the reason, including that of a failed compilation."""
    path = next((path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_{build}{suffix}").exists()), None)
    has_sources = (folder / builds.SOURCE).exists()  # a packager may have left them out
    try:
        if path is None:
            raise UnusableBuild("not built")
        return path, Library(path, builds.source_hash(folder) if has_sources else None)
    except UnusableBuild as error:
        failure = builds.failures(folder).get(build)
        raise UnusableBuild(f"{error}: {failure}" if failure else str(error)) from error


def _explain(folder: Path, reasons: dict[str, str]) -> tuple[str, str]:
    """Return the reason why the builds in `reasons` are not used, in a line, and the remedy."""
    names: dict[str, list[str]] = {}
    for build, reason in reasons.items():
        names.setdefault(reason, []).append(f"`{build}`")
    why = "; ".join(f"{' and '.join(same)}: {reason}" for reason, same in names.items())
    needed = "" if builds.compiler() else f"install {builds.INSTALL_COMPILER}; then "
    another = " (CXX=NAME takes another compiler)" if builds.failures(folder) and not needed else ""
    return why, f"{needed}build them{another}: {shlex.quote(sys.executable)} -m expand.kernels.builds"
