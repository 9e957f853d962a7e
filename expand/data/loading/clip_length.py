"""The length of a clip that a search is fitted to."""

from __future__ import annotations

import statistics
from collections.abc import Iterable


def median_length_s(clips: Iterable[tuple[str, float]]) -> float | None:
    """Median length, seconds, of the train clips of (split, seconds), of all where there are none; None without any."""
    pairs = list(clips)
    lengths_s = [length_s for split, length_s in pairs if split == "train"] or [length_s for _, length_s in pairs]
    return statistics.median(lengths_s) if lengths_s else None
