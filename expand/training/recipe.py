"""The recipe, scaled to the data set (paper, section 4; FACTS: recipe). Pure arithmetic, no torch."""

from __future__ import annotations

import math
from dataclasses import replace

from expand.config.schema import RecipeConfig
from expand.data.loading import clips_of_batch, updates_per_epoch
from expand.errors import UsageError
from expand.space.geometry import Geometry

REFERENCE_BATCH = 128
"""The batch size that `RecipeConfig.lr` is stated for."""
UPDATES = 2000
EPOCHS = (30, 256)
BATCHES = (8, 128)


def _clamp(value: int, bounds: tuple[int, int]) -> int:
    return max(bounds[0], min(bounds[1], value))


def resolve(recipe: RecipeConfig, clips: int) -> RecipeConfig:
    """Return `recipe` with its open values chosen for a train split of `clips` clips (see the fields' texts)."""
    batch_size = recipe.batch_size or _clamp(clips // 8, BATCHES)
    epochs = recipe.epochs or _clamp(math.ceil(UPDATES / updates_per_epoch(clips, batch_size)), EPOCHS)
    return replace(recipe, batch_size=batch_size, epochs=epochs)


def sizes(recipe: RecipeConfig) -> tuple[int, int]:
    """Return the epochs and the batch size of a recipe that `resolve` made."""
    if recipe.epochs is None or recipe.batch_size is None:
        raise ValueError("the recipe is not resolved")
    return recipe.epochs, recipe.batch_size


def max_micro_batches(clips: int, geometry: Geometry) -> int:
    """Return into how many micro-batches a batch of `clips` can be split: none has fewer than `Geometry.least_clips`.
    """
    return max(1, clips // geometry.least_clips)


def check_batches(recipe: RecipeConfig, clips: int, geometry: Geometry, section: str = "final") -> None:
    """Raise `UsageError` if a batch of `clips` train clips has too few values a channel for batch norm in the network
    `geometry`. `section` holds the recipe's options: `candidate` or `final`."""
    _, batch_size = sizes(recipe)
    smallest = clips_of_batch(updates_per_epoch(clips, batch_size) - 1, clips, batch_size)
    if smallest >= geometry.least_clips:
        return
    reason = (f"batch norm needs two values a channel, and of a clip of {geometry.frames} frame and "
              f"{geometry.resolution} pixels the last layers have one")
    if batch_size < geometry.least_clips:
        raise UsageError(f"batches of {smallest} clip cannot be trained on: {reason}", where=f"{section}.batch_size",
                         fix=f"take {geometry.least_clips} clips or more a batch (--set {section}.batch_size=8), "
                             "or a network of more frames or pixels")
    raise UsageError(f"{smallest} train clip alone cannot be trained on: {reason}", where="data.train",
                     fix="give more clips, or take a network of more frames or pixels")


def learning_rate(update: int, updates: int, recipe: RecipeConfig) -> float:
    """Return the learning rate of `update`, of `updates` in all: half a period of a cosine, after a linear warm-up from
    `warmup_start` x the peak."""
    peak = recipe.lr * sizes(recipe)[1] / REFERENCE_BATCH

    def cosine(at: float) -> float:
        return peak * 0.5 * (1 + math.cos(math.pi * at / updates))

    warmup = recipe.warmup_share * updates
    if update >= warmup:
        return cosine(update)
    start = recipe.warmup_start * peak
    return start + (cosine(warmup) - start) * update / warmup
