"""The machine that a run works on: its devices, how long a search takes on them, and what env.json says of it.

Importing this imports torch: it comes after all checks that do without.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import subprocess
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from expand.config import Config
from expand.config.schema import RunConfig
from expand.data import PreparedData
from expand.errors import ExpandError, RunError
from expand.executors.fork_server import ForkServer, call_in_process
from expand.expansion.forecast import forecast
from expand.expansion.rules import Space
from expand.kernels import library
from expand.machine import available_cores
from expand.training.estimate import estimate_seconds
from expand.training.runtime import Gpu, Runtime, look_at_all
from expand.version import __version__

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "av", "numpy", "pandas", "fvcore", "pyyaml", "click")


def look_at_gpus(run: RunConfig, fork_server: ForkServer | None) -> tuple[Gpu, ...]:
    """Return the GPUs of this machine, where the run may use one. Another process looks at them, so that this one needs
    no context on them. Raises `RunError` where that process fails."""
    if run.device == "cpu" or not torch.cuda.is_available():
        return ()
    try:
        return call_in_process(look_at_all, fork_server)
    except RunError as error:
        raise RunError(f"the GPUs could not be looked at: {error.what}", where="run.device",
                       fix="`x3d-expand doctor` looks at the installation; --device cpu does without") from error


@dataclass(frozen=True)
class Estimate:
    """The size of a search: steps after the basis, candidates, their multiply-adds a clip in all, and seconds (None
    where the device could not be tried, such as a Ray cluster's GPU from a machine without one)."""

    steps: int
    candidates: int
    gflops: float
    seconds: float | None


def estimate_search(config: Config, space: Space, data: PreparedData, runtime: Runtime,
                    fork_server: ForkServer | None) -> Estimate:
    """Return the size of a search. Its time is measured in a process like those that train, and stays unknown where
    that fails."""
    steps = forecast(space)
    candidates = [c for step in steps for c in step]
    seconds = None
    if runtime.device.type != "cuda" or torch.cuda.is_available():
        try:
            estimate = partial(estimate_seconds, steps, config, runtime, space.classes, data.counts)
            seconds = call_in_process(estimate, fork_server)
        except ExpandError as error:
            logger.warning(f"how long it will take could not be tried out: {error.what}")
    return Estimate(len(steps) - 1, len(candidates), sum(c.gflops for c in candidates), seconds)


def describe_environment(config: Config, gpu: str | None) -> dict[str, Any]:
    """Return what a result may depend on besides the configuration, for env.json. `gpu`: the name of the one that it
    trains on, if any."""
    device = gpu or platform.processor() or platform.machine()
    return {"x3d_expand": __version__, "git": _git_revision(), "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in PACKAGES}, "platform": platform.platform(),
            "device": device, "cores": available_cores(), "threads": config.run.threads, "seed": config.run.seed,
            "kernels": library.status().build, "cuda": torch.version.cuda if config.run.device == "cuda" else None}


def _git_revision() -> str | None:
    """The source's commit, where it runs from a checkout."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():  # an installed package may lie inside another project's checkout
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=5, check=True)
        return done.stdout.strip() or None
    return None
