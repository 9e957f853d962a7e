"""What a run asks of a Ray cluster. Without Ray and without torch: the driver needs the one no more than Ray's side the
other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wanted:
    """`workers` trainings at a time, each with `threads` CPUs, and a GPU or a share of one where they train
    `on_gpu`."""

    workers: int
    threads: int
    on_gpu: bool
    root: Path
    """The run directory."""
    folder: str
    """Where the command was started."""
