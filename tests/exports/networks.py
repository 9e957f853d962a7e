"""A small network whose weights are no initial weights: its batch norms do something,
and its logits are of usual size."""

from __future__ import annotations

from pathlib import Path

import torch

from expand.model import X3D
from expand.space.factors import Factors
from expand.space.network import Network, dump_network
from expand.training.checkpoint import save_weights
from tests.model.seeded import awaken

NETWORK = Network("mine", Factors.of(frames=2, stride=3, resolution=32, width=0.4, depth=0.4), 5,
                  ("a", "b", "ć", "d", "e"), mean=0.4, std=0.2)
CROP = 36


def trained() -> X3D:
    """As after a training, and left in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = X3D.of(NETWORK)
        awaken(model, norms=0.1, classifier=1.0)
    return model.train()


def write_final(run: Path) -> Path:
    """What a finished training leaves in `final/` of the folder `run`."""
    final = run / "final"
    final.mkdir()
    (final / "network.yaml").write_text(dump_network(NETWORK), encoding="utf-8")
    save_weights(final / "weights.pt", trained())
    return run


def clips(batch: int) -> torch.Tensor:
    """Noise, batch x 3 x 2 x 36 x 36."""
    return torch.randn(batch, 3, 2, CROP, CROP, generator=torch.Generator().manual_seed(batch))


def logits(model: X3D, x_BCTHW: torch.Tensor) -> torch.Tensor:
    """What the model says in evaluation."""
    with torch.inference_mode():
        return model.eval()(x_BCTHW)
