"""Which files and folders a configuration names."""

from __future__ import annotations

import os
from pathlib import Path

from expand.config.schema import DataConfig
from expand.data.sources.base import SPLITS


def lists_of(config: DataConfig) -> dict[str, Path]:
    """The lists that `data.train`, `.val` and `.test` name."""
    return {split: Path(getattr(config, split)).expanduser() for split in SPLITS if getattr(config, split)}


def cache_dir(config: DataConfig) -> Path:
    """Where rendered clips and decoded frames are kept."""
    if config.cache_dir:
        return Path(config.cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "x3d-expand"
