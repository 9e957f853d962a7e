"""The batches of an epoch. Pure arithmetic, no torch."""

from __future__ import annotations


def updates_per_epoch(clips: int, batch_size: int) -> int:
    """Batches of an epoch of `clips` clips. A last batch of a single clip is left out where there are others, unless
    all are of one: too little to take batch norm's averages over."""
    full, rest = divmod(clips, batch_size)
    return max(1, full + (rest > 1))


def clips_of_batch(batch: int, clips: int, batch_size: int) -> int:
    """Clips in batch number `batch` of an epoch: the last one may be smaller."""
    return min(batch_size, clips - batch * batch_size)
