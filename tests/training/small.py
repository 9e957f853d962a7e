"""A training of a second."""

from __future__ import annotations

from dataclasses import replace

import torch

from expand.config.schema import BuiltinConfig, DataConfig, RecipeConfig
from expand.data import PreparedData, prepare
from expand.data.synthetic import rendering as synthetic
from expand.space.factors import Factors
from expand.space.network import Network
from expand.training.job import Job, Kind
from expand.training.runtime import Runtime

CONFIG = DataConfig(builtin=BuiltinConfig(size=32, seconds=1.5, fps=12, train_clips=32, val_clips=16, test_clips=16))
RECIPE = RecipeConfig(epochs=2, batch_size=8, lr_scaling="linear", eval_clips=1, precise_bn_batches=2)
RUNTIME = Runtime(torch.device("cpu"), 1, "fp32")


def network(name: str, *, frames: int) -> Network:
    """A small one for the built-in classes."""
    factors = Factors.of(frames=frames, stride=28 // frames, resolution=32, width=0.5, depth=0.4)
    return Network(name, factors, len(synthetic.CLASSES), synthetic.CLASSES)


def final(job: Job) -> Job:
    """The same training as a final one."""
    return replace(job, id="final", kind=Kind.FINAL, weights=job.paths.dir / "weights.pt")


def clips() -> PreparedData:
    """32 to train, 16 of val, 16 of test."""
    return prepare(CONFIG, short_side=64, workers=1)
