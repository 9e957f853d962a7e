"""One network trained on its own, end to end: killed, resumed, in two processes, and used afterwards."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import expand
from expand.data.synthetic import rendering as synthetic
from expand.run.resolve import check_free
from expand.rundir.paths import RunPaths
from expand.space.factors import Factors
from expand.space.network import Network, dump_network
from tests.e2e.runs import ROOT, call, kill, start

CLIPS = "data.builtin={size: 32, seconds: 1.5, fps: 12, train_clips: 64, val_clips: 32, test_clips: 32}"
RECIPE = ["--epochs", "4", "--batch-size", "21", "--threads", "1", "--set", CLIPS,
          "--set", "final={ema: 0.5, eval_every: 2, eval_clips: 2, precise_bn_batches: 2}",
          "--set", "run.checkpoint_every_s=0"]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "small.yaml"
    factors = Factors.of(frames=2, stride=14, resolution=32, width=0.5, depth=0.4)
    path.write_text(dump_network(Network("small", factors, 400)))
    return path


@pytest.fixture(scope="module")
def trained(network, tmp_path_factory, own_cache):
    """An undisturbed training in one process."""
    run_dir = tmp_path_factory.mktemp("runs") / "trained"
    return run_dir, call("train", network, "--run-dir", run_dir, *RECIPE)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "final" / "weights.pt", weights_only=True)["model"]


def epochs(run_dir: Path) -> list[dict[str, float]]:
    """metrics.csv, without what depends on time."""
    with open(run_dir / "final" / "metrics.csv") as file:
        return [{name: float(value) for name, value in row.items() if name != "train_s"}
                for row in csv.DictReader(file)]


def test_a_training_leaves_what_is_promised(trained):
    run_dir, printed = trained
    for name in ("config.yaml", "env.json", "log.txt", "training.yaml", "final/network.yaml", "final/weights.pt",
                 "final/metrics.csv", "final/outcome.json", "final/README.md", "final/latency.json"):
        assert (run_dir / name).stat().st_size > 0, name
    assert "of 32 videos of test" in printed and "epoch 2:" in printed and "epoch 4:" in printed
    model = expand.load(run_dir)
    assert model.network.class_names == synthetic.CLASSES and not model.training


def test_the_curves_are_in_tensorboard(trained):
    run_dir, _ = trained
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert [round(e.value, 5) for e in events.Scalars("loss/train")] == [round(e["loss"], 5) for e in epochs(run_dir)]
    assert [e.step for e in events.Scalars("accuracy/val")] == [2, 4]


def test_kill_9_at_random_moments_gives_the_same_weights_to_the_bit(trained, network, tmp_path):
    chance, run_dir = random.Random(0), tmp_path / "killed"
    process, kills = start("train", network, "--run-dir", run_dir, *RECIPE), 0
    for _ in range(3):
        while process.poll() is None and not (run_dir / "final" / "checkpoint.pt").exists():
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.5) + 2.5 * (kills > 0))  # a start takes more than 2 s
        kills += process.poll() is None
        kill(process)
        process = start("resume", run_dir)
    out, err = process.communicate()
    assert process.returncode == 0, err + out
    assert kills
    undisturbed, resumed = weights(trained[0]), weights(run_dir)
    assert undisturbed.keys() == resumed.keys()
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert str(epochs(trained[0])) == str(epochs(run_dir))


def torchrun(*arguments: str | Path) -> str:
    """The command in two processes; what it prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "expand"]
    done = subprocess.run([*command, *map(str, arguments)], cwd=ROOT, text=True, capture_output=True, timeout=200,
                          check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_two_processes_give_the_loss_curve_of_one(trained, network, tmp_path):
    """Their shares of a batch are not equal."""
    printed = torchrun("train", network, "--run-dir", tmp_path / "two", *RECIPE)
    assert printed.count("training begins") == 1 and "in 2 processes" in printed
    one, two = epochs(trained[0]), epochs(tmp_path / "two")
    assert len(one) == len(two) == 4
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-4)
        assert theirs["val_loss"] == pytest.approx(mine["val_loss"], abs=1e-4, nan_ok=True)
    outcomes = [json.loads((run / "final" / "outcome.json").read_text()) for run in (trained[0], tmp_path / "two")]
    assert outcomes[1]["result"]["loss"] == pytest.approx(outcomes[0]["result"]["loss"], abs=1e-4)


def test_an_interruption_writes_a_checkpoint_and_names_the_way_on_which_another_recipe_is_not(trained, network,
                                                                                              tmp_path):
    run_dir = tmp_path / "interrupted"
    process = start("train", network, "--run-dir", run_dir, *RECIPE, "--set", "run.checkpoint_every_s=1000",
                    "--epochs", "400")
    while process.poll() is None and not (run_dir / "final" / "metrics.csv").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"x3d-expand resume {run_dir}" in err and "Traceback" not in err
    assert (run_dir / "final" / "checkpoint.pt").exists() and not (run_dir / "final" / "outcome.json").exists()
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("ema: 0.5", "ema: 0.6"))
    assert "final.ema: 0.5 -> 0.6" in call("resume", run_dir, code=1)


def test_a_training_begins_with_the_weights_that_it_is_given(trained, network, tmp_path):
    """From a checkpoint of other classes, in PyTorchVideo's names."""
    given = expand.load(trained[0])
    other = expand.X3D.of(replace(given.network, classes=5, class_names=None))
    state = {name: value for name, value in given.state_dict().items() if "classifier" not in name}
    other.load_state_dict(state, strict=False)
    expand.export(other, "pytorchvideo", tmp_path / "given.pyth")
    run_dir = tmp_path / "begün with"  # no name that a run could be given, but a folder's
    few = ["--epochs", "1", "--batch-size", "16", "--threads", "1", "--set", CLIPS, "--set", "final.lr=0.0000001"]
    printed = call("train", network, "--run-dir", run_dir, "--init", tmp_path / "given.pyth", *few)
    assert "the classifier keeps its initial weights" in printed and "with 5 classes there" in printed
    close = {name: torch.allclose(value, weights(trained[0])[name], atol=1e-4)
             for name, value in weights(run_dir).items() if name.endswith(".a.weight")}
    assert close and all(close.values())
    assert "given.pyth" in (run_dir / "final" / "README.md").read_text()
    assert expand.load(run_dir).network.name == "begün with"


def test_the_networks_own_pixels_and_shortcuts_are_kept(tmp_path):
    factors = Factors.of(frames=1, stride=14, resolution=32, width=0.5, depth=0.1)
    own = Network("own", factors, 16, mean=0.3, std=0.4, first_projection_bn=False)
    values = {f"data.builtin.{name}": value for name, value in (
        ("size", 32), ("seconds", 1.5), ("fps", 12), ("train_clips", 64), ("val_clips", 32), ("test_clips", 32))}
    result = expand.train(own, values={**values, "final.epochs": 1, "final.eval_clips": 1, "run.threads": 1},
                          run_dir=tmp_path / "own")
    kept = expand.load(result["run"]).network
    assert (kept.mean, kept.std, kept.first_projection_bn) == (0.3, 0.4, False)
    assert "mean: 0.3" in (tmp_path / "own" / "config.yaml").read_text()


def test_a_kill_while_it_is_laid_out_leaves_a_training_or_nothing(trained, tmp_path):
    """What is written after training.yaml follows from it; what is written before is begun anew."""
    run_dir = tmp_path / "killed"
    run_dir.mkdir()
    shutil.copy(trained[0] / "training.yaml", run_dir)
    expand.resume(run_dir)
    assert all(torch.equal(value, weights(trained[0])[name]) for name, value in weights(run_dir).items())
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    for name in ("lock", "first_weights.pt"):
        (nothing / name).touch()
    assert "was never begun" in call("resume", nothing, code=1)
    check_free(RunPaths(nothing))


def test_what_cannot_be_trained_is_explained(trained, network, tmp_path):
    assert "did you mean 'xl'" in call("train", "xll", code=2)
    assert "x3d-expand resume" in call("train", network, "--run-dir", trained[0], *RECIPE, code=1)
    assert "is a training, not a search" in call("status", trained[0], code=1)
    (tmp_path / "other.pt").write_bytes(b"no weights")
    assert "is no checkpoint" in call("train", network, "--run-dir", tmp_path / "r", "--init", tmp_path / "other.pt",
                                      *RECIPE, code=2)
    one = Network("one", Factors.of(frames=1, stride=1, resolution=32, width=0.5, depth=0.4), 400)
    (tmp_path / "one.yaml").write_text(dump_network(one))
    told = call("train", tmp_path / "one.yaml", "--run-dir", tmp_path / "r", *RECIPE, "--batch-size", "1", code=2)
    assert "final.batch_size: batches of 1 clip cannot be trained on" in told and "2 clips or more" in told
    assert not (tmp_path / "r").exists()


def test_a_finished_training_is_left_as_it_is_by_resume(trained):
    run_dir, _ = trained
    before = (run_dir / "final" / "outcome.json").stat().st_mtime_ns
    assert "of 32 videos of test" in call("resume", run_dir)
    assert (run_dir / "final" / "outcome.json").stat().st_mtime_ns == before
