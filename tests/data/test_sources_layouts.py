"""How folders are read: splits above classes, splits below classes, or neither; never one for the other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from expand.config.schema import DataConfig
from expand.data.sources import list_clips
from expand.data.sources.clip import ClipList
from expand.errors import DataError
from tests.data.test_sources import touch


def listed(root: Path, **options) -> ClipList:
    return list_clips(DataConfig(path=str(root), **options))


def by_split(root: Path, **options) -> dict[tuple[str, str], set[str]]:
    found = listed(root, **options)
    sets: dict[tuple[str, str], set[str]] = {}
    for clip in found.clips:
        sets.setdefault((clip.split, found.classes[clip.label]), set()).add(clip.path.name)
    return sets


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Train", "VAL"), ("training", "validation"),
                                            ("TRAIN", "Valid"), ("train_videos", "val_videos"),
                                            ("train-set", "valset")])
def test_splits_within_classes_are_the_users_own(tmp_path, train, val):
    for name in ("run", "jump"):
        touch(tmp_path, *(f"{name}/{train}/{n}.mp4" for n in range(3)), f"{name}/{val}/v.mp4")
    assert by_split(tmp_path) == {(split, name): files for name in ("run", "jump")
                                  for split, files in (("train", {"0.mp4", "1.mp4", "2.mp4"}), ("val", {"v.mp4"}))}
    assert "read as class folders with train, val in each" in listed(tmp_path).notes


def test_splits_within_classes_may_have_a_test_and_val_is_made_where_it_is_missing(tmp_path):
    for name in ("run", "jump"):
        touch(tmp_path, *(f"{name}/train/{n}.mp4" for n in range(5)), f"{name}/testing/t.mp4")
    assert Counter(clip.split for clip in listed(tmp_path).clips) == {"train": 8, "val": 2, "test": 2}


def test_splits_within_classes_may_hold_groups_or_folders_of_frames(tmp_path):
    for name in ("run", "jump"):
        touch(tmp_path / "groups", f"{name}/train/anna/1.mp4", f"{name}/train/ben/1.mp4", f"{name}/val/carl/1.mp4")
        touch(tmp_path / "frames", *(f"{name}/{clip}/{n}.jpg" for clip in ("train/a", "train/b", "val/a")
                                     for n in range(3)))
    for kind in ("groups", "frames"):
        assert Counter(clip.split for clip in listed(tmp_path / kind).clips) == {"train": 4, "val": 2}


def test_a_class_called_train_may_have_splits(tmp_path):
    for name in ("train", "walk", "test"):
        touch(tmp_path, f"{name}/train/1.mp4", f"{name}/train/2.mp4", f"{name}/val/3.mp4")
    assert by_split(tmp_path).keys() == {(split, name) for name in ("train", "walk", "test")
                                         for split in ("train", "val")}


def test_a_subfolder_train_alone_is_no_split(tmp_path):
    touch(tmp_path, *(f"vehicles/{kind}/{n}.mp4" for kind in ("train", "bus") for n in range(3)),
          *(f"people/{n}.mp4" for n in range(5)))
    found = listed(tmp_path)
    assert found.classes == ("people", "vehicles") and len(found.clips) == 11


@pytest.mark.parametrize(("more", "named"), [
    (["walk/1.mp4", "walk/2.mp4"], "walk: no folder train or val"), (["run/9.mp4"], "run: 9.mp4 beside train, val"),
    (["run/new/9.mp4", "run/new/8.mp4"], "run: new/8.mp4 and 1 more beside train, val")])
def test_clips_beside_the_splits_of_classes_are_refused_by_name(tmp_path, more, named):
    for name in ("run", "jump"):
        touch(tmp_path, f"{name}/train/1.mp4", f"{name}/train/2.mp4", f"{name}/val/3.mp4")
    with pytest.raises(DataError, match="not all clips lie in such") as raised:
        listed(touch(tmp_path, *more))
    assert named in str(raised.value) and "<class>/{train,val}/<clip>" in str(raised.value)


def test_one_class_alone_with_a_test_folder_is_refused(tmp_path):
    touch(tmp_path, "cricket/test/1.mp4", "cricket/t20/2.mp4", "golf/1.mp4", "golf/2.mp4")
    with pytest.raises(DataError, match="cricket have folders of splits"):
        listed(tmp_path)


def test_two_names_of_a_split_in_one_class_are_refused(tmp_path):
    touch(tmp_path, "run/train/1.mp4", "run/val/2.mp4", "run/valid/3.mp4", "jump/train/1.mp4", "jump/val/2.mp4")
    with pytest.raises(DataError, match="both val and valid are val"):
        listed(tmp_path)


def test_several_data_sets_in_a_folder_are_refused_as_such(tmp_path):
    for name in ("first", "second"):
        touch(tmp_path, *(f"{name}/{split}/{label}/1.mp4" for split in ("train", "val") for label in ("run", "jump")))
    with pytest.raises(DataError, match="they may be classes or data sets") as raised:
        listed(tmp_path)
    assert f"--data {tmp_path / 'first'}" in str(raised.value)


@pytest.mark.parametrize(("train", "val"), [("train_videos", "val_videos"), ("train_set", "validation_set"),
                                            ("Training", "Validation"), ("videos_train", "videos_val"),
                                            ("trainset", "valset"), ("train-data", "valid-data")])
def test_split_folders_may_say_what_they_hold(tmp_path, train, val):
    for name in ("run", "jump"):
        touch(tmp_path, f"{train}/{name}/1.mp4", f"{train}/{name}/2.mp4", f"{val}/{name}/3.mp4")
    assert by_split(tmp_path) == {(split, name): files for name in ("run", "jump")
                                  for split, files in (("train", {"1.mp4", "2.mp4"}), ("val", {"3.mp4"}))}
    assert listed(tmp_path).notes[0] == f"read as folders {train}, {val}"


def test_lists_beside_folders_that_say_what_they_hold_leave_no_doubt(tmp_path):
    touch(tmp_path, "videos_train/run/1.mp4", "videos_val/run/2.mp4")
    (tmp_path / "train.txt").write_text("videos_train/run/1.mp4 run\nx.mp4 jump\n")
    (tmp_path / "val.txt").write_text("videos_val/run/2.mp4 run\n")
    assert listed(tmp_path).notes[0] == "read as lists"


@pytest.mark.parametrize("name", ["metadata.csv", "labels.csv", "train.txt"])
def test_split_folders_may_hold_a_list_of_their_clips(tmp_path, name):
    for split, files in (("train", ("1.mp4", "2.mp4")), ("val", ("3.mp4", "4.mp4"))):
        touch(tmp_path, *(f"{split}/{file}" for file in files), f"{split}/notes.txt")
        (tmp_path / split / name).write_text(f"path,label\n{files[0]},run\n{files[1]},jump\n")
    assert by_split(tmp_path) == {("train", "run"): {"1.mp4"}, ("train", "jump"): {"2.mp4"}, ("val", "run"): {"3.mp4"},
                                  ("val", "jump"): {"4.mp4"}}
    assert {clip.path.parent.name for clip in listed(tmp_path).clips if clip.split == "val"} == {"val"}


def test_classes_that_are_called_like_splits_lie_in_splits(tmp_path):
    for split in ("train", "val"):
        touch(tmp_path, f"{split}/train/1.mp4", f"{split}/test/2.mp4")
    assert by_split(tmp_path).keys() == {(split, name) for split in ("train", "val") for name in ("train", "test")}


@pytest.mark.parametrize("parts", [[f"fold{n}" for n in range(1, 6)], ["Fold_1", "Fold_2"], ["split1", "split2"],
                                   ["part-01", "part-02"]])
def test_parts_of_a_set_are_no_classes(tmp_path, parts):
    touch(tmp_path, *(f"{part}/{name}/{part}.mp4" for part in parts for name in ("run", "jump")))
    with pytest.raises(DataError, match="they are parts of one set, and no classes"):
        listed(tmp_path)
    touch(tmp_path, *(f"{part}/{name}/more.mp4" for part in parts for name in ("run", "jump")))
    assert listed(tmp_path, format="folders").classes == tuple(sorted(parts)), "unless it is said"


@pytest.mark.parametrize(("forms", "meant"), [(["videos", "frames"], "videos"), (["rgb", "flow"], "rgb"),
                                              (["images", "masks"], "images"), (["videos"], "videos"),
                                              (["dataset"], "dataset")])
def test_forms_of_a_set_are_no_classes(tmp_path, forms, meant):
    touch(tmp_path, *(f"{form}/{name}/{n}/{m}.jpg" for form in forms for name in ("run", "jump") for n in range(2)
                      for m in range(2)))
    with pytest.raises(DataError, match=f"is data.path={tmp_path / meant} meant"):
        listed(tmp_path)
    assert listed(tmp_path / meant).classes == ("jump", "run")


def test_classes_are_not_taken_for_parts_or_forms(tmp_path):
    for number, names in enumerate([("mask", "no_mask"), ("videos", "run"), ("part1", "whole"), ("recycled", "burnt")]):
        root = touch(tmp_path / str(number), *(f"{name}/{who}/{n}.mp4" for name in names for who in ("anna", "ben")
                                               for n in range(2)))
        assert listed(root).classes == tuple(sorted(names))


def test_class_folders_that_are_one_number_are_one_class_in_val(tmp_path):
    touch(tmp_path, *(f"train/{name}/1.mp4" for name in ("01", "02", "10")),
          *(f"val/{name}/2.mp4" for name in ("1", "2", "10")))
    assert listed(tmp_path).classes == ("01", "02", "10")
    assert "took class '1' for '01', which is the same number" in listed(tmp_path).notes


@pytest.mark.parametrize(("name", "text"), [
    ("metadata.csv", "file_name,label\n{0}0.mp4,run\n{0}1.mp4,run\n{0}2.mp4,jump\n{0}3.mp4,jump\n"),
    ("labels.csv", "video,tag\n0,run\n1,run\n2,jump\n3,jump\n"),
    ("metadata.jsonl", "".join(f'{{{{"file_name": "{{0}}{n}.mp4", "label": "{label}"}}}}\n'
                               for n, label in enumerate(["run", "run", "jump", "jump"]))),
    ("metadata.json", ('{{"{0}0.mp4": {{"label": "run"}}, "{0}1.mp4": {{"label": "run"}}'
                      ', "{0}2.mp4": {{"label": "jump"}}'
                      ', "{0}3.mp4": {{"label": "jump"}}}}')),
    ("my_train_list.txt", "{0}0.mp4 run\n{0}1.mp4 run\n{0}2.mp4 jump\n{0}3.mp4 jump\n")])
@pytest.mark.parametrize("inside", ["", "videos/", "train/"])
def test_a_folder_without_classes_is_read_by_its_list(tmp_path, name, text, inside):
    touch(tmp_path, *(f"{inside}{n}.mp4" for n in range(4)))
    (tmp_path / name).write_text(text.format(inside))
    found = listed(tmp_path)
    assert found.classes == ("jump", "run") and all(clip.path.is_file() for clip in found.clips)


def test_class_folders_go_before_a_list_beside_them_and_a_line_says_so(tmp_path):
    touch(tmp_path, *(f"{name}/{n}.mp4" for name in ("car", "train") for n in range(2)))
    (tmp_path / "metadata.csv").write_text("file_name,label\ncar/0.mp4,x\n")
    assert listed(tmp_path).classes == ("car", "train")
    assert any(note.startswith("not used: metadata.csv") for note in listed(tmp_path).notes)


def test_a_test_list_without_labels_is_left_out(tmp_path):
    touch(tmp_path, *(f"train/{n}.mp4" for n in range(4)), "test/9.mp4")
    (tmp_path / "train.csv").write_text("video_name,tag\n0.mp4,run\n1.mp4,run\n2.mp4,jump\n3.mp4,jump\n")
    (tmp_path / "test.csv").write_text("video_name\n9.mp4\n")
    assert {clip.split for clip in listed(tmp_path).clips} == {"train", "val"}
    assert "left out test.csv, which has no labels" in listed(tmp_path).notes


def test_a_test_list_without_labels_that_was_named_is_refused(tmp_path):
    touch(tmp_path, *(f"train/{n}.mp4" for n in range(4)), "test/9.mp4")
    (tmp_path / "train.csv").write_text("video_name,tag\n0.mp4,run\n1.mp4,run\n2.mp4,jump\n3.mp4,jump\n")
    (tmp_path / "test.csv").write_text("video_name\n9.mp4\n")
    with pytest.raises(DataError, match="test.csv"):
        listed(tmp_path, train=str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"))


@pytest.mark.parametrize("suffix", ["heic", "exr"])
def test_a_set_of_pictures_that_are_not_read_says_that_they_must_be_converted(tmp_path, suffix):
    touch(tmp_path, *(f"{name}/one/{n}.{suffix}" for name in ("run", "jump") for n in range(3)))
    with pytest.raises(DataError, match=f"(?s)in a format that is not read.*{suffix}.*convert them"):
        listed(tmp_path)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_lists_of_splits_may_be_json_where_no_class_folders_are(tmp_path, suffix):
    touch(tmp_path, *(f"v/{n}.mp4" for n in range(4)))
    rows = {"train": [(0, "run"), (1, "jump")], "val": [(2, "run"), (3, "jump")]}
    for split, own in rows.items():
        objects = [f'{{"video": "v/{n}.mp4", "label": "{label}"}}' for n, label in own]
        text = "\n".join(objects) if suffix == "jsonl" else f"[{', '.join(objects)}]"
        (tmp_path / f"{split}.{suffix}").write_text(text)
    assert by_split(tmp_path) == {(split, label): {f"{n}.mp4"} for split, own in rows.items() for n, label in own}
    touch(tmp_path, *(f"{split}/{name}/x.mp4" for split in ("train", "val") for name in ("a", "b")))
    assert listed(tmp_path).classes == ("a", "b")


def test_a_folder_with_the_whole_set_in_one_folder_says_which_is_meant(tmp_path):
    touch(tmp_path, *(f"data/{split}/{n}.mp4" for split in ("train", "test") for n in range(2)))
    with pytest.raises(DataError, match=f"is data.path={tmp_path / 'data'} meant"):
        listed(tmp_path)
