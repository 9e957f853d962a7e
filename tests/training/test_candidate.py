"""A training becomes an outcome, whatever happens in it."""

import json
from dataclasses import replace

import pytest
import torch

from expand.errors import CandidateFailed, DataError, Interrupted
from expand.model import X3D
from expand.rundir.paths import CandidatePaths
from expand.training.candidate import fail_candidate, train_candidate, train_final
from expand.training.job import Hooks, Job, candidate_seed
from expand.training.loop import Training
from tests.training.small import CONFIG, RECIPE, RUNTIME, final, network

NETWORK = network("small", frames=2)


@pytest.fixture
def job(tmp_path):
    return Job("s00-basis", network("s00-basis", frames=1), 0.001, RECIPE, CONFIG, candidate_seed(0, "s00-basis"),
               CandidatePaths(tmp_path), 1000.0)


def test_an_outcome_has_every_figure_that_is_promised(job, data):
    outcome = train_candidate(job, data, RUNTIME, Hooks())
    assert outcome.is_finished and outcome.reason is None
    assert 0 <= outcome.accuracy <= outcome.top5 <= 1 and outcome.loss > 0
    assert outcome.wall_s > 0 and outcome.clips_per_s > 0 and outcome.peak_memory_mb > 10
    assert set(outcome.breakdown) == {"build_s", "clips_s", "step_s", "norms_s", "evaluate_s", "disk_s", "other_s"}
    assert sum(outcome.breakdown.values()) == pytest.approx(outcome.wall_s, abs=1e-3)
    assert all(outcome.breakdown[phase] > 0 for phase in outcome.breakdown)
    stored = json.loads(job.paths.outcome.read_text())
    assert stored["accuracy"] == outcome.accuracy
    assert sum(map(sum, stored["confusion"])) == len(data.val)
    assert len(job.paths.metrics.read_text().splitlines()) == 1 + RECIPE.epochs


@pytest.mark.parametrize("more", [{}, {"ema": 0.5, "accumulation": 2}, {"optimizer": "adamw", "lr": 0.016}])
def test_a_training_that_was_stopped_ends_as_an_undisturbed_one(job, data, tmp_path, more):
    job = replace(job, recipe=replace(RECIPE, **more))
    undisturbed = train_candidate(job, data, RUNTIME, Hooks())
    other = replace(job, paths=CandidatePaths(tmp_path / "stopped"))
    for calls in (3, 2, 4):  # in the middle of both epochs
        answers = iter([False] * calls)
        with pytest.raises(Interrupted):
            train_candidate(other, data, RUNTIME, Hooks(stop=lambda answers=answers: next(answers, True)))
    resumed = train_candidate(other, data, RUNTIME, Hooks())
    assert (resumed.accuracy, resumed.loss) == (undisturbed.accuracy, undisturbed.loss)
    weights = [torch.load(paths.checkpoint, weights_only=True)["model"] for paths in (job.paths, other.paths)]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*(w.values() for w in weights), strict=True))


def test_a_finished_candidate_is_not_trained_again(job, data):
    first = train_candidate(job, data, RUNTIME, Hooks())
    assert train_candidate(job, data, RUNTIME, Hooks(stop=lambda: True)) == first


def test_another_recipe_is_another_training(job, data):
    train_candidate(job, data, RUNTIME, Hooks())
    with pytest.raises(Interrupted):
        train_candidate(replace(job, recipe=replace(RECIPE, epochs=3)), data, RUNTIME, Hooks(stop=lambda: True))


@pytest.mark.parametrize(("error", "reason"), [
    (RuntimeError("an operator failed\nat length"), "an operator failed"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "smaller batch_size"),
    (MemoryError(), "smaller batch_size"),
])
def test_what_fails_in_a_training_fails_the_candidate_with_its_reason(job, data, monkeypatch, error, reason):
    def forward(self, x):
        raise error

    monkeypatch.setattr(X3D, "forward", forward)
    outcome = train_candidate(job, data, RUNTIME, Hooks())
    assert outcome.state == "failed" and reason in outcome.reason and "\n" not in outcome.reason
    with pytest.raises(CandidateFailed):
        train_final(final(job), data, RUNTIME, Hooks())


def test_a_loss_that_is_not_finite_fails_the_candidate(job, data):
    outcome = train_candidate(replace(job, recipe=replace(RECIPE, lr=1e30)), data, RUNTIME, Hooks())
    assert outcome.state == "failed" and "the loss became" in outcome.reason


def test_the_test_split_is_used_for_the_winner_where_there_is_one(job, data):
    result = train_final(final(job), data, RUNTIME, Hooks())
    assert result["split"] == "test" and 0 <= result["val_accuracy"] <= 1


def test_seeds_depend_on_run_and_candidate_alone():
    seeds = {candidate_seed(run, name) for run in range(3) for name in ("s00-basis", "s01-x_fast", "final")}
    assert len(seeds) == 9 and candidate_seed(1, "final") == candidate_seed(1, "final")


def test_a_moved_run_goes_on_and_another_network_does_not(job):
    moved = replace(job, network=replace(job.network, name="elsewhere"))
    other = replace(job, network=replace(job.network, first_projection_bn=False))
    assert moved.identity == job.identity != other.identity


def test_the_death_of_a_loader_process_is_not_held_against_the_candidate(job, data, monkeypatch):
    """Torch tells of it wherever the program is; killed by the system's own want of memory, it speaks of none."""
    def update(*_):
        raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")

    monkeypatch.setattr(Training, "update", update)
    with pytest.raises(DataError, match="a process that reads clips died"):
        train_candidate(job, data, RUNTIME, Hooks())
    assert not job.paths.outcome.exists()


def test_a_final_training_that_falls_behind_hands_over_the_candidates_weights(data, tmp_path):
    """The candidate learnt its val clips; the final training has a rate of nearly nothing and stays at its initial
    weights."""
    data = replace(data, val=data.train)
    candidate = Job("s01-x", NETWORK, 0.001, replace(RECIPE, epochs=12, lr=1.6), CONFIG, 5,
                    CandidatePaths(tmp_path / "c"), 1e3)
    trained = train_candidate(candidate, data, RUNTIME, Hooks())
    job = final(replace(candidate, recipe=replace(RECIPE, epochs=1, lr=1e-9), paths=CandidatePaths(tmp_path / "f"),
                        candidate_weights=candidate.paths.checkpoint))
    result = train_final(job, data, RUNTIME, Hooks())
    assert result["from_candidate"] and result["val_accuracy"] == trained.accuracy
    assert any("longer training did not help" in note for note in result["notes"])
    kept, own = (torch.load(path, weights_only=True)["model"] for path in (job.weights, candidate.paths.checkpoint))
    assert all(torch.equal(kept[name], own[name]) for name in kept)


def test_a_final_training_that_does_not_fall_behind_hands_over_its_own_weights(data, tmp_path):
    data = replace(data, val=data.train)
    candidate = Job("s01-x", NETWORK, 0.001, replace(RECIPE, epochs=1, lr=1e-9), CONFIG, 5,
                    CandidatePaths(tmp_path / "c"), 1e3)
    train_candidate(candidate, data, RUNTIME, Hooks())
    alone = final(replace(candidate, recipe=replace(RECIPE, epochs=12, lr=1.6), paths=CandidatePaths(tmp_path / "f")))
    beside = replace(alone, paths=CandidatePaths(tmp_path / "g"), candidate_weights=candidate.paths.checkpoint,
                     weights=tmp_path / "g" / "weights.pt")
    results = [train_final(job, data, RUNTIME, Hooks()) for job in (alone, beside)]
    assert [result["from_candidate"] for result in results] == [False, False]
    assert results[0]["loss"] == results[1]["loss"]
    kept, own = (torch.load(path, weights_only=True)["model"] for path in (alone.weights, beside.weights))
    assert all(torch.equal(kept[name], own[name]) for name in kept)


def test_a_candidates_weights_that_are_damaged_do_not_cost_the_final_training(data, tmp_path, lines):
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not weights")
    lines.clear()
    job = final(Job("s01-x", NETWORK, 0.001, RECIPE, CONFIG, 5, CandidatePaths(tmp_path / "f"), 1e3,
                    candidate_weights=broken))
    assert not train_final(job, data, RUNTIME, Hooks())["from_candidate"]
    assert any("cannot be compared" in text for text in lines)


def test_a_kill_between_the_outcome_and_the_weights_leaves_the_weights_of_an_undisturbed_training(job, data, tmp_path,
                                                                                                  monkeypatch):
    undisturbed = train_candidate(job, data, RUNTIME, Hooks())
    other = replace(job, paths=CandidatePaths(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        patch.setattr("expand.training.checkpoint.save_weights", lambda path, model: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_candidate(other, data, RUNTIME, Hooks())
    assert train_candidate(other, data, RUNTIME, Hooks()).accuracy == undisturbed.accuracy
    weights = [torch.load(paths.checkpoint, weights_only=True) for paths in (job.paths, other.paths)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0]["model"][name], weights[1]["model"][name]) for name in weights[0]["model"])


def test_a_failed_candidate_whose_checkpoint_is_there_is_not_trained_on(job, data):
    with pytest.raises(Interrupted):
        train_candidate(job, data, RUNTIME, Hooks(stop=lambda: True))
    fail_candidate(job, data, "its process died")
    outcome = train_candidate(job, data, RUNTIME, Hooks(stop=lambda: True))
    assert (outcome.state, outcome.reason) == ("failed", "its process died")


def test_a_training_that_pauses_at_rungs_ends_as_an_undisturbed_one(job, data, tmp_path):
    undisturbed = train_candidate(job, data, RUNTIME, Hooks())
    other = replace(job, paths=CandidatePaths(tmp_path / "paused"))
    paused = [train_candidate(replace(other, until=share), data, RUNTIME, Hooks()) for share in (0.3, 0.55)]
    assert [(outcome.state, outcome.share) for outcome in paused] == [("paused", 0.3), ("paused", 0.55)]
    ended = train_candidate(other, data, RUNTIME, Hooks())
    assert (ended.accuracy, ended.loss, ended.right) == (undisturbed.accuracy, undisturbed.loss, undisturbed.right)
    weights = [torch.load(paths.checkpoint, weights_only=True)["model"] for paths in (job.paths, other.paths)]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*(w.values() for w in weights), strict=True))
    assert train_candidate(replace(other, until=0.3), data, RUNTIME, Hooks(stop=lambda: True)) == paused[0]


def test_a_rung_whose_result_was_lost_is_measured_as_it_was(job, data):
    at_rung = replace(job, until=0.3)
    first = train_candidate(at_rung, data, RUNTIME, Hooks())
    train_candidate(replace(job, until=0.55), data, RUNTIME, Hooks())
    at_rung.outcome.unlink()
    again = train_candidate(at_rung, data, RUNTIME, Hooks())
    assert (again.accuracy, again.loss, again.right) == (first.accuracy, first.loss, first.right)


def test_a_candidate_that_failed_on_its_way_has_failed_at_every_rung(job, data):
    broken = replace(job, recipe=replace(RECIPE, lr=1e30))
    assert train_candidate(replace(broken, until=0.3), data, RUNTIME, Hooks()).state == "failed"
    assert train_candidate(replace(broken, until=0.3), data, RUNTIME, Hooks(stop=lambda: True)).state == "failed"
    assert train_candidate(broken, data, RUNTIME, Hooks(stop=lambda: True)).state == "failed"
