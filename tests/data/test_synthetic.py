from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.config.schema import BuiltinConfig, DataConfig
from expand.data import prepare
from expand.data.loading.transforms import resize
from expand.data.synthetic import (
    CUES,
    MAX_PATTERNS,
    class_names,
    clip_files,
    one_frame_ceiling,
    patterns_for,
    possible_classes,
    set_folder,
)
from expand.data.synthetic import rendering as synthetic
from expand.data.synthetic.rendering import (
    BUILTIN,
    CLASSES,
    PERIOD_S,
    draw,
    ensure_rendered,
    render,
    synthesize,
)
from expand.errors import DataError, UsageError
from expand.processes import Child
from expand.space.geometry import evaluation_crop

SMALL = BuiltinConfig(size=40, seconds=1.0, fps=8, train_clips=33, val_clips=16, test_clips=16)
DRAWS = 3000
FEW = 1000
HUES, TEXTURES, MOTIONS, PERIODS = (cue.levels for cue in CUES[:4])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("builtin")
    ensure_rendered(SMALL, folder, 1)
    return folder


def contents(config, cache_dir):
    return {path.relative_to(set_folder(config, cache_dir)): path.read_bytes()
            for clips in clip_files(config, cache_dir).values() for path, _ in clips}


@functools.cache
def drawings(name, seed=0, count=DRAWS):
    return [draw(np.random.default_rng([seed, number]), name) for number in range(count)]


def test_every_class_of_every_split_has_as_many_clips_and_counts_are_rounded_up(rendered):
    config = DataConfig(cache_dir=str(rendered), builtin=SMALL)
    data = prepare(config, short_side=96, workers=1)
    assert data.classes == CLASSES and len(CLASSES) == 16 and data.classes[0] == "warm-rows-up-fast"
    for split, each in ((data.train, 3), (data.val, 1), (data.test, 1)):
        assert Counter(clip.label for clip in split) == {label: each for label in range(16)}
    assert all((clip.height, clip.width, len(clip.times_s)) == (40, 40, 8) for clip in data.train)


def test_clips_are_real_h264_in_the_layout_of_any_folder(rendered):
    folder = set_folder(SMALL, rendered)
    assert sorted(entry.name for entry in folder.iterdir()) == ["test", "train", "val"]
    with av.open(str(folder / "val" / "cool-rows-up-slow" / "0000.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    own = DataConfig(path=str(folder), cache_dir=str(rendered))
    assert len(prepare(own, short_side=96, workers=1).train) == 48


def test_rendering_follows_the_seed_alone(rendered, tmp_path):
    ensure_rendered(SMALL, tmp_path, 2)
    assert contents(SMALL, tmp_path) == contents(SMALL, rendered)
    other = dataclasses.replace(SMALL, seed=1)
    assert set_folder(other, tmp_path) != set_folder(SMALL, tmp_path)


def test_no_two_clips_are_the_same_in_or_across_splits(rendered):
    assert len(set(contents(SMALL, rendered).values())) == 48 + 16 + 16


def test_the_set_is_rendered_once(rendered, lines):
    ensure_rendered(SMALL, rendered, 1)
    assert not lines


def test_an_odd_size_is_rounded_up(tmp_path):
    config = dataclasses.replace(SMALL, size=33, train_clips=16)
    ensure_rendered(config, tmp_path, 1)
    with av.open(str(clip_files(config, tmp_path)["train"][0][0])) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (34, 34)


def test_the_label_decides_about_nothing_but_itself():
    """Same random stream, different class: only direction, period, texture and the sign of the hue differ."""
    for number in range(20):
        drawn = [dataclasses.asdict(draw(np.random.default_rng(number), name)) for name in CLASSES]
        for drawing, name in zip(drawn, CLASSES):
            hue, texture, motion, period = name.split("-")
            assert drawing.pop("texture") == texture
            assert drawing.pop("direction") == {"up": -1, "down": 1}[motion]
            assert (drawing["hue_level"] > 0) == (hue == "warm")
            drawing["hue_level"] = abs(drawing["hue_level"])
            drawing["period_s"] = round(drawing["period_s"] / PERIOD_S[period], 9)
        assert len({str(drawing) for drawing in drawn}) == 1


def distance(one, other):
    """Largest difference of two samples' distribution functions (Kolmogorov-Smirnov)."""
    values = np.sort(np.concatenate([one, other]))
    return np.abs(np.searchsorted(np.sort(one), values, "right") / len(one)
                  - np.searchsorted(np.sort(other), values, "right") / len(other)).max()


@pytest.mark.parametrize("time_s", [0.0, 0.4, 1.7, 2.9])
def test_at_any_instant_bands_and_light_are_distributed_alike_for_every_motion_and_period(time_s):
    bound = 1.95 * np.sqrt(2 / DRAWS)  # exceeded by chance once in a thousand comparisons
    at = np.array([time_s])
    drawn = [drawings(f"warm-rows-{motion}-{period}", seed) for seed, (motion, period)
             in enumerate((motion, period) for motion in MOTIONS for period in PERIODS)]
    bands = [np.array([drawing.band_position(at)[0] for drawing in group]) for group in drawn]
    light = [np.array([drawing.light(at)[0] for drawing in group]) for group in drawn]
    together = [(position + level / 40) % 1.0 for position, level in zip(bands, light)]
    for samples in (bands, light, together):
        assert max(distance(samples[0], sample) for sample in samples[1:]) < bound
    assert max(distance(sample, np.linspace(0, 1, DRAWS)) for sample in bands) < bound


def test_one_frame_leaves_four_equally_frequent_classes():
    assert len(HUES) * len(TEXTURES) / len(CLASSES) == one_frame_ceiling(BUILTIN) == 0.25


def luma(drawing, times_s, size=96):
    return render(drawing, size, times_s)[:, :size].astype(float)


def test_the_bands_of_the_frames_drift_the_way_the_label_says():
    times_s = np.arange(0, 3, 0.1)
    for motion, direction in (("up", -1), ("down", 1)):
        drawing = draw(np.random.default_rng(3), f"cool-columns-{motion}-fast")
        profile_TH = luma(drawing, times_s).mean(axis=2)
        axis = (np.arange(96) + 0.5) / 96
        profile_TH -= profile_TH.mean(axis=0)  # the still part
        wave_T = profile_TH @ np.exp(-2j * np.pi * drawing.bands * axis)
        turned = np.angle(wave_T[1:] / wave_T[:-1])  # a pattern sin(ky + p) moves up while p grows
        assert np.median(-turned) / (2 * np.pi * 0.1) == pytest.approx(direction * drawing.band_hz, rel=0.1)


def test_the_light_of_the_frames_pulses_as_fast_as_the_label_says():
    times_s = np.arange(0, 3, 0.05)
    turns = {}
    for period in PERIODS:
        drawing = dataclasses.replace(draw(np.random.default_rng(3), f"warm-rows-up-{period}"), band_level=0.0)
        turns[period] = np.count_nonzero(np.diff(np.sign(np.diff(luma(drawing, times_s).mean(axis=(1, 2))))))
    assert turns["fast"] >= 6 and turns["slow"] <= 3


def still(name, side, seed=2, size=96):
    """The clip's still picture without ripples at `side` pixels, side x side grey levels, and its drawing."""
    drawing = dataclasses.replace(draw(np.random.default_rng(seed), name), band_level=0.0, light_level=0.0,
                                  ripples=np.zeros((0, 4)))
    frame_HW = torch.from_numpy(render(drawing, size, np.zeros(1))[0, :size])
    return resize(frame_HW[None, :, :, None].expand(1, size, size, 3), side)[0, :, :, 0].double().numpy(), drawing


def contrast(name, resolution):
    """What is left of the lines' amplitude in an input of `resolution` pixels, as a share of what was drawn."""
    picture, drawing = still(name, evaluation_crop(resolution))
    return picture.std() * np.sqrt(2) / drawing.line_level


@pytest.mark.parametrize("texture", TEXTURES)
def test_rows_and_columns_need_pixels(texture):
    name = f"warm-{texture}-up-slow"
    assert contrast(name, 32) < 0.25
    assert contrast(name, 48) > 0.5
    assert contrast(name, 64) > 0.65


def test_rows_lie_and_columns_stand():
    for texture, along in (("rows", 1), ("columns", 0)):
        picture, _ = still(f"cool-{texture}-up-slow", 96)
        assert np.ptp(picture, axis=along).max() == 0 and np.ptp(picture, axis=1 - along).min() > 40


def test_rows_columns_and_hues_have_the_same_mean_brightness():
    means = [still(f"{hue}-{texture}-up-slow", 36)[0].mean() for hue in HUES for texture in TEXTURES]
    assert means == pytest.approx([means[0]] * len(means), abs=0.01)


def test_warm_is_redder_and_cool_is_bluer_in_every_clip():
    for hue in HUES:
        for drawing in drawings(f"{hue}-rows-up-slow", count=50):
            frame = av.VideoFrame.from_ndarray(render(drawing, 32, np.zeros(1))[0], format="yuv420p")
            red, _, blue = frame.to_ndarray(format="rgb24").reshape(-1, 3).mean(axis=0)
            assert (red - blue > 5) if hue == "warm" else (blue - red > 5)


def test_the_texture_survives_the_encoder(tmp_path):
    config = BuiltinConfig(seconds=1.0, train_clips=16, val_clips=16, test_clips=16)
    ensure_rendered(config, tmp_path, 1)
    for name in ("warm-rows-down-fast", "cool-columns-up-slow"):
        path, label = clip_files(config, tmp_path)["train"][CLASSES.index(name)]
        drawing = draw(np.random.default_rng([config.seed, 0, label]), name)
        with av.open(str(path)) as container:
            decoded = np.stack([frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)])
        drawn = render(drawing, 96, np.arange(15) / 15)
        error = decoded.astype(float) - drawn
        assert np.abs(error[:, 96:]).max() <= 2
        lines = drawing.line_level / np.sqrt(2)
        assert np.abs(error[:, :96]).mean() < 0.1 * lines and np.sqrt((error[:, :96] ** 2).mean()) < 0.15 * lines


RENDER = """
import sys, pathlib
from expand import logs
from expand.config.schema import BuiltinConfig
from expand.data.synthetic.rendering import ensure_rendered
config = BuiltinConfig(size=40, seconds=1.0, fps=8, train_clips=64, val_clips=16, test_clips=16)
with logs.shown_by(lambda line: print(line, flush=True)):
    ensure_rendered(config, pathlib.Path(sys.argv[1]), int(sys.argv[2]))
"""
RENDERED = dataclasses.replace(SMALL, train_clips=64)


def start_rendering(folder, workers, script=RENDER):
    command = [sys.executable, "-c", script, str(folder), str(workers)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)


def kill_amid_rendering(folder, workers, script=RENDER):
    process = start_rendering(folder, workers, script)
    process.stdout.readline()
    while process.poll() is None and not list(folder.rglob("*.mp4")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_long_clip_may_take_longer_to_render_than_a_hang_is_waited_for(tmp_path, monkeypatch):
    def slow(*arguments):
        time.sleep(0.2)
        return render(*arguments)

    monkeypatch.setattr(synthetic, "render", slow)
    config = dataclasses.replace(RENDERED, seconds=6.0)  # a block a second
    with Child(config, timeout_s=0.6) as child:
        child.call(synthetic.write_clip, (tmp_path / "clip.mp4", CLASSES[0], [0]))
    assert (tmp_path / "clip.mp4").stat().st_size


@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_while_rendering_leaves_nothing_half(tmp_path, workers):
    kill_amid_rendering(tmp_path, workers)
    assert not set_folder(RENDERED, tmp_path).exists()
    ensure_rendered(RENDERED, tmp_path, 1)
    assert all(path.is_file() for path, _ in clip_files(RENDERED, tmp_path)["test"])
    assert not list((tmp_path / "builtin").glob(".*.rendering-*"))


def test_a_second_process_waits_for_the_first(tmp_path):
    processes = [start_rendering(tmp_path, 1) for _ in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(len(text.splitlines()) for text in said) == [0, 1]


# ---- the knobs, and sets written to a folder

NOTHING = BuiltinConfig(size=32, seconds=1.0, fps=10, train_clips=16, val_clips=16, test_clips=16,
                        hue=0, texture=0, motion=0, period=0)


def only(**knobs):
    return dataclasses.replace(NOTHING, **knobs)


def test_the_pixels_of_the_built_in_set_are_those_that_the_figures_were_measured_on():
    """Who changes a pixel raises `RENDERER` and measures again what the README and docs/decisions/024 say."""
    digest = hashlib.sha256()
    for number, name in enumerate(CLASSES):
        drawing = draw(np.random.default_rng([0, 0, number]), name, BuiltinConfig())
        digest.update(render(drawing, 48, np.arange(3) * 0.4).tobytes())
    assert digest.hexdigest() == "88bdc1c84d78c4541fb20acb79932d3a9cb997ee8615f64f4e97ad5fc2100d55"


@pytest.mark.parametrize("cue", CUES, ids=lambda cue: cue.name)
def test_a_cue_of_strength_0_is_neither_in_the_labels_nor_in_the_pixels(cue):
    others = {other.name: 1.0 for other in CUES if other is not cue}
    times_s = np.arange(6) * 0.21
    without = [dataclasses.replace(only(patterns=4, **others), **size) for size in
               ({}, {"lines": 9, "drift_hz": 3.0, "pulse_s": 0.3, "step_s": 0.5})]
    names = class_names(without[0])
    assert len(names) == (2 ** 5 if cue.name == "appearance" else 2 ** 4 * 4)
    level = {"hue": "hue_level", "texture": "line_level", "motion": "band_level", "period": "light_level",
             "steps": "bar_level", "appearance": "paper"}
    for config in without:
        drawing = draw(np.random.default_rng(5), names[0], config)
        assert not np.any(getattr(drawing, level[cue.name]))
    with_it = dataclasses.replace(without[0], **{cue.name: 1.0})
    assert not np.array_equal(render(draw(np.random.default_rng(5), class_names(with_it)[0], with_it), 40, times_s),
                              render(draw(np.random.default_rng(5), names[0], without[0]), 40, times_s))


def test_the_greatest_strengths_stay_within_the_range_of_video():
    config = only(hue=4, texture=4, motion=4, period=4, steps=4, appearance=2, patterns=MAX_PATTERNS)
    for name in class_names(config)[::17]:
        frames = render(draw(np.random.default_rng(1), name, config), 32, np.arange(3) * 0.3)
        assert frames.min() >= 16 and frames.max() <= 240


def test_a_strength_scales_what_is_drawn():
    for strength in (0.5, 2.0):
        strong = draw(np.random.default_rng(1), CLASSES[0], BuiltinConfig(texture=strength, motion=strength))
        plain = draw(np.random.default_rng(1), CLASSES[0])
        assert strong.line_level == pytest.approx(strength * plain.line_level)
        assert strong.band_level == pytest.approx(strength * plain.band_level)
        assert strong.light_level == plain.light_level


@given(hue=st.booleans(), texture=st.booleans(), motion=st.booleans(), period=st.booleans(), steps=st.booleans(),
       appearance=st.booleans(), classes=st.integers(1, 1200))
@settings(max_examples=150, deadline=None)
def test_a_number_of_classes_is_met_exactly_or_refused_with_the_numbers_that_are_possible(classes, **at_work):
    config = only(**{name: float(value) for name, value in at_work.items()})
    possible = possible_classes(config)
    if classes in possible:
        made = dataclasses.replace(config, patterns=patterns_for(classes, config))
        assert len(set(class_names(made))) == classes
    else:
        with pytest.raises(UsageError) as error:
            patterns_for(classes, config)
        assert all(str(number) in str(error.value) for number in possible) and error.value.fix


def test_no_cue_at_all_is_refused():
    with pytest.raises(UsageError, match="nothing to tell apart"):
        class_names(NOTHING)


@pytest.mark.parametrize("hue", [0.0, 1.0])
def test_papers_stay_apart_whatever_the_shade_and_the_hue(hue):
    config = only(appearance=1, patterns=MAX_PATTERNS, hue=hue)
    found = {}
    for name in class_names(config):
        for number in range(20):
            frame = render(draw(np.random.default_rng(number), name, config), 32, np.zeros(1))[0]
            found.setdefault((frame[32:40].mean(), frame[40:].mean()), set()).add(name.split("-")[-1])
    assert all(len(papers) == 1 for papers in found.values())
    assert len(set().union(*found.values())) == MAX_PATTERNS


def law(config, name, times_s, position, bins=4, draws=FEW):
    """How often each joint state of a cue's phase at `times_s` comes up: relative to the first, so that it is few."""
    states = []
    for number in range(draws):
        phases = position(draw(np.random.default_rng([len(name), number]), name, config), times_s)
        states.append(tuple(np.round((phases - phases[0]) % 1.0 * bins).astype(int) % bins))
    return Counter(states)


@pytest.mark.parametrize(("apart_s", "alike"), [(8 / 30, True), (4 / 30, False)])
def test_bands_half_a_period_apart_move_up_and_down_alike(apart_s, alike):
    """15 / stride Hz: frames `stride` apart are half a period apart, give or take the same; at half of it a quarter."""
    config, at = only(motion=1, drift_hz=15 / 8), np.array([0.0, apart_s])
    up, down = (np.array([np.diff(draw(np.random.default_rng([seed, number]), name, config).band_position(at))[0]
                          for number in range(FEW)]) % 1.0 for seed, name in enumerate(MOTIONS))
    assert (distance(up, down) < 1.95 * np.sqrt(2 / FEW)) == alike
    assert alike or np.abs(up - 0.25).max() < 0.05 and np.abs(down - 0.75).max() < 0.05


def test_one_jump_tells_nothing_about_steps_and_two_tell_all():
    config = only(steps=1, step_s=1.0)
    for span_s, blind in ((0.96, True), (2.07, False)):
        times_s = np.linspace(0, span_s, 9)
        onward, back = (law(config, name, times_s, lambda drawing, at: drawing.bar_position(at))
                        for name in ("onward", "back"))
        if blind:
            assert onward.keys() == back.keys()
            assert max(abs(onward[state] - back[state]) for state in onward) < 5 * np.sqrt(FEW / 8)
        else:
            assert not onward.keys() & back.keys()


def test_the_bars_of_the_frames_jump_the_way_the_drawing_says():
    config = only(steps=1, step_s=1.0, size=96)
    drawing = dataclasses.replace(draw(np.random.default_rng(2), "onward", config), ripples=np.zeros((0, 4)))
    profile_TW = luma(drawing, np.arange(0, 4, 0.25)).mean(axis=1) - drawing.background
    wave_T = profile_TW @ np.exp(-2j * np.pi * drawing.bars * (np.arange(96) + 0.5) / 96)
    turned = np.round(np.angle(wave_T[1:] / wave_T[:-1]) / (np.pi / 2)).astype(int)
    assert set(turned) == {0, drawing.steps[0]} and np.count_nonzero(turned) in (3, 4)


@pytest.mark.parametrize("resolution", [40, 48, 64])
def test_the_lines_keep_the_contrast_that_the_rule_says(resolution):
    side = evaluation_crop(resolution)
    drawing = dataclasses.replace(draw(np.random.default_rng(2), "rows", only(texture=1, lines=36)),
                                  ripples=np.zeros((0, 4)))
    frame_HW = torch.from_numpy(render(drawing, 144, np.zeros(1))[0, :144])
    picture = resize(frame_HW[None, :, :, None].expand(1, 144, 144, 3), side)[0, 4:-4, 4:-4, 0].double().numpy()
    assert picture.std() * np.sqrt(2) / drawing.line_level == pytest.approx(np.sinc(36 / side) ** 2, abs=0.04)


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_written_set_is_a_folder_source_with_its_settings_beside(tmp_path):
    config, seen = only(hue=1, appearance=1), []
    made = synthesize(tmp_path / "new" / "set", config, classes=6, clips=42, workers=1,
                      progress=lambda done, total: seen.append((done, total)))
    assert made.classes == tuple(f"{hue}-p0{number}" for hue in sorted(HUES) for number in range(3))
    assert made.counts == {"train": 24, "val": 12, "test": 12} and seen == [(done, 48) for done in range(1, 49)]
    facts = json.loads((made.folder / "synth.json").read_text())
    assert BuiltinConfig(**facts["settings"]) == made.config and facts["classes"] == list(made.classes)
    assert facts["one_frame_ceiling"] == 1.0 and set(facts["rules"]) == {"hue", "appearance"}
    assert "X-Bottleneck" in (made.folder / "README.md").read_text()
    data = prepare(DataConfig(path=str(made.folder), cache_dir=str(tmp_path / "cache")), short_side=96, workers=1)
    assert data.classes == made.classes
    assert (len(data.train), len(data.val), len(data.test)) == (24, 12, 12)


def test_a_written_set_follows_the_seed_alone(tmp_path):
    config = only(steps=1, step_s=0.4)
    folders = [synthesize(tmp_path / str(workers), config, clips=16, workers=workers).folder for workers in (1, 2)]
    assert files_of(folders[0]) == files_of(folders[1])
    other = synthesize(tmp_path / "other", dataclasses.replace(config, seed=1), clips=16).folder
    clips = [{data for path, data in files_of(folder).items() if path.suffix == ".mp4"}
             for folder in (folders[0], other)]
    assert not clips[0] & clips[1] and len(clips[0]) == 16


def test_nothing_that_is_there_is_written_over(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        synthesize(tmp_path / "full", only(hue=1))
    with pytest.raises(DataError, match="not a folder"):
        synthesize(tmp_path / "full" / "mine.txt", only(hue=1))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "mine.txt"]
    (tmp_path / "empty").mkdir()
    assert synthesize(tmp_path / "empty", only(hue=1), clips=8).counts["train"] == 4


def test_a_failure_leaves_nothing(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "set", only(hue=1), clips=8, progress=stop)
    assert not list(tmp_path.iterdir())


SYNTHESIZE = """
import sys, pathlib
from expand import logs
from expand.config.schema import BuiltinConfig
from expand.data.synthetic.rendering import synthesize
with logs.shown_by(lambda line: print(line, flush=True)):
    synthesize(pathlib.Path(sys.argv[1]) / "set", BuiltinConfig(size=40, seconds=1.0, fps=8), clips=400,
               workers=int(sys.argv[2]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_while_synthesizing_leaves_no_set_and_the_next_one_clears_up(tmp_path, workers):
    kill_amid_rendering(tmp_path, workers, SYNTHESIZE)
    assert not (tmp_path / "set").exists() and list(tmp_path.iterdir())
    leftovers, number = list(tmp_path.iterdir()), 0
    while any(leftover.exists() for leftover in leftovers):  # until its children have ended, they hold its lock
        synthesize(tmp_path / "set", only(hue=1), clips=4)
        shutil.rmtree(tmp_path / "set")
        number += 1
        assert number < 50
        time.sleep(0.1)
    assert not list(tmp_path.iterdir())
