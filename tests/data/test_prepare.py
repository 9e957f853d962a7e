from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest

from expand.config.schema import DataConfig
from expand.data import list_clips, prepare
from expand.data.frames import cache as cache_module
from expand.data.frames.cache import FrameCache
from expand.data.loading import prepared as prepared_module
from expand.data.loading.prepared import cache_clips, estimate_bytes
from expand.errors import DataError
from tests.data.clips import decoded, frames_of, steady, ten, write_clip, write_folder, write_frames


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("set"), clips=4, splits=("train", "val", "test"))


@pytest.fixture
def folder(tmp_path, source):
    return shutil.copytree(source, tmp_path / "set")


def prepared(folder, workers=1, **options):
    config = DataConfig(path=str(folder), cache_dir=str(folder.parent / "cache"), **options)
    return prepare(config, short_side=32, workers=workers)


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


def test_unreadable_clips_are_named_and_left_out_up_to_the_limit(folder, lines):
    bad = folder / "train" / "run" / "1.mp4"
    bad.write_bytes(b"")
    lines.clear()
    data = prepared(folder)
    assert [path for path, _ in data.dropped] == [bad] and len(data.train) == 7
    assert any(str(bad) in line and "0 bytes" in line for line in lines)
    assert data.listed.classes == data.classes and len(data.listed.clips) == 23
    assert bad not in [clip.path for clip in data.listed.clips]


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


def test_frames_that_are_not_kept_are_said_once(folder, lines):
    data = prepared(folder, cache_gb=0.0)
    assert all(clip.store is None for clip in data.train)
    assert len([line for line in lines if "data.cache_gb is 0" in line and "decoded at each access" in line]) == 1


def test_a_clip_of_two_splits_is_told(folder, lines):
    (folder / "train.csv").write_text("".join(f"train/{name}/0.mp4 {name}\n" for name in ("run", "jump")))
    (folder / "val.csv").write_text("train/run/0.mp4 run\nval/jump/0.mp4 jump\n")
    lines.clear()
    config = DataConfig(train=str(folder / "train.csv"), val=str(folder / "val.csv"), cache_dir=str(folder / "cache"))
    prepare(config, short_side=32, workers=1)
    assert any(line.startswith("train shares 2 clips with val") for line in lines)  # the other one is a copy


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


@pytest.fixture
def dangerous(folder, monkeypatch):
    """One clip of the folder crashes the decoder, another never comes back from it."""
    reader = cache_module.ClipReader
    for name in ("run/1.mp4", "jump/2.mp4"):  # of pictures of their own: frames of a twin would do for them
        write_clip(folder / "train" / name, steady(12, 0.5), height=40, width=len(name) * 4)

    def dangerous(path, *args, **options):
        if path == folder / "train" / "run" / "1.mp4":
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
        if path == folder / "train" / "jump" / "2.mp4":
            time.sleep(60)
        return reader(path, *args, **options)

    monkeypatch.setattr(cache_module, "ClipReader", dangerous)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_clip_that_crashes_or_hangs_the_decoder_costs_that_clip_alone(folder, dangerous, workers):
    data = prepared(folder, workers=workers, max_unreadable=0.1, timeout_s=0.5)
    reasons = {path.relative_to(folder / "train").as_posix(): reason for path, reason in data.dropped}
    assert reasons == {"run/1.mp4": "crashes the decoder (SIGSEGV)",
                       "jump/2.mp4": "the decoder gave no frame for 0.5 s"}
    assert len(data.train) == 6 and all(len(frames_of(clip)) for clip in data.train)


def test_a_list_and_the_folder_it_names_share_frames_and_fingerprint(folder, monkeypatch):
    first = prepared(folder)
    for split in ("train", "val", "test"):
        clips = [clip for clip in first.listed.clips if clip.split == split]
        lines = [f"{clip.path},{first.classes[clip.label]}\n" for clip in clips]
        (folder.parent / f"{split}.csv").write_text("".join(lines))
    monkeypatch.setattr(cache_module, "ClipReader", None)
    data = prepare(DataConfig(**{split: str(folder.parent / f"{split}.csv") for split in ("train", "val", "test")},
                              cache_dir=str(folder.parent / "cache")), short_side=32, workers=1)
    assert data.fingerprint == first.fingerprint and summary(data.val) == summary(first.val)
    assert [clip.store for clip in data.train] == [clip.store for clip in first.train]


def test_folders_of_frames_are_clips_and_give_the_fingerprint_of_the_clips(folder):
    first = prepared(folder)
    pictures = folder.parent / "pictures"
    for clip in first.listed.clips:
        write_frames(pictures / clip.path.relative_to(folder).with_suffix(""), decoded(clip.path, 64))
    data = prepare(DataConfig(path=str(pictures), cache_dir=str(folder.parent / "cache"), frame_rate=12.0),
                   short_side=32, workers=1)
    assert data.fingerprint == first.fingerprint
    assert all((frames_of(one) == frames_of(other)).all() for one, other in zip(data.val, first.val))


def test_clips_listed_by_the_caller_take_the_place_of_the_configurations(folder):
    first = prepared(folder)
    fewer = replace(first.listed, clips=first.listed.clips[::2])
    (folder / "train" / "run" / "1.mp4").unlink()  # not looked at: the list says it all
    config = DataConfig(path=str(folder), cache_dir=str(folder.parent / "cache"), max_unreadable=0.1)
    data = prepare(config, short_side=32, workers=1, listed=fewer)
    missing = [path for path, _ in data.dropped]
    assert [clip.path for clip in data.listed.clips] == [clip.path for clip in fewer.clips if clip.path not in missing]


def test_the_splits_asked_for_alone_are_decoded_and_listed(folder):
    config = DataConfig(path=str(folder), cache_dir=str(folder.parent / "cache"))
    data = prepare(config, short_side=32, workers=1, splits=("val",))
    assert data.counts == {"train": 0, "val": 8, "test": 0} and {clip.split for clip in data.listed.clips} == {"val"}


def test_progress_counts_every_clip_once_and_ends_at_all(folder):
    seen = []
    config = DataConfig(path=str(folder), cache_dir=str(folder.parent / "cache"))
    prepare(config, short_side=32, workers=2, progress=lambda *counts: seen.append(counts))
    assert seen == [(number, 24) for number in range(1, 25)]


def test_the_size_is_told_before_decoding_near_to_what_it_becomes_and_only_once(folder, lines):
    data = prepared(folder)
    line = next(line for line in lines if line.startswith("decoded frames take about"))
    assert "of data.cache_gb 50" in line and str(folder.parent / "cache" / "frames") in line
    told = float(line.split("about ")[1].split(" MB")[0]) * 1e6
    stores = {clip.store for clip in data.train + data.val + data.test}
    assert told == pytest.approx(3 * sum(store.stat().st_size for store in stores), rel=0.1)  # splits hold the same
    lines.clear()
    prepared(folder)
    assert not any("take about" in line for line in lines)


def test_the_estimate_counts_what_is_there_and_decodes_where_headers_say_nothing(folder, monkeypatch):
    clips = list_clips(DataConfig(path=str(folder))).clips
    cache = FrameCache(folder.parent / "c", 1e9)
    whole = estimate_bytes(cache, clips, 32, 2)
    exact = sum(cache.get(clip.path, 0, 32).times_s.size * 32 * 48 * 3 for clip in clips if clip.split == "train")
    assert whole == pytest.approx(3 * exact, rel=0.01)
    assert estimate_bytes(FrameCache(folder.parent / "c", 1e9), clips, 32, 2) == 0.0  # all have copies in train

    class Silent(prepared_module.ClipReader):
        def __iter__(self):
            yield from super().__iter__()
            self.header = replace(self.header, frames=None, duration_s=None)

    monkeypatch.setattr(prepared_module, "ClipReader", Silent)
    assert estimate_bytes(FrameCache(folder.parent / "d", 1e9), clips, 32, 2) == pytest.approx(whole, rel=0.5)


def test_a_limit_that_another_set_has_used_up_is_made_room_in_for_this_one(folder, tmp_path, lines):
    other = write_clip(tmp_path / "other" / "x.mp4", ten(9), 240, 320)
    stale = FrameCache(folder.parent / "cache" / "frames", 1e9).get(other, 0, 240).store
    os.utime(stale, (1, 1))
    size = stale.stat().st_size
    first = prepared(folder, cache_gb=1.05 * size / 1e9)
    assert all(clip.store is not None for clip in first.train) and not stale.exists()
    lines.clear()
    assert all(clip.store for clip in prepared(folder, cache_gb=1.05 * size / 1e9).val)
    assert not any("decoded at each access" in line for line in lines)


def test_a_set_larger_than_the_limit_keeps_what_fits_and_keeps_it(folder):
    all_bytes = sum(store.stat().st_size for store in {clip.store for clip in prepared(folder).train})
    shutil.rmtree(folder.parent / "cache")
    first, again = (prepared(folder, cache_gb=all_bytes / 2 / 1e9) for _ in range(2))
    kept = [clip.store is not None for clip in first.train]
    assert 0 < sum(kept) < len(kept) and [clip.store is not None for clip in again.train] == kept
    assert summary(first.train) == summary(again.train) and first.fingerprint == again.fingerprint


def test_filling_the_cache_says_what_came_of_it(folder):
    (folder / "train" / "run" / "1.mp4").write_bytes(b"")
    config = DataConfig(path=str(folder), cache_dir=str(folder.parent / "cache"))
    seen = []
    done = cache_clips(config, short_side=32, workers=1, progress=lambda *counts: seen.append(counts))
    assert (done["clips"], done["kept"], done["direct"], done["unreadable"]) == (24, 23, 0, 1)
    frames = folder.parent / "cache" / "frames"
    stored = sum(file.stat().st_size for file in frames.glob("*.frames"))
    assert 0 < stored - done["bytes"] < 1000 * len(list(frames.glob("*.frames")))
    assert (done["short_side"], done["folder"]) == (32, str(frames)) and done["wall_s"] > 0
    assert done["estimate_bytes"] > done["bytes"] and seen[-1] == (24, 24)
    again = cache_clips(config, short_side=32, workers=1)
    assert again["estimate_bytes"] == 0 and again["bytes"] == done["bytes"]
    direct = cache_clips(replace(config, cache_gb=0.0, cache_dir=str(folder / "other")), short_side=32, workers=1)
    assert (direct["kept"], direct["direct"], direct["bytes"]) == (0, 23, 0)


def test_real_clips_are_read_as_any_folder(shared_data, tmp_path):
    config = DataConfig(path=str(shared_data / "weizmann5_motion"), cache_dir=str(tmp_path))
    data = prepare(config, short_side=64, workers=2)
    assert data.classes == ("bend_down", "bend_up", "jack", "wave1", "wave2") and not data.dropped
    assert (len(data.train), len(data.val), len(data.test)) == (60, 30, 0)
    assert 1 < data.median_s < 6


def started(folder):
    config = DataConfig(path=str(folder), cache_dir=str(folder.parent / "cache"))
    return prepare(config, short_side=32, workers=1, begins=True)


def test_single_pictures_among_videos_are_left_out_where_a_search_begins_and_not_where_one_goes_on(folder, lines):
    whole = started(folder)
    for number in range(6):  # more than data.max_unreadable allows: they are no fault
        write_clip(folder / "train" / "run" / f"still{number}.mp4", [0.0])
    data = started(folder)
    assert any(line.startswith("left out 6 clips of a single frame, which shows no motion: ") for line in lines)
    assert data.fingerprint == whole.fingerprint and len(data.listed.clips) == 24
    assert {reason for _, reason in data.dropped} == {"has one frame only"}
    assert len(prepared(folder).train) == 14, "a run of an earlier version has them"


def test_nothing_but_pictures_is_no_set_of_videos(tmp_path):
    for split in ("train", "val"):
        for name in ("run", "jump"):
            write_clip(tmp_path / "set" / split / name / "0.mp4", [0.0])
    with pytest.raises(DataError, match="all 4 clips have a single frame: these are pictures and no videos") as raised:
        started(tmp_path / "set")
    assert "<class>/<clip>/<picture>" in str(raised.value)
    for split in ("train", "val"):
        write_clip(tmp_path / "set" / split / "run" / "1.mp4", [0.0, 0.1])
    with pytest.raises(DataError, match="no clip of more than a single frame is left for class 'jump' in train"):
        started(tmp_path / "set")


def test_uneven_classes_are_said_where_a_search_begins(folder, lines):
    for number in range(20):
        shutil.copy(folder / "train" / "run" / "0.mp4", folder / "train" / "run" / f"more{number}.mp4")
    lines.clear()
    started(folder)
    assert any("classes are uneven in train: 24 clips of 'run', 4 of 'jump' (6 to 1)" in line for line in lines)
