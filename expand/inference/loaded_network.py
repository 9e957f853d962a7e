"""A network, loaded and placed where it is to work."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from expand.config import load_config
from expand.errors import RunError
from expand.model import X3D
from expand.model.load import load_named
from expand.space.network import Network
from expand.training.gpus import complaints
from expand.training.runtime import Runtime, resolve_run

logger = logging.getLogger(__name__)


def load_on_device(source: str | Path, weights: str | Path | None, device: str,
                   threads: int | None) -> tuple[X3D, Runtime]:
    """Return the network of `source` on `device`: a run, a file with weights; or with `weights`, a preset or a
    network's YAML.

    Raises `UsageError` or `RunError` where it cannot be loaded, `UsageError` where the machine lacks the device.
    """
    runtime = Runtime.of(resolve_run(load_config(values={"run.device": device, "run.threads": threads}).run))
    for complaint in complaints() if device != "cpu" else ():
        logger.warning(complaint)
    runtime.prepare()
    model = load_named(source, weights)
    return model.to(runtime.device).to(memory_format=runtime.memory_format), runtime


def check_finite(scores: Tensor, network: Network) -> None:
    """Raise `RunError` where `scores` of the network are not finite."""
    if not torch.isfinite(scores).all():
        raise RunError("its scores are not finite", where=f"network '{network.name}'",
                       fix="its weights are damaged, or belong to another network")
