"""The compiled CPU kernels (cpu.cpp): found, checked and called through ctypes, so that they fit any version of torch.

One build an instruction set lies beside this file (`builds.py`); the best one that the processor runs is taken. The
environment variable X3D_EXPAND_KERNELS takes another, or none.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import sys
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
"""Which builds a processor runs, by torch's word for what it can do; the best first."""
SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
"""What the names of a function's two forms end with."""
NUMBERS = (int, float, type(None))
"""Arguments that go as they are; asked for in place of tensors, since that costs less."""


class UnusableBuild(Exception):
    """A build that is not there or must not be called; the text says why, in a line."""


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
        parallel = _openmp()
        use_openmp(parallel)
        self.shares_threads = parallel is not None
        """Whether its threads are torch's own; else they are started anew by every call."""

    def call(self, name: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
        """Calls the function `name` for `dtype`, float32 or float64, on torch's number of threads.

        It gets a tensor's address (null for None), an int as int64, a float as double; which of them each argument
        is, the first call says. Nothing is checked: tensors must be on the CPU, contiguous as the function wants them,
        and of its type. Raises `MemoryError` where memory ran out: the results are not to be used then.
        """
        function = self._functions.get((name, dtype)) or self._bind(name, dtype, arguments)
        if function(torch.get_num_threads(), *[a if isinstance(a, NUMBERS) else a.data_ptr() for a in arguments]):
            raise MemoryError(f"the CPU kernel {name} got no memory")

    def _bind(self, name: str, dtype: torch.dtype, arguments: tuple[Tensor | int | float | None, ...]) -> Any:
        if dtype not in SUFFIXES:
            raise TypeError(f"the CPU kernels are for float32 and float64, not for {dtype}")
        function = getattr(self._library, f"{name}_{SUFFIXES[dtype]}")
        function.restype = ctypes.c_int
        function.argtypes = [ctypes.c_int, *map(_c_type, arguments)]
        self._functions[name, dtype] = function
        return function


def _c_type(value: Tensor | float | None) -> Any:
    if isinstance(value, int):
        return ctypes.c_int64
    return ctypes.c_double if isinstance(value, float) else ctypes.c_void_p


def _openmp() -> ctypes.c_void_p | None:
    """Where torch's own OpenMP starts threads (looked up through torch, since other packages may bring a second one),
    so that ours are the same ones; None where it has none with this entry, which is GNU's."""
    try:
        return ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p)
    except (OSError, AttributeError):
        return None


@dataclass(frozen=True)
class KernelStatus:
    """Which build is in use, by its name and file; both None where PyTorch's own operators do the work. `why` a better
    one, or any, is not, in a line, and the `fix`; both None where all is as it should be. `shares_threads`: as in
    `Library`."""

    build: str | None = None
    path: Path | None = None
    why: str | None = None
    fix: str | None = None
    shares_threads: bool = False

    @property
    def remark(self) -> str | None:
        """What somebody who waits for a training should know, in a line; None where all is as it should be."""
        if self.why is None:
            return None
        now = f"only those for `{self.build}` are in use" if self.build else "PyTorch's own operators train instead"
        return f"compiled CPU kernels: {self.why}; {now}, which is slower (x3d-expand doctor)"


def load() -> Library | None:
    """The build in use; None without one. Raises `UsageError` for a choice (X3D_EXPAND_KERNELS) that cannot be met."""
    return _chosen(os.environ.get(VARIABLE, ""))[0]


def status() -> KernelStatus:
    """What `load` gives, and why. Raises `UsageError` as `load` does."""
    return _chosen(os.environ.get(VARIABLE, ""))[1]


@cache
def _chosen(choice: str) -> tuple[Library | None, KernelStatus]:
    capability = torch.backends.cpu.get_cpu_capability()
    return find(builds.HERE, choice.strip().lower(), RUNS.get(capability, ("base",)))


def find(folder: Path, choice: str, runs: tuple[str, ...]) -> tuple[Library | None, KernelStatus]:
    """The first build of `runs` in `folder` that can be used, and the status; with `choice`, one of `CHOICES` or empty,
    that one or none.

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
            return library, KernelStatus(build, path, *_explained(folder, reasons), library.shares_threads)
    why, fix = _explained(folder, reasons)
    if choice:
        raise UsageError(why, where=VARIABLE, fix=fix)
    return None, KernelStatus(why=why, fix=fix)


def _open(folder: Path, build: str) -> tuple[Path, Library]:
    path = next((path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_{build}{suffix}").exists()), None)
    has_sources = (folder / builds.SOURCE).exists()  # a packager may have left them out
    try:
        if path is None:
            raise UnusableBuild("not built")
        return path, Library(path, builds.source_hash(folder) if has_sources else None)
    except UnusableBuild as error:
        failure = builds.failures(folder).get(build)
        raise UnusableBuild(f"{error}: {failure}" if failure else str(error)) from error


def _explained(folder: Path, reasons: dict[str, str]) -> tuple[str | None, str | None]:
    """Why the builds in `reasons` are not used, in a line, and the way out."""
    if not reasons:
        return None, None
    names: dict[str, list[str]] = {}
    for build, reason in reasons.items():
        names.setdefault(reason, []).append(f"`{build}`")
    why = "; ".join(f"{' and '.join(same)}: {reason}" for reason, same in names.items())
    needed = "" if builds.compiler() else f"install {builds.INSTALL_COMPILER}; then "
    another = " (CXX=NAME takes another compiler)" if builds.failures(folder) and not needed else ""
    return why, f"{needed}build them{another}: {shlex.quote(sys.executable)} -m expand.kernels.builds"
