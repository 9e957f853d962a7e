"""What a run's results may depend on besides its configuration."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from expand.config import Config
from expand.kernels import library
from expand.machine import available_cores
from expand.version import __version__

PACKAGES = ("torch", "torchvision", "av", "numpy", "pandas", "fvcore", "pyyaml", "click")


def environment(config: Config, gpu: str | None = None) -> dict[str, Any]:
    """What a result may depend on besides the configuration, for env.json. `gpu`: the name of the one that it trains
    on, where that was looked at."""
    import torch

    device = gpu or platform.processor() or platform.machine()
    return {"x3d_expand": __version__, "git": _git_revision(), "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in PACKAGES}, "platform": platform.platform(),
            "device": device, "cores": available_cores(), "threads": config.run.threads, "seed": config.run.seed,
            "kernels": library.status().build, "cuda": torch.version.cuda if config.run.device == "cuda" else None}


def _git_revision() -> str | None:
    """The source's commit, where it runs from a checkout."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():  # an installed package may lie inside somebody else's checkout
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=5, check=True)
        return done.stdout.strip() or None
    return None
