"""Clips: which there are, how they are decoded once, and how batches are sampled from them.

Listing clips needs neither numpy nor a decoder: `prepare` and `PreparedData` are loaded on first use.
The rest of `expand.data.loading` needs torch (but for `sampling`) and is imported on its own.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from expand.data.sources import count_classes, list_clips
from expand.data.sources.clip import ClipList

if TYPE_CHECKING:
    from expand.data.loading.prepared import PreparedData, prepare

__all__ = ["ClipList", "PreparedData", "count_classes", "list_clips", "prepare"]


def __getattr__(name: str) -> Any:
    """Load on first use."""
    if name in ("PreparedData", "prepare"):
        return pkgutil.resolve_name(f"expand.data.loading.prepared:{name}")
    raise AttributeError(f"module 'expand.data' has no attribute '{name}'")
