"""Whatever happens to a training's files, and whenever: it ends as if nothing had happened, or says what it lost."""

import errno
import json
import os
from dataclasses import replace

import pytest
import torch

from expand.errors import CandidateFailed, Interrupted
from expand.model import archive
from expand.rundir.files import clear_leftovers
from expand.rundir.paths import CandidatePaths
from expand.training import checkpoint, loop
from expand.training.candidate import train_candidate, train_final
from expand.training.evaluate import Evaluation
from expand.training.job import Hooks, Job, candidate_seed
from expand.training.loop import Training, make_optimizer
from expand.training.progress import Progress
from tests.training.small import CONFIG, RECIPE, RUNTIME, final, network

NETWORK = network("s00-basis", frames=1)


@pytest.fixture
def job(tmp_path):
    """Checkpoints after every update."""
    return Job("s00-basis", NETWORK, 0.001, RECIPE, CONFIG, candidate_seed(0, "s00-basis"), CandidatePaths(tmp_path),
               0.0)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The outcome and the weights of a training in peace."""
    paths = CandidatePaths(tmp_path_factory.mktemp("undisturbed"))
    job = Job("s00-basis", NETWORK, 0.001, RECIPE, CONFIG, candidate_seed(0, "s00-basis"), paths, 0.0)
    return train_candidate(job, data, RUNTIME, Hooks()), weights_of(paths)


def weights_of(paths):
    return torch.load(paths.checkpoint, weights_only=True)["model"]


def stop_after(updates):
    answers = iter([False] * (updates - 1))
    return lambda: next(answers, True)


def interrupted(job, data, updates=6):
    with pytest.raises(Interrupted):
        train_candidate(job, data, RUNTIME, Hooks(stop=stop_after(updates)))


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


def check_same(job, outcome, undisturbed):
    expected, weights = undisturbed
    assert (outcome.accuracy, outcome.loss, outcome.state) == (expected.accuracy, expected.loss, "finished")
    assert all(torch.equal(mine, weights[key]) for key, mine in weights_of(job.paths).items())
    assert not job.paths.checkpoint_before.exists()


# Kills.

def killed_at(step, work):
    """Does `work` in a process that is gone just before its `step`-th touch of the disk. Whether it ended before."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    left = [step]

    def dying(call):
        def touch(*arguments, **options):
            if not left[0]:
                os._exit(1)
            left[0] -= 1
            return call(*arguments, **options)
        return touch

    for name in ("link", "replace", "unlink", "fsync"):
        setattr(os, name, dying(getattr(os, name)))
    write, seen = archive._SealingFile.write, []

    def some_writes(self, data):
        seen.append(1)
        return (dying(write) if len(seen) in (1, 100) else write)(self, data)

    archive._SealingFile.write = some_writes
    try:
        work()
    finally:
        os._exit(0)


def no_links(*_, **__):
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("last", ["good", "damaged", "rotten"])
def test_at_every_instant_of_a_kill_there_is_a_whole_checkpoint(tmp_path, monkeypatch, links, last):
    """`rotten`: it became damaged after it was looked at. Without links that is too much for the one before it."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    model = torch.nn.Linear(300, 300)
    model.network = None
    optimizer, paths = make_optimizer(model, RECIPE), CandidatePaths(tmp_path)

    def save(epoch, keep=True):
        checkpoint.save(paths.checkpoint, "id", model, optimizer, Progress(epoch=epoch),
                        before=paths.checkpoint_before if keep else None)

    def whole():
        """The epochs of the two; None for one that is not whole."""
        states = [checkpoint.load(path, "id")[0] for path in (paths.checkpoint, paths.checkpoint_before)]
        return [state and state["progress"]["epoch"] for state in states]

    step, ended, seen = 0, False, set()
    while not ended:
        paths.checkpoint.unlink(missing_ok=True)
        save(1)
        save(2)
        assert whole() == [2, 1]
        if last != "good":
            damage(paths.checkpoint)
        ended = killed_at(step, lambda: save(3, keep=last != "damaged"))
        if links or last != "rotten":
            assert any(epoch is not None for epoch in whole()), step
            assert last == "good" or whole()[0] == 3 or whole()[1] == 1
            assert last != "good" or max(epoch or 0 for epoch in whole()) >= 2
        seen.add(str(whole()))
        clear_leftovers([tmp_path])
        assert set(os.listdir(tmp_path)) <= {paths.checkpoint.name, paths.checkpoint_before.name}
        step += 1
    assert step >= 6 and len(seen) >= 2
    assert whole() == {"good": [3, 2], "damaged": [3, 1], "rotten": [3, None]}[last]


def test_of_the_first_checkpoint_nothing_or_all_is_there(tmp_path):
    model = torch.nn.Linear(300, 300)
    model.network = None
    optimizer, paths, step = make_optimizer(model, RECIPE), CandidatePaths(tmp_path), 0
    while not killed_at(step, lambda: checkpoint.save(paths.checkpoint, "id", model, optimizer, Progress(),
                                                      before=paths.checkpoint_before)):
        assert checkpoint.load(paths.checkpoint, "id")[1] is None and not paths.checkpoint_before.exists()
        paths.checkpoint.unlink(missing_ok=True)
        step += 1
    assert step >= 5 and checkpoint.load(paths.checkpoint, "id")[0] is not None


# Damage.

def test_a_damaged_checkpoint_costs_one_update_and_changes_nothing(job, data, undisturbed, lines):
    interrupted(job, data)
    damage(job.paths.checkpoint)
    lines.clear()
    outcome = train_candidate(job, data, RUNTIME, Hooks())
    [line] = lines
    assert line == (f"s00-basis: {job.paths.checkpoint} is damaged: its digest does not match; training goes on from "
                    "the one before, epoch 2, update 1")
    check_same(job, outcome, undisturbed)


def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one_before(job, data):
    interrupted(job, data)
    damage(job.paths.checkpoint)
    before = job.paths.checkpoint_before.read_bytes()
    training = Training(job, data, RUNTIME, Hooks())
    training.save()
    assert job.paths.checkpoint_before.read_bytes() == before
    training.save()
    assert all(checkpoint.load(path, job.identity)[0]
               for path in (job.paths.checkpoint, job.paths.checkpoint_before))


def test_a_checkpoint_that_is_missing_is_not_missed(job, data, undisturbed, lines):
    interrupted(job, data)
    job.paths.checkpoint.unlink()
    lines.clear()
    outcome = train_candidate(job, data, RUNTIME, Hooks())
    assert len(lines) == 1 and "checkpoint.pt is missing; training goes on from the one before, epoch 2" in lines[0]
    check_same(job, outcome, undisturbed)


def test_where_both_are_damaged_training_starts_anew_and_says_so(job, data, undisturbed, lines):
    interrupted(job, data)
    damage(job.paths.checkpoint)
    job.paths.checkpoint_before.write_bytes(b"")
    lines.clear()
    outcome = train_candidate(job, data, RUNTIME, Hooks())
    assert len(lines) == 1 and "checkpoint.pt is damaged" in lines[0] and "checkpoint-before.pt is damaged" in lines[0]
    assert lines[0].endswith("; training starts anew")
    check_same(job, outcome, undisturbed)


def test_a_whole_checkpoint_that_does_not_fit_counts_as_damaged(job, data, undisturbed, lines):
    interrupted(job, data)
    state = torch.load(job.paths.checkpoint, weights_only=True)
    state["progress"]["epoch"] = 10**9
    archive.save_sealed(state, job.paths.checkpoint)
    lines.clear()
    outcome = train_candidate(job, data, RUNTIME, Hooks())
    assert "'progress.epoch' is 1000000000" in lines[0] and "goes on from the one before" in lines[0]
    check_same(job, outcome, undisturbed)


def test_of_the_final_training_both_are_kept_until_it_has_ended(job, data):
    job = final(job)
    with pytest.raises(Interrupted):
        train_final(job, data, RUNTIME, Hooks(stop=stop_after(3)))
    assert job.paths.checkpoint_before.exists()
    result = train_final(job, data, RUNTIME, Hooks())
    assert not job.paths.checkpoint_before.exists() and job.paths.checkpoint.exists() and result["notes"] == []
    assert train_final(job, data, RUNTIME, Hooks()) == result


# Outcomes.

def _put(**fields):
    return lambda known: json.dumps({**known, **fields})


OUTCOMES = [
    lambda known: "", lambda known: "{", lambda known: "[]", lambda known: "null", lambda known: json.dumps(known)[:-9],
    _put(accuracy=7), _put(accuracy="0.5"), _put(accuracy=None), _put(accuracy=True), _put(stderr=[1]),
    _put(state="great"), _put(id="s01-x_fast"), _put(identity=3), _put(wall_s=-1), _put(breakdown=[]), _put(notes="no"),
    _put(loss=0.123), _put(digest="0" * 64), _put(digest=[]),
    lambda known: "[" * 10**5, lambda known: json.dumps({"identity": known["identity"]}),
    lambda known: json.dumps(known).replace('"accuracy": ', '"accuracy": 1e'),
    lambda known: json.dumps(known).replace('"accuracy": ', '"accuracy": NaN, "x": ')]


def test_an_outcome_that_cannot_be_is_set_aside_and_found_out_anew(job, data, undisturbed, lines):
    train_candidate(job, data, RUNTIME, Hooks())
    known = json.loads(job.paths.outcome.read_text())
    for change in OUTCOMES:
        job.paths.outcome.write_text(change(known))
        lines.clear()
        with pytest.raises(Interrupted):  # so it is trained again
            train_candidate(job, data, RUNTIME, Hooks(stop=lambda: True))
        assert str(job.paths.outcome) in lines[0] and "set aside as outcome-damaged.json" in lines[0], lines
        assert not job.paths.outcome.exists() and job.paths.damaged_outcome.read_text() == change(known)
    check_same(job, train_candidate(job, data, RUNTIME, Hooks()), undisturbed)


def test_a_huge_outcome_is_not_read(job, data, lines):
    with open(job.paths.outcome, "wb") as file:
        file.truncate(10**12)
    lines.clear()
    with pytest.raises(Interrupted):
        train_candidate(job, data, RUNTIME, Hooks(stop=lambda: True))
    assert "larger than" in lines[0]


def test_the_weights_of_a_training_that_ended_are_not_gone_on_from(job, data, undisturbed, lines):
    train_candidate(job, data, RUNTIME, Hooks())
    job.paths.outcome.write_text("{}")
    lines.clear()
    outcome = train_candidate(job, data, RUNTIME, Hooks())
    assert len(lines) == 2 and "only the weights of a training that has ended; training starts anew" in lines[1]
    check_same(job, outcome, undisturbed)


def test_an_outcome_of_before_digests_counts(job, data):
    first = train_candidate(job, data, RUNTIME, Hooks())
    known = json.loads(job.paths.outcome.read_text())
    del known["digest"], known["notes"]
    job.paths.outcome.write_text(json.dumps(known))
    assert train_candidate(job, data, RUNTIME, Hooks(stop=lambda: True)) == first


def test_a_winner_s_outcome_that_cannot_be_is_set_aside(job, data, lines):
    job = final(job)
    job.paths.outcome.write_text(json.dumps({"identity": job.identity, "result": {"split": "test", "accuracy": 7}}))
    lines.clear()
    with pytest.raises(Interrupted):
        train_final(job, data, RUNTIME, Hooks(stop=lambda: True))
    assert "'result.accuracy' is 7" in lines[0]


# What is not finite.

def spoil(name, value):
    def spoiling(self):
        self.result.state_dict()[name][0] = value
    return spoiling


def test_a_checkpoint_of_a_loss_that_is_not_finite_is_never_written(job, data):
    interrupted(job, data, 3)
    good = job.paths.checkpoint.read_bytes()
    training = Training(job, data, RUNTIME, Hooks())
    training.progress.loss_sum = torch.tensor(float("nan"))
    with pytest.raises(CandidateFailed, match="the loss became nan"):
        training.save()
    assert job.paths.checkpoint.read_bytes() == good


def test_a_loss_that_explodes_between_two_looks_fails_the_candidate_and_its_resumption_alike(job, data):
    job = replace(job, recipe=replace(RECIPE, lr=1e30))
    reasons = []
    with pytest.raises(Interrupted):
        train_candidate(job, data, RUNTIME, Hooks(stop=stop_after(1)))
    for _ in range(2):
        outcome = train_candidate(job, data, RUNTIME, Hooks())
        assert outcome.state == "failed" and outcome.accuracy is None
        reasons.append(outcome.reason)
        job.paths.outcome.unlink()
    assert reasons[0] == reasons[1] and "the loss became" in reasons[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["stages.1.0.a.weight", "stem.bn.running_var", "head.classifier.bias"])
@pytest.mark.parametrize("moment", ["update", "refresh_batch_norm"])
def test_weights_that_are_not_finite_fail_the_candidate_though_the_loss_is(job, data, monkeypatch, value, name, moment):
    """Also where an operator would turn them into plain numbers."""
    training, spoiling = [], spoil(name, value)
    update, measure = Training.update, loop.update_precise_bn

    def updated(self, *batch):
        training[:] = [self]
        sums = update(self, *batch)
        if moment == "update" and self.progress.batch == self.updates - 1:
            spoiling(self)
        return sums

    def measured(*arguments):
        measure(*arguments)
        spoiling(training[0])

    monkeypatch.setattr(Training, "update", updated)
    if moment == "refresh_batch_norm":
        monkeypatch.setattr(loop, "update_precise_bn", measured)
    monkeypatch.setattr(Training, "evaluate", lambda self, split: Evaluation(0.5, 0.1, 0.9, 1.0, []))
    outcome = train_candidate(job, data, RUNTIME, Hooks())
    assert outcome.state == "failed" and "of its weights are not finite" in outcome.reason and name in outcome.reason
    assert outcome.accuracy is outcome.loss is None and not job.paths.checkpoint_before.exists()
