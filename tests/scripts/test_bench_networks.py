"""What the benchmarks compare is comparable: the same networks, clips and recipe on both sides."""

from dataclasses import replace

import pytest
import torch

from expand.data import list_clips
from expand.expansion.events import (
    CandidateFinished,
    FinalFinished,
    RunStarted,
    StepProposed,
    StepSelected,
    WinnerChosen,
)
from expand.expansion.state import Candidate, Outcome
from expand.rundir.journal import Journal
from expand.rundir.paths import RunPaths
from expand.space.factors import Factors
from expand.space.network import preset
from tests.training.small import CONFIG, RECIPE, clips, network


@pytest.mark.parametrize("name", ["x2d", "xs"])
def test_both_sides_train_networks_of_the_same_size_from_living_weights(scripts, name):
    pytest.importorskip("pytorchvideo", reason="compares with PyTorchVideo")
    bench = scripts("bench_training")
    sizes = []
    for model in (bench.plain_model(preset(name)), bench.our_model(preset(name))):
        assert model.training
        assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, torch.nn.BatchNorm3d))
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
    first_norm = 2 * 24  # of the one shortcut that PyTorchVideo leaves without a norm
    assert sizes[1] - sizes[0] == first_norm


@pytest.mark.parametrize("variant", ["plain", "ours"])
def test_a_step_trains_every_convolution(scripts, variant):
    pytest.importorskip("pytorchvideo", reason="compares with PyTorchVideo")
    steps = scripts("bench_training").Steps(variant, "x2d", torch.get_num_threads(), 2)
    before = [parameter.detach().clone() for parameter in steps.model.parameters()]
    assert steps.step() == 2
    assert all(not torch.equal(old, new) for old, new in zip(before, steps.model.parameters(), strict=True)
               if new.ndim == 5)


@pytest.mark.parametrize("variant", ["plain", "ours"])
def test_the_memory_of_steps_is_told_by_a_process_of_their_own(scripts, variant, pytestconfig):
    pytest.importorskip("pytorchvideo", reason="compares with PyTorchVideo")
    script = pytestconfig.rootpath / "scripts" / "bench_training"
    with scripts("bench_training").Helper(["--variant", variant, "x2d", "1", "2"], script=script) as helper:
        assert helper.ask("rate", seconds=0) > 0
        assert 1 < helper.ask("peak_mb") < 4000


def test_the_least_traffic_of_a_step_is_five_times_what_its_convolutions_make(scripts):
    found = scripts("bench_training").bounds("x2d", clips_per_s=100.0, sgemm=50.0, copying=10.0)
    assert found["least_gb_per_clip"] == pytest.approx(5 * 4 * 931_200 / 1e9, rel=0.5)
    assert found["traffic_share"] == pytest.approx(found["least_gb_per_clip"] * 100 / 10)
    assert found["sgemm_share"] == pytest.approx(3 * 0.020662304 * 100 / 50)


def test_the_straightforward_loop_trains_and_measures_by_the_recipe(scripts):
    pytest.importorskip("pytorchvideo", reason="compares with PyTorchVideo")
    clips()  # renders them
    listed = list_clips(CONFIG)
    bench, factors = scripts("bench_search"), network("n", frames=2).factors
    splits = bench.by_split(listed)
    assert {name: len(found) for name, found in splits.items()} == {"train": 32, "val": 16, "test": 16}
    x_CTHW, label, video = bench.Clips(splits["val"], factors, CONFIG, 2)[5]
    crop = bench.evaluation_crop(factors.resolution)
    assert x_CTHW.shape == (3, 2, crop, crop) and (label, video) == (splits["val"][2][1], 2)
    assert bench.Clips(splits["train"], factors, CONFIG, None)[0][0].shape == (3, 2, 32, 32)
    plain = bench.Plain(factors, replace(RECIPE, epochs=1), CONFIG, splits, len(listed.classes), 0)
    assert 0 <= plain.run("val") <= 1


def test_every_training_of_a_journal_is_found_with_its_network(scripts, tmp_path):
    factors = [Factors.of(frames=1, stride=1, resolution=side) for side in (32, 40)]
    journal = Journal(RunPaths(tmp_path).journal)
    journal.append(RunStarted(name="mine", target_gflops=2.0, criterion="accuracy", classes=("a",),
                              splits={}, fingerprint="", config=""))
    networks = [Candidate(f"c{n}", 0, "basis", f, n + 1.0, 100) for n, f in enumerate(factors)]
    journal.append(StepProposed(step=0, candidates=tuple(networks), excluded=()))
    journal.append(CandidateFinished(outcome=Outcome("c1", "finished", wall_s=2.0, accuracy=0.5)))
    journal.append(CandidateFinished(outcome=Outcome("c0", "failed")))
    journal.append(StepSelected(step=0, axis="basis", id="c1"))
    fields = {**networks[1].as_dict(), "network": networks[1].as_dict(), "accuracy": 0.5, "stderr": None}
    journal.append(WinnerChosen.read(fields, ""))
    journal.append(FinalFinished(wall_s=3.0, accuracy=0.6, stderr=None, split="test"))
    found = list(scripts("bench_search").trainings(tmp_path))
    assert [(t.id, t.factors, t.wall_s, t.split) for t in found] == [
        ("c1", factors[1], 2.0, "val"), ("final", factors[1], 3.0, "test")]


def test_a_part_of_the_candidates_is_spread_over_their_complexities(scripts):
    bench = scripts("bench_search")
    factors = Factors.of(frames=1, stride=1, resolution=32)
    found = [bench.Trained(str(n), factors, float(n), 1.0, 0.5) for n in (5, 1, 4, 2, 3)]
    assert [t.gflops for t in bench.chosen(found, 3)] == [1, 3, 5] and bench.chosen(found, None) == found
    assert "extrapolated: the loop trained 3 of 5, 60%" in bench.summary(10.0, 24.0, 0.6, 3, 5)
    assert bench.summary(10.0, 40.0, 1.0, 5, 5).endswith("4.0 times")
