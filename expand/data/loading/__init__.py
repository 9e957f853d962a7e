"""Batches for training and evaluation: clips prepared, sampled, cropped, and brought to the device."""

from __future__ import annotations


def updates_per_epoch(clips: int, batch_size: int) -> int:
    """Return the number of batches in an epoch of `clips` clips.

    A last batch of a single clip is left out, as batch norm cannot take averages over it, unless all batches have one
    clip or there is no other batch.
    """
    full, rest = divmod(clips, batch_size)
    return max(1, full + (rest > 1))


def clips_of_batch(batch: int, clips: int, batch_size: int) -> int:
    """Return the number of clips in batch number `batch` of an epoch; the last batch may be smaller."""
    return min(batch_size, clips - batch * batch_size)
