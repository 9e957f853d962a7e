"""Clips: where they come from, how they are decoded once, and how batches are sampled from them.

`expand.data.loading.loader` and `.transforms` need torch and are imported on their own.
"""

from expand.data.loading.prepared import PreparedData, prepare
from expand.data.sources import ClipList, count_classes, list_clips

__all__ = ["ClipList", "PreparedData", "count_classes", "list_clips", "prepare"]
