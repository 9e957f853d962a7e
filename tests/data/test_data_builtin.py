from __future__ import annotations

import dataclasses
import functools
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

from expand.config.schema import BuiltinConfig, DataConfig
from expand.data import prepare
from expand.data.synthetic import (
    CLASSES,
    HUES,
    MOTIONS,
    ONE_FRAME_CEILING,
    PERIOD_S,
    PERIODS,
    TEXTURES,
    clip_files,
    draw,
    ensure_rendered,
    render,
    set_folder,
)
from expand.data.transforms import resize
from expand.space.geometry import evaluation_crop

SMALL = BuiltinConfig(size=40, seconds=1.0, fps=8, train_clips=33, val_clips=16, test_clips=16)
DRAWS = 3000


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("builtin")
    ensure_rendered(SMALL, folder, 1, lambda line: None)
    return folder


def contents(config, cache_dir):
    return {path.relative_to(set_folder(config, cache_dir)): path.read_bytes()
            for clips in clip_files(config, cache_dir).values() for path, _ in clips}


@functools.cache
def drawings(name, seed=0, count=DRAWS):
    return [draw(np.random.default_rng([seed, number]), name) for number in range(count)]


def test_every_class_of_every_split_has_as_many_clips_and_counts_are_rounded_up(rendered):
    config = DataConfig(cache_dir=str(rendered), builtin=SMALL)
    data = prepare(config, short_side=96, workers=1, report=print)
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
    assert len(prepare(own, short_side=96, workers=1, report=print).train) == 48


def test_rendering_follows_the_seed_alone(rendered, tmp_path):
    ensure_rendered(SMALL, tmp_path, 2, lambda line: None)
    assert contents(SMALL, tmp_path) == contents(SMALL, rendered)
    other = dataclasses.replace(SMALL, seed=1)
    assert set_folder(other, tmp_path) != set_folder(SMALL, tmp_path)


def test_no_two_clips_are_the_same_in_or_across_splits(rendered):
    assert len(set(contents(SMALL, rendered).values())) == 48 + 16 + 16


def test_the_set_is_rendered_once(rendered):
    lines = []
    ensure_rendered(SMALL, rendered, 1, lines.append)
    assert not lines


def test_an_odd_size_is_rounded_up(tmp_path):
    config = dataclasses.replace(SMALL, size=33, train_clips=16)
    ensure_rendered(config, tmp_path, 1, lambda line: None)
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
    assert len(HUES) * len(TEXTURES) / len(CLASSES) == ONE_FRAME_CEILING == 0.25


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
    ensure_rendered(config, tmp_path, 1, lambda line: None)
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
from expand.config.schema import BuiltinConfig
from expand.data.synthetic import ensure_rendered
config = BuiltinConfig(size=40, seconds=1.0, fps=8, train_clips=64, val_clips=16, test_clips=16)
ensure_rendered(config, pathlib.Path(sys.argv[1]), int(sys.argv[2]), lambda line: print(line, flush=True))
"""
RENDERED = dataclasses.replace(SMALL, train_clips=64)


def start_rendering(folder, workers):
    command = [sys.executable, "-c", RENDER, str(folder), str(workers)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_while_rendering_leaves_nothing_half(tmp_path, workers):
    process = start_rendering(tmp_path, workers)
    process.stdout.readline()
    while process.poll() is None and not list(tmp_path.rglob("*.mp4")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not set_folder(RENDERED, tmp_path).exists()
    ensure_rendered(RENDERED, tmp_path, 1, lambda line: None)
    assert all(path.is_file() for path, _ in clip_files(RENDERED, tmp_path)["test"])
    assert not list((tmp_path / "builtin").glob(".rendering-*"))


def test_a_second_process_waits_for_the_first(tmp_path):
    processes = [start_rendering(tmp_path, 1) for _ in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(len(text.splitlines()) for text in said) == [0, 1]
