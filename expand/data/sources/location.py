"""Which files and folders a configuration names."""

from __future__ import annotations

from pathlib import Path

from expand.config.schema import DataConfig
from expand.data.sources.clip import SPLITS
from expand.home import expand_home, user_cache


def lists_of(config: DataConfig) -> dict[str, Path]:
    """The lists that `data.train`, `.val` and `.test` name."""
    return {split: expand_home(getattr(config, split), f"data.{split}") for split in SPLITS if getattr(config, split)}


def cache_dir(config: DataConfig) -> Path:
    """Where rendered clips and decoded frames are kept."""
    return expand_home(config.cache_dir, "data.cache_dir") if config.cache_dir else user_cache()
