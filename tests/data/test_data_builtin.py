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
    APPEARANCES,
    CLASSES,
    MOTIONS,
    ONE_FRAME_CEILING,
    PERIODS,
    clip_files,
    draw,
    ensure_rendered,
    render,
    set_folder,
)
from expand.data.transforms import resize
from expand.space.geometry import evaluation_crop

SMALL = BuiltinConfig(size=40, seconds=1.0, fps=8, train_clips=25, val_clips=12, test_clips=12)
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
    assert data.classes == CLASSES and len(CLASSES) == 12 and data.classes[0] == "plain-up-fast"
    for split, each in ((data.train, 3), (data.val, 1), (data.test, 1)):
        assert Counter(clip.label for clip in split) == {label: each for label in range(12)}
    assert all((clip.height, clip.width, len(clip.times_s)) == (40, 40, 8) for clip in data.train)


def test_clips_are_real_h264_in_the_layout_of_any_folder(rendered):
    folder = set_folder(SMALL, rendered)
    assert sorted(entry.name for entry in folder.iterdir()) == ["test", "train", "val"]
    with av.open(str(folder / "val" / "rows-up-slow" / "0000.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    own = DataConfig(path=str(folder), cache_dir=str(rendered))
    assert len(prepare(own, short_side=96, workers=1, report=print).train) == 36


def test_rendering_follows_the_seed_alone(rendered, tmp_path):
    ensure_rendered(SMALL, tmp_path, 2, lambda line: None)
    assert contents(SMALL, tmp_path) == contents(SMALL, rendered)
    other = dataclasses.replace(SMALL, seed=1)
    assert set_folder(other, tmp_path) != set_folder(SMALL, tmp_path)


def test_no_two_clips_are_the_same_in_or_across_splits(rendered):
    assert len(set(contents(SMALL, rendered).values())) == 36 + 12 + 12


def test_the_set_is_rendered_once(rendered):
    lines = []
    ensure_rendered(SMALL, rendered, 1, lines.append)
    assert not lines


def test_an_odd_size_is_rounded_up(tmp_path):
    config = dataclasses.replace(SMALL, size=33, train_clips=12)
    ensure_rendered(config, tmp_path, 1, lambda line: None)
    with av.open(str(clip_files(config, tmp_path)["train"][0][0])) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (34, 34)


def test_the_label_decides_about_nothing_but_itself():
    """Same random stream, different class: only direction, period and grating differ."""
    for number in range(20):
        drawn = [dataclasses.asdict(draw(np.random.default_rng(number), name)) for name in CLASSES]
        for own in ("direction", "grating"):
            assert len({drawing.pop(own) for drawing in drawn}) > 1
        ratios = {round(drawing.pop("period_s") / drawn[0].get("period_s", drawing["speed"]), 6) for drawing in drawn}
        assert len(ratios) == 2
        assert all(str(drawing) == str(drawn[0]) for drawing in drawn)


def distance(one, other):
    """Largest difference of two samples' distribution functions (Kolmogorov-Smirnov)."""
    values = np.sort(np.concatenate([one, other]))
    return np.abs(np.searchsorted(np.sort(one), values, "right") / len(one)
                  - np.searchsorted(np.sort(other), values, "right") / len(other)).max()


@pytest.mark.parametrize("time_s", [0.0, 0.4, 1.7, 2.9])
def test_at_any_instant_position_and_brightness_are_distributed_alike_for_every_motion_and_period(time_s):
    bound = 1.95 * np.sqrt(2 / DRAWS)  # exceeded by chance once in a thousand comparisons
    at = np.array([time_s])
    drawn = [drawings(f"plain-{motion}-{period}", seed) for seed, (motion, period)
             in enumerate((motion, period) for motion in MOTIONS for period in PERIODS)]
    measures = [lambda drawing: drawing.position(at)[0], lambda drawing: drawing.brightness(at)[0],
                lambda drawing: (drawing.position(at)[0] + drawing.brightness(at)[0] / 40) % 1.0]
    for measure in measures:
        samples = [np.array([measure(drawing) for drawing in group]) for group in drawn]
        assert max(distance(samples[0], sample) for sample in samples[1:]) < bound
    assert distance(np.array([drawing.position(at)[0] for drawing in drawn[0]]), np.linspace(0, 1, DRAWS)) < bound


def test_one_frame_leaves_four_equally_frequent_classes():
    assert len(APPEARANCES) / len(CLASSES) == ONE_FRAME_CEILING == 0.25


def test_motion_and_period_show_over_time():
    times_s = np.arange(0, 3, 0.05)
    for name, direction in (("plain-up-fast", -1), ("plain-down-fast", 1)):
        moved = np.diff(draw(np.random.default_rng(3), name).position(times_s))
        assert np.median(np.sign(moved)) == direction
    fast, slow = (draw(np.random.default_rng(3), f"plain-up-{period}").brightness(times_s) for period in PERIODS)
    turns = [np.count_nonzero(np.diff(np.sign(np.diff(series)))) for series in (fast, slow)]
    assert turns[0] >= 6 and turns[1] <= 3


def test_the_disc_wraps_around_whole():
    drawing = draw(np.random.default_rng(5), "plain-down-slow")
    times_s = np.arange(0, 3, 0.1)
    frames = render(drawing, 96, times_s)[:, :96].astype(float)
    background = render(dataclasses.replace(drawing, contrast=1e-9), 96, times_s)[:, :96].astype(float)
    area = (frames - background).sum(axis=(1, 2)) / drawing.brightness(times_s) / 96 ** 2
    assert area == pytest.approx(np.full(len(area), np.pi / 4 * drawing.diameter ** 2), rel=0.03)


def stripes(side_pixels, name, size=96):
    """Contrast of the texture at `side_pixels`: spread along the lines' direction within the disc's middle."""
    drawing = dataclasses.replace(draw(np.random.default_rng(2), name), phase=0.5, x=0.5, speed=0.0)
    frame_HW = torch.from_numpy(render(drawing, size, np.array([0.3]))[0, :size])
    small = resize(frame_HW[None, :, :, None].expand(1, size, size, 3), side_pixels)[0, :, :, 0].float()
    a, b = int(side_pixels * 0.38), int(side_pixels * 0.62)
    middle = small[a:b, a:b]
    return float(middle.std()) / float(drawing.brightness(np.array([0.3]))[0]), float(middle.mean())


@pytest.mark.parametrize("name", ["rows-up-slow", "columns-up-slow"])
def test_the_grating_needs_pixels(name):
    assert stripes(evaluation_crop(40), name)[0] < 0.05
    assert stripes(evaluation_crop(64), name)[0] > 0.12
    assert stripes(96, name)[0] > 0.4


def test_all_appearances_have_the_same_mean_brightness():
    plain, rows, columns = (stripes(evaluation_crop(40), f"{name}-up-slow")[1] for name in APPEARANCES)
    assert rows == pytest.approx(plain, rel=0.02) and columns == pytest.approx(plain, rel=0.02)


def test_the_grating_survives_the_encoder(tmp_path):
    config = BuiltinConfig(seconds=1.0, train_clips=12, val_clips=12, test_clips=12)
    ensure_rendered(config, tmp_path, 1, lambda line: None)
    path, label = clip_files(config, tmp_path)["train"][CLASSES.index("rows-down-fast")]
    drawing = draw(np.random.default_rng([config.seed, 0, label]), CLASSES[label])
    with av.open(str(path)) as container:
        decoded = np.stack([frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)])
    drawn = render(drawing, 96, np.arange(15) / 15)
    error = decoded[:, :96].astype(float) - drawn[:, :96]
    assert np.abs(error).mean() < 1.0 and np.sqrt((error ** 2).mean()) < 0.1 * drawn[:, :96].std()


RENDER = """
import sys, pathlib
from expand.config.schema import BuiltinConfig
from expand.data.synthetic import ensure_rendered
config = BuiltinConfig(size=40, seconds=1.0, fps=8, train_clips=60, val_clips=12, test_clips=12)
ensure_rendered(config, pathlib.Path(sys.argv[1]), int(sys.argv[2]), lambda line: print(line, flush=True))
"""
RENDERED = dataclasses.replace(SMALL, train_clips=60)


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
