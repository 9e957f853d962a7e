"""The environment of a run: the machine's devices, how long a search takes on them, and the content of env.json.

Importing this imports torch: it comes after all checks that do without.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expand.config import Config
from expand.config.schema import RunConfig
from expand.data import PreparedData
from expand.errors import ExpandError, RunError, lacks_memory
from expand.executors.fork_server import ForkServer, call_in_process
from expand.expansion.forecast import forecast
from expand.expansion.rules import Space
from expand.expansion.state import Candidate
from expand.kernels import library
from expand.machine import available_cores
from expand.model import X3D
from expand.space.geometry import Geometry
from expand.training.job import sizes
from expand.training.loop import make_optimizer
from expand.training.runtime import Gpu, Runtime, look_at_all
from expand.version import __version__

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "av", "numpy", "pandas", "fvcore", "pyyaml", "click")
PROBE_GFLOPS = 1.0
"""The most that the costlier of the two probed networks costs, so that the probe takes seconds."""


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


def estimate_seconds(steps: Sequence[Sequence[Candidate]], config: Config, runtime: Runtime, classes: int,
                     clips: dict[str, int]) -> float:
    """Return the seconds for training and measuring all candidates of `steps` and the final network, right within a
    factor of about two.

    `clips`: the number of clips by split. The time of a clip is taken as linear in the complexity.
    """
    cheap = steps[0][0]
    candidates = [candidate for step in steps for candidate in step]
    dear = max((c for c in candidates if c.gflops <= PROBE_GFLOPS), key=lambda c: c.gflops, default=cheap)
    at_cheap = clip_seconds(cheap, classes, config, runtime)
    at_dear = clip_seconds(dear, classes, config, runtime) if dear.gflops > cheap.gflops else at_cheap
    slope = max(0.0, at_dear - at_cheap) / (dear.gflops - cheap.gflops) if dear.gflops > cheap.gflops else \
        at_cheap / cheap.gflops

    def seconds(gflops: float) -> float:
        return at_cheap + slope * (gflops - cheap.gflops)

    def views(recipe_clips: int) -> float:  # in training steps: a forward pass, at 8/7 of the side
        return recipe_clips * (8 / 7) ** 2 / 3

    val = clips["val"]
    passes = clips["train"] * sizes(config.candidate)[0] + val * views(config.candidate.eval_clips)
    last = clips["train"] * sizes(config.final)[0] + (val + clips["test"]) * views(config.final.eval_clips)
    return (sum(passes * seconds(c.gflops) for c in candidates) / config.run.workers
            + last * seconds(steps[-1][0].gflops))


def clip_seconds(candidate: Candidate, classes: int, config: Config, runtime: Runtime) -> float:
    """Return the seconds of training one clip of `candidate`, measured on the second of two steps.

    On a CPU, the batch has few clips. On a GPU, it is one of the recipe's micro-batches: the step of a small network
    takes the time of its launches there, however few its clips. Batches that do not fit in memory are halved.
    """
    (_, batch_size), accumulation = sizes(config.candidate), config.candidate.accumulation
    clips = max(2, batch_size // accumulation if runtime.device.type == "cuda"
                else min(batch_size, int(0.1 / candidate.gflops)))
    while True:
        try:
            return _step_seconds(candidate, classes, config, runtime, clips) / clips
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error) or clips == 2:
                raise
        clips = max(2, clips // 2)
        runtime.release_memory()


def _step_seconds(candidate: Candidate, classes: int, config: Config, runtime: Runtime, clips: int) -> float:
    """Return the seconds of the second of two steps on `clips` clips."""
    runtime.prepare()
    with torch.random.fork_rng():
        model = X3D(Geometry.of(candidate.factors, classes))
    model.to(runtime.device).to(memory_format=runtime.memory_format).train()
    optimizer = make_optimizer(model, config.candidate)
    factors = candidate.factors
    x_BCTHW = torch.zeros(clips, 3, factors.frames, factors.resolution, factors.resolution, device=runtime.device)
    x_BCTHW = x_BCTHW.to(memory_format=runtime.memory_format)
    y_B = torch.zeros(clips, dtype=torch.int64, device=runtime.device)
    for _ in range(2):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with runtime.autocast():
            loss = nn.functional.cross_entropy(model(x_BCTHW), y_B)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for a GPU
        seconds = time.perf_counter() - began
    return seconds


def describe_environment(config: Config, gpu: str | None) -> dict[str, Any]:
    """Return what a result may depend on besides the configuration, for env.json. `gpu`: the name of the one that it
    trains on, if any."""
    device = gpu or platform.processor() or platform.machine()
    checkout, commit = Path(__file__).resolve().parents[2], None
    if (checkout / ".git").exists():  # an installed package may lie inside another project's checkout
        command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=5, check=True)
            commit = done.stdout.strip() or None
    return {"x3d_expand": __version__, "git": commit, "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in PACKAGES}, "platform": platform.platform(),
            "device": device, "cores": available_cores(), "threads": config.run.threads, "seed": config.run.seed,
            "kernels": library.status().build, "cuda": torch.version.cuda if config.run.device == "cuda" else None}
