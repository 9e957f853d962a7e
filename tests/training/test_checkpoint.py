"""A checkpoint is continued exactly, or refused with its reason; nothing in it is ever executed."""

import pickle

import pytest
import torch

from expand.config.schema import RecipeConfig
from expand.model import X3D
from expand.space.factors import Factors
from expand.space.network import Network
from expand.training import checkpoint
from expand.training.checkpoint import Progress
from expand.training.loop import make_optimizer


def trained(steps):
    torch.manual_seed(0)
    model = X3D.of(Network("small", Factors.of(frames=1, stride=1, resolution=32, width=0.1, depth=0.1), 3))
    optimizer = make_optimizer(model, RecipeConfig())
    for _ in range(steps):
        model(torch.randn(2, 3, 1, 32, 32)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def test_everything_that_training_depends_on_comes_back(tmp_path):
    model, optimizer = trained(3)
    progress = Progress(epoch=2, batch=1, loss_sum=0.1 + 0.2, correct=3, seen=7, rows=[{"epoch": 1, "loss": 0.5}])
    checkpoint.save(tmp_path / "c.pt", "id", model, optimizer, progress)
    expected_noise = torch.randn(3)
    other, other_optimizer = trained(0)
    state, complaint = checkpoint.load(tmp_path / "c.pt", "id")
    assert complaint is None
    assert checkpoint.restore(state, other, other_optimizer) == progress
    assert torch.equal(torch.randn(3), expected_noise)
    for mine, theirs in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    momenta = [[state["momentum_buffer"] for state in o.state.values()] for o in (optimizer, other_optimizer)]
    assert len(momenta[0]) == len(list(model.parameters()))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*momenta, strict=True))


def test_no_checkpoint_is_no_complaint(tmp_path):
    assert checkpoint.load(tmp_path / "none.pt", "id") == (None, None)


def test_a_damaged_checkpoint_is_refused_with_the_reason(tmp_path):
    model, optimizer = trained(1)
    path = tmp_path / "c.pt"
    checkpoint.save(path, "id", model, optimizer, Progress())
    whole = path.read_bytes()
    for content in (whole[:-100], whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(content)
        state, complaint = checkpoint.load(path, "id")
        assert state is None and "damaged" in complaint


def test_the_checkpoint_of_another_training_is_refused(tmp_path):
    model, optimizer = trained(1)
    checkpoint.save(tmp_path / "c.pt", "one", model, optimizer, Progress())
    assert checkpoint.load(tmp_path / "c.pt", "two") == (None, "of another training")


class Bomb:
    def __reduce__(self):
        return (open, ("bomb-went-off", "w"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_hostile_checkpoint_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"version": 1, "identity": "id", "model": Bomb()}, tmp_path / "c.pt")
    assert "damaged" in checkpoint.load(tmp_path / "c.pt", "id")[1]
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Bomb()))
    assert "damaged" in checkpoint.load(tmp_path / "p.pt", "id")[1]
    assert not (tmp_path / "bomb-went-off").exists()


def test_batch_norm_has_no_weight_decay():
    model, optimizer = trained(0)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    norms = {id(p) for m in model.modules() if isinstance(m, torch.nn.BatchNorm3d) for p in m.parameters()}
    assert 0 < len(norms) < len(decays)
    assert all(decays[id(p)] == (0.0 if id(p) in norms else 5e-5) for p in model.parameters())
