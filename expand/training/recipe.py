"""The recipe, scaled to the data set (paper, section 4; FACTS: recipe). Pure arithmetic, no torch."""

from __future__ import annotations

import math
from dataclasses import replace

from expand.config.schema import RecipeConfig

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


def updates_per_epoch(clips: int, batch_size: int) -> int:
    """Batches of an epoch. A last batch of one clip is left out: batch norm needs more than one."""
    full, rest = divmod(clips, batch_size)
    return max(1, full + (rest > 1))


def clips_of_batch(batch: int, clips: int, batch_size: int) -> int:
    """Clips in batch number `batch` of an epoch: the last one may be smaller."""
    return min(batch_size, clips - batch * batch_size)


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
