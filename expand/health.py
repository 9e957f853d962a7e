"""The checks of `x3d-expand doctor`: packages and kernels, processor, memory and GPUs, as far as this process may use
them, and the folders of decoded frames and of runs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from expand.config.schema import DataConfig, RunConfig
from expand.errors import ExpandError, first_line
from expand.home import cache_place
from expand.kernels import builds
from expand.machine import available_cores
from expand.version import __version__

OK, NOTE, PROBLEM = "ok", "note", "problem"
STATES = (OK, NOTE, PROBLEM)
"""From best to worst: all is well; it works, but slower or with less than it could; something will fail."""

DISTRIBUTION = "x3d-expand"
NATIVE = ("torch", "torchvision", "av")
"""Packages of compiled code, which may be there and still not load."""
EXTRAS = ("onnx", "onnxruntime", "tensorboard", "ray", "pytorchvideo")
REINSTALL = "scripts/setup installs versions that work together; else: pip install --upgrade "
COMPILER_TIMEOUT_S = 5

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
DRIVER = Path("/proc/driver/nvidia/version")
LITTLE_MEMORY_GB, LITTLE_SHARED_GB = 2.0, 1.0

COUNT_FOR_S = 1.0
"""Seconds for which files are counted; the cache of a large set has hundreds of thousands."""
LITTLE_GB = 2.0
"""Less than the checkpoints of a search, or the frames of a small set, may take."""


@dataclass(frozen=True)
class Check:
    """The result of the check `name`: `text` is a line for people, `facts` are for scripts (docs/json.md), and `fix` is
    the way out where `state` is not `ok`, if there is one."""

    name: str
    state: str
    text: str
    fix: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return {"state": self.state, "text": self.text, "fix": self.fix, **self.facts}


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
        if name not in wrong:
            try:
                _load(name)
            except Exception as error:  # noqa: BLE001 - a package may fail in any way
                wrong[name] = f"does not load: {first_line(error)}"
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
        return Check("compiler", NOTE, f"{' '.join(command)} does not run: {first_line(error)}",
                     f"only building the CPU kernels takes one: install {builds.INSTALL_COMPILER}", facts)
    version = said.splitlines()[0] if said else " ".join(command)
    return Check("compiler", OK, version, facts={**facts, "version": version})


def triton() -> Check:
    """Check Triton, which only a GPU uses."""
    version = _version("triton")
    return Check("triton", OK, f"{version}, for GPUs alone" if version else "not installed; GPUs alone make use of it",
                 facts={"version": version})


def processor() -> Check:
    """Check the processor: model, instruction set, and how many cores a search will use."""
    import torch

    cores, quota = available_cores(), cpu_quota()
    named = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    model = named[1].strip() if named else platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    facts = {"model": model, "instructions": capability, "cores": cores, "cores_in_all": os.cpu_count(),
             "quota": quota, "threads": torch.get_num_threads(), "load": load}
    text = f"{model}, {capability}; {cores} of {os.cpu_count()} cores"
    if quota is not None and quota < cores:
        threads = max(1, int(quota))
        return Check("processor", NOTE, f"{text}, but only {quota:g} cores' worth of time (control group)",
                     f"threads that wait for one another are slow so: give searches --threads {threads}", facts)
    if load is not None and load > 1.5 * cores:
        return Check("processor", NOTE, f"{text}, already busy (load {load:.1f})",
                     "other programs compete for them; a search with fewer --threads suffers less", facts)
    return Check("processor", OK, text, facts=facts)


def memory() -> Check:
    """Check the memory of the machine, or of the control group where that is less."""
    total, free = _meminfo("MemTotal"), _meminfo("MemAvailable")
    limit = min(_limits("memory.max", "memory/memory.limit_in_bytes"), default=None)
    if limit is not None and (total is None or limit < total):
        used = min(_limits("memory.current", "memory/memory.usage_in_bytes"), default=0.0)
        total, free = limit, min(limit - used, free if free is not None else limit)
    facts = {"total_gb": total and total / 1e9, "free_gb": free and free / 1e9}
    if total is None:
        return Check("memory", OK, "unknown on this system", facts=facts)
    text = f"{total / 1e9:.1f} GB" + (f", {free / 1e9:.1f} GB free" if free is not None else "")
    if free is not None and free / 1e9 < LITTLE_MEMORY_GB:
        return Check("memory", NOTE, text, "little: end other programs, or train with fewer --workers and a smaller "
                     "candidate.batch_size", facts)
    return Check("memory", OK, text, facts=facts)


def gpu() -> Check:
    """Check every GPU that torch can use by a small computation; where there is none but a driver, say why."""
    import torch

    loaded = re.search(r"(?:Kernel Module|x86_64|aarch64)\s+(\d[\d.]+)", _text(DRIVER) or "")
    driver = loaded[1] if loaded else None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    facts: dict[str, object] = {"driver": driver, "cuda": torch.version.cuda, "devices": []}
    if not usable and driver is None:
        return Check("gpu", OK, "none; training runs on the CPU", facts=facts)
    if not usable:
        reason = first_line(said[0].message) if said else "it sees no device" if torch.version.cuda else (
            "it was built without CUDA")
        return Check("gpu", NOTE, f"torch cannot use one, though there is a driver ({driver}): {reason}",
                     "check nvidia-smi, CUDA_VISIBLE_DEVICES, and that torch was built for this driver", facts)
    devices = [_device(index) for index in range(torch.cuda.device_count())]
    facts["devices"] = devices
    text = "; ".join(f"{device['name']}, {device['memory_gb']:.0f} GB" for device in devices) + f"; driver {driver}"
    if broken := [f"GPU {index}: {device['error']}" for index, device in enumerate(devices) if device["error"]]:
        return Check("gpu", PROBLEM, f"{text}; {'; '.join(broken)}",
                     "leave it out with CUDA_VISIBLE_DEVICES, or train with --device cpu", facts)
    shared = _shared_memory_gb()
    if shared is not None and shared < LITTLE_SHARED_GB:
        return Check("gpu", NOTE, f"{text}; only {shared:.2f} GB of shared memory, through which clips reach it",
                     "in a container: docker run --shm-size 8g", facts)
    return Check("gpu", OK, text, facts=facts)


def _device(index: int) -> dict[str, object]:
    import torch

    about = torch.cuda.get_device_properties(index)
    error = None
    try:
        torch.ones(8, device=f"cuda:{index}").sum().item()
    except RuntimeError as failed:
        error = first_line(failed)
    return {"name": about.name, "memory_gb": about.total_memory / 1e9, "capability": f"{about.major}.{about.minor}",
            "bf16": about.major >= 8, "error": error}


def cpu_quota(root: Path = CGROUPS, own: Path = OWN_CGROUP) -> float | None:
    """Return the cores' worth of time that the control group gives this process; None where it sets no limit."""
    quotas = []
    for text in _texts("cpu.max", root, own):
        if found := re.fullmatch(r"(\d+) (\d+)", text):
            quotas.append(int(found[1]) / max(1, int(found[2])))
    quota, period = (_number(root / f"cpu/cpu.cfs_{part}_us") for part in ("quota", "period"))
    if quota is not None and period is not None and quota > 0 and period > 0:
        quotas.append(quota / period)
    return min(quotas, default=None)


def _limits(name: str, old_name: str) -> list[float]:
    """Return the limits in the files `name` of the control groups around this process, and of cgroup version 1."""
    texts = [text for text in _texts(name, CGROUPS, OWN_CGROUP) if text.isdigit()]
    old = _number(CGROUPS / old_name)
    return [float(text) for text in texts] + ([] if old is None else [old])


def _texts(name: str, root: Path, own: Path) -> list[str]:
    try:
        path = re.search(r"^0::(/.*)$", own.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        path = None
    folders = [root]
    for part in Path(path[1]).parts[1:] if path else ():
        folders.append(folders[-1] / part)
    return [text for folder in folders if (text := _text(folder / name)) is not None]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    return float(text) if text is not None and re.fullmatch(r"-?\d+", text) else None


def _meminfo(name: str) -> float | None:
    """Return an entry of /proc/meminfo in bytes."""
    found = re.search(rf"^{name}:\s*(\d+) kB$", _text(Path("/proc/meminfo")) or "", re.MULTILINE)
    return int(found[1]) * 1024.0 if found else None


def _shared_memory_gb() -> float | None:
    try:
        about = os.statvfs("/dev/shm")
    except OSError:
        return None
    return about.f_blocks * about.f_frsize / 1e9


def cache() -> Check:
    """Check the folder of decoded frames and rendered clips that is used unless `data.cache_dir` names another."""
    folder, reason = cache_place()
    size, counted_all = size_of(folder)
    facts = {**_examine_folder(folder), "size_gb": size / 1e9, "counted_all": counted_all,
             "limit_gb": DataConfig().cache_gb, "no_home": reason}
    size_text = f"{'' if counted_all else 'more than '}{size / 1e9:.2f} GB in it (decoded frames: at most " \
                f"{DataConfig().cache_gb:g})"
    elsewhere = "name another folder with --set data.cache_dir=DIR, or XDG_CACHE_HOME"
    found = _check_folder("cache", facts, size_text, elsewhere)
    if reason and found.state == OK:
        return Check("cache", NOTE, f"{found.text}; {reason}", f"to keep it for longer, {elsewhere}", facts)
    return found


def runs() -> Check:
    """Check the folder of runs that is used here unless `--run-dir` or `run.runs_dir` names another."""
    return _check_folder("runs", _examine_folder(Path(RunConfig().runs_dir)), "",
                         "keep runs elsewhere with --run-dir DIR")


def _check_folder(name: str, facts: dict[str, Any], more: str, elsewhere: str) -> Check:
    text = f"{facts['folder']}: " + (f"{more}, " if more else "")
    if facts["error"]:
        return Check(name, PROBLEM, f"{text}cannot be written to: {facts['error']}", elsewhere, facts)
    text += f"{facts['free_gb']:.1f} GB free on its disk"
    if facts["free_gb"] < LITTLE_GB:
        return Check(name, NOTE, text, f"make room there, or {elsewhere}", facts)
    return Check(name, OK, text, facts=facts)


def _examine_folder(folder: Path) -> dict[str, Any]:
    """Return the folder, the error of writing there (or in the folder that it will be made in), and its free space."""
    folder = Path(os.path.abspath(folder))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            error = None
    except OSError as failed:
        error = f"{failed.strerror}" + ("" if there == folder else f" ({there})")
    return {"folder": str(folder), "exists": folder.exists(), "error": error,
            "free_gb": shutil.disk_usage(there).free / 1e9}


def size_of(folder: Path, seconds: float = COUNT_FOR_S) -> tuple[float, bool]:
    """Return the bytes of all files below `folder`, and whether `seconds` were enough to count them."""
    total, end, waiting = 0.0, time.monotonic() + seconds, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if time.monotonic() > end:
                        return total, False
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:  # not there, another user's, or removed meanwhile
            continue
    return total, True


CHECKS: dict[str, Callable[[], Check]] = {
    "python": python, "packages": packages, "processor": processor, "memory": memory, "gpu": gpu, "kernels": kernels,
    "compiler": compiler, "triton": triton, "cache": cache, "runs": runs}


def examine() -> dict[str, Any]:
    """Return the results of all checks, and the worst of their states (docs/json.md). Raises nothing: a check that
    fails is a problem too."""
    found = []
    for name, check in CHECKS.items():
        try:
            found.append(check())
        except ExpandError as error:
            text = f"{error.where}: {error.what}" if error.where else error.what
            found.append(Check(name, PROBLEM, text, error.fix))
        except Exception as error:  # noqa: BLE001 - whatever is broken here, the user wants to know
            text = f"cannot be examined: {type(error).__name__}: {first_line(error)}"
            found.append(Check(name, PROBLEM, text))
    return {"state": max((check.state for check in found), key=STATES.index),
            "checks": {check.name: check.as_dict() for check in found}}
