"""A rough estimate of a search's time, from two training steps of its cheapest and of a costlier network."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn

from expand.config import Config
from expand.errors import lacks_memory
from expand.expansion.state import Candidate
from expand.model import X3D
from expand.space.geometry import Geometry
from expand.training.job import sizes
from expand.training.loop import make_optimizer
from expand.training.runtime import Runtime

PROBE_GFLOPS = 1.0
"""The most that the costlier of the two probed networks costs, so that the probe takes seconds."""


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
