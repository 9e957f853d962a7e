"""What a training can do besides plain SGD: a moving average, micro-batches, initial weights, a look at val."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from expand.errors import Interrupted
from expand.model import X3D
from expand.model.folded_batch_norm import FoldedX3D
from expand.model.load import load_model
from expand.rundir.paths import CandidatePaths
from expand.training.candidate import train_final
from expand.training.checkpoint import save_weights
from expand.training.job import Hooks, Job
from expand.training.loop import Training
from tests.training.small import CONFIG, RECIPE, RUNTIME, network

NETWORK = network("small", frames=2)


@pytest.fixture
def job(tmp_path):
    return Job("final", NETWORK, 0.001, RECIPE, CONFIG, 7, CandidatePaths(tmp_path), 1000.0)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


def test_the_moving_average_is_that_of_the_weights_after_each_update(job, data):
    job = replace(job, recipe=replace(RECIPE, ema=0.8))
    seen = []
    training = Training(job, data, RUNTIME, Hooks(stop=lambda: seen.append(flat(training.model)) or False))
    training.fit()
    assert len(seen) == 2 * 4
    expected = seen[0]
    for weights in seen[1:]:
        expected = 0.8 * expected + 0.2 * weights
    torch.testing.assert_close(flat(training.result), expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(flat(training.result), seen[-1])


def test_the_moving_average_is_what_is_kept_and_measured(job, data):
    job = replace(job, recipe=replace(RECIPE, ema=0.9))
    training = Training(job, data, RUNTIME, Hooks())
    training.fit()
    result = train_final(replace(job, weights=job.paths.dir / "weights.pt"), data, RUNTIME, Hooks())
    kept = torch.load(job.paths.dir / "weights.pt", weights_only=True)["model"]
    assert all(torch.equal(kept[name], value) for name, value in training.result.named_parameters())
    training.refresh_batch_norm()
    assert result["loss"] == training.evaluate("test").loss


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_a_batch_in_parts_has_the_same_gradients_where_norms_do_not_mix_clips(job, data, parts):
    training = Training(replace(job, recipe=replace(RECIPE, dropout=0.0)), data, RUNTIME, Hooks())
    for module in training.model.train().modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
            nn.init.ones_(module.weight)
    x_BCTHW, y_B = next(iter(training._train_batches().epoch(0)))
    found = []
    for count in (1, parts):
        training.progress.parts = count
        sums = training.gradients(x_BCTHW, y_B, len(y_B))
        found.append([*(p.grad.clone() for p in training.model.parameters()), sums[0].float()])
    assert sum(gradient.abs().sum() for gradient in found[0]) > 1
    for whole, split in zip(*found, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-5)


def test_a_batch_whose_parts_do_not_fit_goes_down_to_single_clips(job, data, monkeypatch, lines):
    """The allocator's own error, for every micro-batch of more than one clip."""
    forward = X3D.forward

    def narrow(self, x_BCTHW):
        if len(x_BCTHW) > 1:
            torch.empty(2**60)
        return forward(self, x_BCTHW)

    monkeypatch.setattr(X3D, "forward", narrow)
    training = Training(job, data, RUNTIME, Hooks())
    x_BCTHW, y_B = next(iter(training._train_batches().epoch(0)))
    loss, _ = training.update(x_BCTHW[:3], y_B[:3], 3)
    assert training.progress.parts == 3 and torch.isfinite(loss) and len(lines) == 2


def test_a_measurement_whose_batches_do_not_fit_takes_smaller_ones(job, data, monkeypatch, lines):
    training, positions = Training(job, data, RUNTIME, Hooks()), FoldedX3D._positions
    expected = training.evaluate("val")

    def narrow(self, x_BCTHW):
        if len(x_BCTHW) > 2:
            torch.empty(2**60)
        return positions(self, x_BCTHW)

    monkeypatch.setattr(FoldedX3D, "_positions", narrow)
    lines.clear()
    assert training.evaluate("val").loss == pytest.approx(expected.loss)
    assert training.progress.parts == 4 and len(lines) == 2


def test_a_checkpoint_of_a_training_with_an_average_is_loaded_as_the_average(job, data):
    training = Training(replace(job, recipe=replace(RECIPE, ema=0.5)), data, RUNTIME, Hooks())
    training.fit()
    assert torch.equal(flat(load_model(job.paths.checkpoint)), flat(training.result))


def test_an_interrupted_measurement_costs_no_epoch(job, data):
    job = replace(job, recipe=replace(RECIPE, eval_every=1))
    answers = iter([False] * 4)  # one an update, then in the measurement
    with pytest.raises(Interrupted):
        Training(job, data, RUNTIME, Hooks(stop=lambda: next(answers, True))).fit()
    resumed = Training(job, data, RUNTIME, Hooks())
    assert (resumed.progress.epoch, resumed.progress.batch, resumed.progress.seen) == (0, 4, 32)
    resumed.fit()
    undisturbed = Training(replace(job, paths=CandidatePaths(job.paths.dir / "other")), data, RUNTIME, Hooks())
    undisturbed.fit()
    assert torch.equal(flat(resumed.model), flat(undisturbed.model))
    assert resumed.progress.rows[0]["loss"] == undisturbed.progress.rows[0]["loss"]


def test_the_first_weights_are_those_of_the_file(job, data, tmp_path):
    torch.manual_seed(3)
    other = X3D.of(NETWORK)
    save_weights(tmp_path / "other.pt", other)
    began = replace(job, first_weights=tmp_path / "other.pt")
    assert torch.equal(flat(Training(began, data, RUNTIME, Hooks()).model), flat(other))
    assert began.identity != job.identity


def test_val_is_measured_every_so_many_epochs(job, data):
    rows = []
    recipe = replace(RECIPE, epochs=3, eval_every=2)
    Training(replace(job, recipe=recipe), data, RUNTIME, Hooks(epoch=rows.append)).fit()
    with open(job.paths.metrics) as file:
        written = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [math.isnan(float(row["val_accuracy"])) for row in written] == [True, False, True]
    assert 0 < float(written[1]["val_loss"]) == rows[1]["val_loss"]


def test_looking_at_val_changes_nothing(job, data, tmp_path):
    results = []
    for every in (0, 1):
        paths = CandidatePaths(tmp_path / str(every))
        training = Training(replace(job, paths=paths, recipe=replace(RECIPE, eval_every=every)), data, RUNTIME, Hooks())
        training.fit()
        results.append(flat(training.model))
    assert torch.equal(*results)
