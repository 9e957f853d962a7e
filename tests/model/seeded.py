"""Weights and clips from a numpy seed: the same numbers on every machine and with every implementation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from expand.model import X3D


def seeded_state(state: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Weights for the keys and shapes of `state`, drawn in the order of its sorted keys (golden values rest on it).

    Nothing is trivial: batch norms have means, variances and shifts, and no block is its shortcut.
    """
    rng = np.random.default_rng(seed)
    return {key: _draw(rng, key, state[key]) for key in sorted(state)}


def _draw(rng: np.random.Generator, key: str, like: Tensor) -> Tensor:
    shape = tuple(like.shape)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        values = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
    else:
        values = rng.uniform(0.4, 0.8, shape) if key.endswith("weight") else rng.normal(0, 0.1, shape)
    return torch.from_numpy(values.astype(np.float32))


def seeded_model(model: X3D, seed: int = 0) -> X3D:
    """`model` in evaluation, with weights from `seeded_state` on our names."""
    model.load_state_dict(seeded_state(model.state_dict(), seed))
    return model.eval()


def awaken(model: X3D, *, norms: float, classifier: float) -> None:
    """Draws norms, their statistics and the classifier of `model` from torch's generator, away from their first values,
    so that none of them may be left out; `norms` and `classifier` are standard deviations."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=norms)
            nn.init.normal_(module.running_mean, std=norms)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    nn.init.normal_(model.head.classifier.weight, std=classifier)


def seeded_clip(frames: int, side: int, seed: int = 0, batch: int = 1) -> Tensor:
    """A normal clip, B x 3 x T x H x W."""
    values = np.random.default_rng(seed).normal(size=(batch, 3, frames, side, side))
    return torch.from_numpy(values.astype(np.float32))
