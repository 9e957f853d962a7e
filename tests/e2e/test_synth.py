"""Sets of clips in each of which one axis alone carries the signal: a real search finds it as its first expansion.

Every search starts from two frames of 32 px and six blocks, and tries all six axes, the last all but X-Width. The
criterion is the accuracy, the paper's choice among candidates of about equal cost. X-Temporal changes the duration
alone (search.temporal_split=1), so that the two axes of time ask different questions. X-Depth may go to γd 1 only: at
this size a deep network takes long for its multiply-adds, and none of these sets asks for one.

docs/decisions/012-synthetic-sets.md has the accuracies of all candidates over several seeds.
"""

from __future__ import annotations

import dataclasses
import math

from expand.config.schema import AXES, BuiltinConfig
from expand.data.synthetic import class_names
from expand.data.synthetic.rendering import synthesize
from tests.e2e.runs import call, events

NOTHING = BuiltinConfig(size=40, seconds=1.54, fps=15, train_clips=160, val_clips=120, test_clips=16,
                        hue=0, texture=0, motion=0, period=0)
"""No cue. 1.54 s are 23 frames: the middle clip of 2 or 4 frames starts on a frame, so that steps in time are even."""
STRIDE = 8
BASIS = f"resolution: 32, depth: 0.4, frames: 2, stride: {STRIDE}"
SETTINGS = [
    "data.jitter_min=1.142857", "data.jitter_max=1.428571",  # the paper's
    "search.temporal_split=1", "search.criterion=accuracy", "search.tolerance=0.3", "search.limits.depth=1.0",
    "final={epochs: 1, batch_size: 16, eval_clips: 1, precise_bn_batches: 1}",
    "run.threads=1", "run.workers=2", "run.checkpoint_every_s=1000"]
SPREAD = 1.03
"""How much longer or shorter than `step_s` the time between two jumps may be."""


def search(tmp_path, config, *, target_gflops, epochs, lr=0.1, basis=BASIS, axes=AXES, more=()):
    """The accuracy of every candidate of a search on the clips of `config`, and the axis of the first expansion."""
    made = synthesize(tmp_path / "clips", config, workers=2)
    recipe = f"epochs: {epochs}, batch_size: 16, lr: {lr}, eval_clips: 1, precise_bn_batches: 12, dropout: 0.0"
    settings = [*SETTINGS, f"search.basis={{{basis}}}", f"search.axes=[{', '.join(axes)}]",
                f"candidate={{{recipe}}}", f"data.cache_dir={tmp_path / 'cache'}", *more]
    call("search", "--data", made.folder, "--target-gflops", str(target_gflops), "--run-dir", tmp_path / "run",
         *(word for setting in settings for word in ("--set", setting)))
    journal = events(tmp_path / "run")
    accuracy = {event["id"].split("-", 1)[1]: event["accuracy"] for event in journal
                if event["event"] == "candidate_finished" and event["id"].startswith(("s00", "s01"))}
    steps = [event["axis"] for event in journal if event["event"] == "step_selected"]
    assert accuracy.keys() == {"basis", *axes} and len(steps) == 2
    return accuracy, steps[1]


def assert_alone(accuracy, axis, classes, *, videos=NOTHING.val_clips):
    """`axis` sees the classes; the basis and all other axes stay within 3.5 standard errors of chance."""
    chance = 1 / classes
    bound = chance + 3.5 * math.sqrt(chance * (1 - chance) / videos)
    others = {name: value for name, value in accuracy.items() if name != axis}
    assert max(others.values()) < bound < 0.8 < accuracy[axis], accuracy


def test_frames_half_a_period_apart_make_x_fast_worth_it(tmp_path):
    """At the basis' stride the bands move by half a period between two frames, the same up and down, and more such
    frames (X-Temporal) change nothing. X-Fast halves the stride: a quarter."""
    config = dataclasses.replace(NOTHING, motion=1, drift_hz=15 / STRIDE)
    accuracy, first = search(tmp_path, config, target_gflops=0.0052, epochs=3)
    assert first == "x_fast"
    assert_alone(accuracy, "x_fast", len(class_names(config)))


def test_a_clip_too_short_for_two_jumps_makes_x_temporal_worth_it(tmp_path):
    """The basis lasts 8/30 s and X-Fast 12/30 s, too short for two jumps, one of which tells nothing. X-Temporal's
    24/30 s hold two of them in nine clips of ten."""
    basis_s, fast_s, temporal_s = (spaces * STRIDE / 30 for spaces in (1, 1.5, 3))
    config = dataclasses.replace(NOTHING, steps=1, step_s=0.42)
    assert basis_s < fast_s < config.step_s / SPREAD and temporal_s > 1.9 * config.step_s
    accuracy, first = search(tmp_path, config, target_gflops=0.0052, epochs=4)
    assert first == "x_temporal"
    assert_alone(accuracy, "x_temporal", len(class_names(config)))


def test_lines_as_many_as_pixels_make_x_spatial_worth_it(tmp_path):
    """36 lines a side: an evaluation crop of 36 px, the basis', averages them away; 54 px keep a sixth. Frames of
    144 px scaled by 1.125 in training give the same four pixels to each of the basis'."""
    config = dataclasses.replace(NOTHING, size=144, texture=0.85, lines=36)
    scales = ["data.jitter_min=1.125", "data.jitter_max=1.125", "search.expansion_rate=2.4"]
    accuracy, first = search(tmp_path, config, target_gflops=0.0062, epochs=5, more=scales)
    assert first == "x_spatial"
    assert_alone(accuracy, "x_spatial", len(class_names(config)))


def test_more_papers_than_features_make_x_bottleneck_worth_it(tmp_path):
    """The thinnest network hands two numbers (γb 1/8 of 16 channels) to its last layer, which must tell 16 colours.
    X-Bottleneck makes them more than twenty at twice the cost. Frames, pixels and blocks leave them two. X-Width is not
    tried: it raises them as well, to eight, and which of the two wins changes with the seed. Learnt slowly and
    averaged: at the other sets' rate, two numbers are so little that roundings decide what is learnt."""
    config = dataclasses.replace(NOTHING, appearance=1, patterns=16, train_clips=192, val_clips=160)
    accuracy, first = search(tmp_path, config, target_gflops=0.00038, epochs=30, lr=0.0125,
                             more=["search.grid.bottleneck=0.125", "candidate.ema=0.97"],
                             axes=tuple(axis for axis in AXES if axis != "x_width"),
                             basis=f"{BASIS}, width: 0.05, bottleneck: 0.125")
    assert first == "x_bottleneck"
    error = math.sqrt(2 * 0.25 / config.val_clips)  # of a difference, at most
    others = max(value for name, value in accuracy.items() if name != "x_bottleneck")
    assert accuracy["x_bottleneck"] > max(0.6, others + 3.5 * error), accuracy
