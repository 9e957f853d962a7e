from __future__ import annotations

import os
import shutil

import pytest

from expand.config.schema import DataConfig
from expand.data import prepare
from expand.data.pool import process_map
from expand.errors import DataError
from tests.data.clips import steady, write_clip, write_folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("set"), clips=4, splits=("train", "val", "test"))


@pytest.fixture
def folder(tmp_path, source):
    return shutil.copytree(source, tmp_path / "set")


def prepared(folder, lines=None, workers=1, **options):
    config = DataConfig(path=str(folder), cache_dir=str(folder.parent / "cache"), **options)
    return prepare(config, short_side=32, workers=workers, report=(lines if lines is not None else []).append)


def summary(clips):
    return [(clip.path, clip.label, clip.times_s.tolist(), clip.height, clip.width) for clip in clips]


def test_all_splits_come_out_decoded_and_the_median_is_that_of_train(folder):
    data = prepared(folder)
    assert data.classes == ("jump", "run") and data.dropped == ()
    assert [len(split) for split in (data.train, data.val, data.test)] == [8, 8, 8]
    assert data.median_s == pytest.approx(sorted(clip.length_s for clip in data.train)[4], abs=0.13)
    assert all(clip.store.exists() for clip in data.train)


def test_the_number_of_processes_changes_nothing(folder):
    one = prepared(folder)
    shutil.rmtree(folder.parent / "cache")
    two = prepared(folder, workers=2)
    assert summary(one.train) == summary(two.train) and one.fingerprint == two.fingerprint


def test_the_fingerprint_follows_the_clips_not_their_place(folder, tmp_path):
    first = prepared(folder).fingerprint
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert prepared(moved).fingerprint == first
    write_clip(moved / "val" / "run" / "1.mp4", steady(12, 0.3))
    assert prepared(moved).fingerprint != first


def test_unreadable_clips_are_named_and_left_out_up_to_the_limit(folder):
    bad = folder / "train" / "run" / "1.mp4"
    bad.write_bytes(b"")
    lines = []
    data = prepared(folder, lines)
    assert [path for path, _ in data.dropped] == [bad] and len(data.train) == 7
    assert any(str(bad) in line and "Invalid data" in line for line in lines)


def test_more_unreadable_clips_than_allowed_are_an_error_that_says_how_to_go_on(folder):
    for number in range(2):
        (folder / "train" / "run" / f"{number}.mp4").write_bytes(b"")
    with pytest.raises(DataError) as raised:
        prepared(folder)
    text = str(raised.value)
    assert "2 of 24 clips cannot be read" in text and str(folder / "train" / "run" / "1.mp4") in text
    share = float(text.split("data.max_unreadable=")[1])
    assert len(prepared(folder, max_unreadable=share).dropped) == 2
    with pytest.raises(DataError):
        prepared(folder, max_unreadable=0.0)


def test_a_class_or_split_with_no_readable_clip_left_is_an_error(folder):
    for clip in (folder / "train" / "run").iterdir():
        clip.write_bytes(b"")
    with pytest.raises(DataError, match="no readable clip is left for class 'run' in train"):
        prepared(folder, max_unreadable=1.0)
    for clip in (folder / "val").rglob("*.mp4"):
        clip.write_bytes(b"")
    with pytest.raises(DataError, match="no readable clip is left for val, class 'run' in train"):
        prepared(folder, max_unreadable=1.0)


def test_frames_that_are_not_kept_are_said_once(folder):
    lines = []
    data = prepared(folder, lines, cache_gb=0.0)
    assert all(clip.store is None for clip in data.train)
    assert len([line for line in lines if "data.cache_gb is 0" in line and "decoded at each access" in line]) == 1


def test_a_clip_of_two_splits_is_told(folder):
    (folder / "train.csv").write_text("".join(f"train/{name}/0.mp4 {name}\n" for name in ("run", "jump")))
    (folder / "val.csv").write_text("train/run/0.mp4 run\nval/jump/0.mp4 jump\n")
    lines = []
    config = DataConfig(train=str(folder / "train.csv"), val=str(folder / "val.csv"), cache_dir=str(folder / "cache"))
    prepare(config, short_side=32, workers=1, report=lines.append)
    assert any(line.startswith("train shares 1 clip with val") for line in lines)


def test_a_cache_folder_that_cannot_be_made_is_named(folder):
    (folder.parent / "cache").write_text("a file")
    with pytest.raises(DataError) as raised:
        prepared(folder)
    assert "data.cache_dir" in str(raised.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_folder_that_cannot_be_written_is_named(folder):
    frames = folder.parent / "cache" / "frames"
    frames.mkdir(parents=True, mode=0o500)
    with pytest.raises(DataError, match="cannot be written") as raised:
        prepared(folder)
    assert "data.cache_dir" in str(raised.value)


def _double(state, item):
    if item == "die":
        os._exit(9)
    return state * item


def test_processes_give_results_in_order_and_a_dead_one_is_a_clear_error():
    assert list(process_map(_double, 2, range(50), 2)) == [2 * number for number in range(50)]
    with pytest.raises(DataError, match="died"):
        list(process_map(_double, 2, [1, "die", 3], 2))


def test_real_clips_are_read_as_any_folder(shared_data, tmp_path):
    config = DataConfig(path=str(shared_data / "weizmann5_motion"), cache_dir=str(tmp_path))
    data = prepare(config, short_side=64, workers=2, report=print)
    assert data.classes == ("bend_down", "bend_up", "jack", "wave1", "wave2") and not data.dropped
    assert (len(data.train), len(data.val), len(data.test)) == (60, 30, 0)
    assert 1 < data.median_s < 6
