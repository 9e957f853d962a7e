"""Packages and their versions, the compiled CPU kernels, a compiler, Triton."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from expand.health.check import NOTE, OK, PROBLEM, Check, in_one_line
from expand.kernels import builds
from expand.version import __version__

DISTRIBUTION = "x3d-expand"
NATIVE = ("torch", "torchvision", "av")
"""Packages of compiled code, which may be there and still not load."""
EXTRAS = ("onnx", "onnxruntime", "tensorboard", "ray", "pytorchvideo")
REINSTALL = "scripts/setup installs versions that work together; else: pip install --upgrade "
COMPILER_TIMEOUT_S = 5


def python() -> Check:
    """Check the interpreter and this package."""
    return Check("python", OK, f"{platform.python_version()}, with x3d-expand {__version__}",
                 facts={"version": platform.python_version(), "x3d_expand": __version__,
                        "platform": platform.platform()})


def packages() -> Check:
    """Check every package that is needed: its version, and whether it is new enough and can be loaded."""
    needed = requirements()
    versions = {name: _version(name) for name in (*needed, *EXTRAS)}
    wrong = {name: reason for name, least in needed.items() if (reason := _lacks(versions[name], least))}
    for name in NATIVE:
        if name not in wrong and (reason := _unloadable(name)):
            wrong[name] = reason
    facts = {"versions": versions}
    if wrong:
        return Check("packages", PROBLEM, "; ".join(f"{name} {reason}" for name, reason in wrong.items()),
                     REINSTALL + " ".join(f"'{name}>={needed[name]}'" if needed.get(name) else name for name in wrong),
                     facts)
    return Check("packages", OK, ", ".join(f"{name} {version}" for name, version in versions.items() if version),
                 facts=facts)


def requirements() -> dict[str, str]:
    """Return {package: least version} of the needed packages; the version may be empty."""
    try:
        texts = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from its sources
        return dict.fromkeys(NATIVE, "")
    parsed = (re.match(r"([\w.-]+)\s*(?:>=\s*([\d.]+))?", text) for text in texts if "extra ==" not in text)
    return {found[1]: found[2] or "" for found in parsed if found}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _lacks(version: str | None, least: str) -> str | None:
    if version is None:
        return "is not installed"
    return f"{version} is older than {least}" if _numbers(version) < _numbers(least) else None


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version without trailing zeros: (2, 11) for `2.11.0+cpu`."""
    numbers = [int(part) for part in re.split(r"[^\d.]", version, maxsplit=1)[0].split(".") if part]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _unloadable(name: str) -> str | None:
    try:
        _load(name)
    except Exception as error:  # noqa: BLE001 - a package may fail in any way
        return f"does not load: {in_one_line(error)}"
    return None


def _load(name: str) -> None:
    """Load a package; of torchvision only its compiled part, which a torch of another release breaks, since the rest
    takes two seconds."""
    spec = importlib.util.find_spec(name)
    if name == "torchvision" and spec and spec.origin and (compiled := sorted(Path(spec.origin).parent.glob("_C*.so"))):
        import torch

        torch.ops.load_library(compiled[0])
        return
    importlib.import_module(name)


def kernels() -> Check:
    """Check which compiled CPU kernels are in use, and whether they compute what they should."""
    import torch

    from expand.kernels import library

    status = library.status()
    facts = {"build": status.build, "path": status.path and str(status.path), "shares_threads": status.shares_threads}
    kernel_library = None if status.build is None else library.load()
    if kernel_library is None:
        return Check("kernels", NOTE, f"none in use: {status.why}; PyTorch's own operators train instead, slower",
                     status.fix, facts)
    out = torch.zeros(1000)
    kernel_library.call("probe", torch.float32, out, len(out))
    if not torch.equal(out, torch.arange(1000.0)):
        return Check("kernels", PROBLEM, f"`{status.build}` computes something else than it should: {status.path}",
                     f"build it anew, or set {library.VARIABLE}={library.OFF}", facts)
    threads = "on torch's own threads" if status.shares_threads else "with threads of their own, started for each call"
    text = f"`{status.build}`, {threads}: {status.path}" + (f"; {status.why}" if status.why else "")
    return Check("kernels", NOTE if status.why else OK, text, status.fix, facts)


def compiler() -> Check:
    """Check the C++ compiler, which only building the CPU kernels needs."""
    command = builds.compiler()
    facts = {"command": command, "version": None}
    if command is None:
        return Check("compiler", OK, "no C++ compiler; only building the CPU kernels takes one", facts=facts)
    try:
        said = subprocess.run([*command, "--version"], capture_output=True, encoding="utf-8", errors="replace",
                              check=True, timeout=COMPILER_TIMEOUT_S, stdin=subprocess.DEVNULL).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return Check("compiler", NOTE, f"{' '.join(command)} does not run: {in_one_line(error)}",
                     f"only building the CPU kernels takes one: install {builds.INSTALL_COMPILER}", facts)
    version = said.splitlines()[0] if said else " ".join(command)
    return Check("compiler", OK, version, facts={**facts, "version": version})


def triton() -> Check:
    """Check Triton, which only a GPU uses."""
    version = _version("triton")
    return Check("triton", OK, f"{version}, for GPUs alone" if version else "not installed; GPUs alone make use of it",
                 facts={"version": version})
