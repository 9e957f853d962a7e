"""The recipe, scaled to the data set (paper, section 4; FACTS: recipe). Pure arithmetic, no torch."""

from __future__ import annotations

import math
from dataclasses import replace

from expand.config.schema import RecipeConfig
from expand.data.loading.batches import clips_of_batch, updates_per_epoch
from expand.errors import UsageError
from expand.space.geometry import Geometry

REFERENCE_BATCH = 128
"""The batch at which `RecipeConfig.lr` is stated."""
UPDATES = 2000
EPOCHS = (30, 256)
BATCHES = (8, 128)


def _clamp(value: int, bounds: tuple[int, int]) -> int:
    return max(bounds[0], min(bounds[1], value))


def settle(recipe: RecipeConfig, clips: int) -> RecipeConfig:
    """`recipe` with its open values settled for a train split of `clips` clips (see the fields' texts)."""
    batch_size = recipe.batch_size or _clamp(clips // 8, BATCHES)
    epochs = recipe.epochs or _clamp(math.ceil(UPDATES / updates_per_epoch(clips, batch_size)), EPOCHS)
    return replace(recipe, batch_size=batch_size, epochs=epochs)


def most_parts(clips: int, geometry: Geometry) -> int:
    """Parts into which a batch of `clips` can be split at most: none has fewer than `Geometry.least_clips`."""
    return max(1, clips // geometry.least_clips)


def check_batches(recipe: RecipeConfig, clips: int, geometry: Geometry, section: str = "final") -> None:
    """Raises `UsageError` where the network `geometry` has too few values a channel for batch norm in a batch of
    `clips` train clips. `section` holds the recipe's options: `candidate` or `final`."""
    smallest = clips_of_batch(updates_per_epoch(clips, recipe.batch_size) - 1, clips, recipe.batch_size)
    if smallest >= geometry.least_clips:
        return
    reason = (f"batch norm needs two values a channel, and of a clip of {geometry.frames} frame and "
              f"{geometry.resolution} pixels the last layers have one")
    if recipe.batch_size < geometry.least_clips:
        raise UsageError(f"batches of {smallest} clip cannot be trained on: {reason}", where=f"{section}.batch_size",
                         fix=f"take {geometry.least_clips} clips or more a batch (--set {section}.batch_size=8), "
                             "or a network of more frames or pixels")
    raise UsageError(f"{smallest} train clip alone cannot be trained on: {reason}", where="data.train",
                     fix="give more clips, or take a network of more frames or pixels")


def learning_rate(update: int, updates: int, recipe: RecipeConfig) -> float:
    """Half-period cosine over `updates`, with a linear warm-up from `warmup_start` x the cosine's value at its end."""
    peak = recipe.lr * recipe.batch_size / REFERENCE_BATCH

    def cosine(at: float) -> float:
        return peak * 0.5 * (1 + math.cos(math.pi * at / updates))

    warmup = recipe.warmup_share * updates
    if update >= warmup:
        return cosine(update)
    start = recipe.warmup_start * peak
    return start + (cosine(warmup) - start) * update / warmup
