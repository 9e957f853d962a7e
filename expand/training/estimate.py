"""A rough time for a search, from a few training steps of its cheapest and of a costlier network."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn

from expand.config import Config
from expand.device_faults import lacks_memory
from expand.expansion.types import Candidate
from expand.model import X3D
from expand.space.geometry import Geometry
from expand.training.loop import make_optimizer
from expand.training.runtime import Runtime

PROBE_GFLOPS = 1.0
"""The costlier of the two probed networks costs at most this, so that the probe takes seconds."""


def clip_seconds(candidate: Candidate, classes: int, config: Config, runtime: Runtime) -> float:
    """Seconds of training a clip of `candidate`, measured on a batch (the second of two steps): on a CPU, of few clips;
    on a GPU, of as many as the recipe has go through the network at once, since a small network's step takes there
    what its launches take, however few clips there are. Fewer where they do not fit."""
    recipe = config.candidate
    most = max(2, recipe.batch_size // recipe.accumulation)
    clips = most if runtime.device.type == "cuda" else max(2, min(recipe.batch_size, int(0.1 / candidate.gflops)))
    while True:
        try:
            return _step_seconds(candidate, classes, config, runtime, clips) / clips
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error) or clips == 2:
                raise
        clips = max(2, clips // 2)
        runtime.release_memory()


def _step_seconds(candidate: Candidate, classes: int, config: Config, runtime: Runtime, clips: int) -> float:
    """Seconds of the second of two steps on `clips` clips."""
    runtime.prepare()
    with torch.random.fork_rng():
        model = X3D(Geometry.of(candidate.factors, classes))
    model.to(runtime.device, memory_format=runtime.memory_format).train()
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
    """Seconds for training and measuring all candidates of `steps` and the final network; right within a factor of
    about two.

    `clips`: number of clips by split. Time a clip is taken to be linear in the complexity.
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
    passes = clips["train"] * config.candidate.epochs + val * views(config.candidate.eval_clips)
    last = clips["train"] * config.final.epochs + (val + clips["test"]) * views(config.final.eval_clips)
    return (sum(passes * seconds(c.gflops) for c in candidates) / config.run.workers
            + last * seconds(steps[-1][0].gflops))
