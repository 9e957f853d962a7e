"""Processor, memory and GPUs, as far as this process may use them."""

from __future__ import annotations

import os
import platform
import re
import warnings
from pathlib import Path

from expand.health.check import NOTE, OK, PROBLEM, Check, in_one_line
from expand.machine import available_cores

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
DRIVER = Path("/proc/driver/nvidia/version")
LITTLE_MEMORY_GB, LITTLE_SHARED_GB = 2.0, 1.0


def processor() -> Check:
    """Check the processor: model, instruction set, and how many cores a search will use."""
    import torch

    cores, quota = available_cores(), cpu_quota()
    model, capability = _cpu_model(), torch.backends.cpu.get_cpu_capability()
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
    limit = _least(_limits("memory.max", "memory/memory.limit_in_bytes"))
    if limit is not None and (total is None or limit < total):
        used = _least(_limits("memory.current", "memory/memory.usage_in_bytes")) or 0.0
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

    driver = _driver()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    facts: dict[str, object] = {"driver": driver, "cuda": torch.version.cuda, "devices": []}
    if not usable and driver is None:
        return Check("gpu", OK, "none; training runs on the CPU", facts=facts)
    if not usable:
        reason = in_one_line(said[0].message) if said else "it sees no device" if torch.version.cuda else (
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
        error = in_one_line(failed)
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
    return _least(quotas)


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


def _least(values: list[float]) -> float | None:
    return min(values, default=None)


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _meminfo(name: str) -> float | None:
    """Return an entry of /proc/meminfo in bytes."""
    found = re.search(rf"^{name}:\s*(\d+) kB$", _text(Path("/proc/meminfo")) or "", re.MULTILINE)
    return int(found[1]) * 1024.0 if found else None


def _driver() -> str | None:
    """Return the version of the NVIDIA driver, where it is loaded."""
    found = re.search(r"(?:Kernel Module|x86_64|aarch64)\s+(\d[\d.]+)", _text(DRIVER) or "")
    return found[1] if found else None


def _shared_memory_gb() -> float | None:
    try:
        about = os.statvfs("/dev/shm")
    except OSError:
        return None
    return about.f_blocks * about.f_frsize / 1e9
