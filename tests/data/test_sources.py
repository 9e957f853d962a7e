from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from expand.config.schema import BuiltinConfig, DataConfig
from expand.data.sources import count_classes, list_clips
from expand.data.sources.paths import cache_dir
from expand.errors import DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def folder(root: Path) -> Path:
    return touch(root, "train/run/a.mp4", "train/run/b.avi", "train/jump/c.mp4", "val/run/d.mp4", "val/jump/e.mp4")


def test_a_folder_gives_classes_by_name_and_clips_in_order(tmp_path):
    listed = list_clips(DataConfig(path=str(folder(tmp_path))))
    assert listed.classes == ("jump", "run")
    assert [(clip.path.name, clip.label, clip.split) for clip in listed.clips] == [
        ("c.mp4", 0, "train"), ("a.mp4", 1, "train"), ("b.avi", 1, "train"), ("e.mp4", 0, "val"), ("d.mp4", 1, "val")]


def test_hidden_files_and_what_lies_beside_clips_are_no_clips(tmp_path):
    touch(folder(tmp_path), "train/run/.DS_Store", "train/run/notes.txt", "train/.git/x.mp4", "train/readme.md",
          "train/run/Thumbs.db", "train/run/desktop.ini", "train/run/._a.mp4", "train/jump/jump.rar")
    assert len(list_clips(DataConfig(path=str(tmp_path))).clips) == 5


@pytest.mark.parametrize("line", ["clips/a b.mp4 run", "clips/a b.mp4,run", '"clips/a b.mp4" run', "clips/a b.mp4\trun",
                                  ' clips/a b.mp4 , "run"'])
def test_a_line_may_be_parted_by_blank_comma_or_tab(tmp_path, line):
    (tmp_path / "train.csv").write_text(f"path,label\n# some\n\n{line}\nx.mp4 jump\n")
    (tmp_path / "val.csv").write_text("y.mp4 jump\n")
    clip = list_clips(DataConfig(path=str(tmp_path))).clips[0]
    assert (clip.path, clip.label, clip.split) == (tmp_path / "clips" / "a b.mp4", 1, "train")


def test_folders_without_classes_hold_the_clips_of_the_lists_beside_them(tmp_path):
    touch(tmp_path, "train/a.mp4", "train/b.mp4", "val/c.mp4")
    (tmp_path / "train.csv").write_text("train/a.mp4 run\ntrain/b.mp4 jump\n")
    (tmp_path / "val.csv").write_text("val/c.mp4 run\n")
    assert [clip.label for clip in list_clips(DataConfig(path=str(tmp_path))).clips] == [1, 0, 1]


def test_numbered_labels_keep_their_order_and_lists_may_be_named_one_by_one(tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.txt").write_text("".join(f"{split}{label}.mp4 {label}\n" for label in (10, 2, 0)))
    config = DataConfig(**{split: str(tmp_path / f"{split}.txt") for split in ("train", "val", "test")})
    assert list_clips(config).classes == ("0", "2", "10") and count_classes(config) == 3
    assert [clip.label for clip in list_clips(config).clips] == [2, 1, 0] * 3


def test_every_line_that_cannot_be_read_is_named_with_file_and_number(tmp_path):
    (tmp_path / "train.csv").write_text("a.mp4 run\nb.mp4\nc.mp4,jump,3\n")
    (tmp_path / "val.csv").write_text("d.mp4 run\n,jump\n")
    with pytest.raises(DataError) as raised:
        list_clips(DataConfig(path=str(tmp_path)))
    text = str(raised.value)
    assert "3 lines cannot be read" in text and "path,label" in text
    assert all(f"{place}: expected `path label`" in text for place in (
        tmp_path / "train.csv:2", tmp_path / "train.csv:3", tmp_path / "val.csv:2"))


@pytest.mark.parametrize("content", ["a.mp4 run\nb.mp4 jump\n", ""])
def test_an_empty_split_is_named(tmp_path, content):
    (tmp_path / "train.csv").write_text(content)
    (tmp_path / "val.csv").write_text("\n")
    with pytest.raises(DataError, match="no clips for (train and )?val"):
        list_clips(DataConfig(path=str(tmp_path)))


def test_a_class_unknown_to_train_is_named_with_its_place_and_a_suggestion(tmp_path):
    touch(folder(tmp_path), "val/jmup/f.mp4", "test/fly/g.mp4")
    with pytest.raises(DataError) as raised:
        list_clips(DataConfig(path=str(tmp_path)))
    text = str(raised.value)
    assert f"{tmp_path / 'val' / 'jmup'}: 'jmup' in val; did you mean 'jump'?" in text and "'fly' in test" in text


def test_one_class_is_refused(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "val/run/b.mp4")
    with pytest.raises(DataError, match="only one class, 'run'"):
        list_clips(DataConfig(path=str(tmp_path)))


def test_a_missing_folder_split_or_list_is_named_with_the_layout(tmp_path):
    with pytest.raises(DataError, match="no such folder") as raised:
        list_clips(DataConfig(path=str(tmp_path / "nowhere")))
    assert "{train,val}/<class>/<clip>" in str(raised.value)
    touch(tmp_path, "val/run/a.mp4", "other/run/b.mp4")
    with pytest.raises(DataError, match="has no folder train; found other, val"):
        list_clips(DataConfig(path=str(tmp_path)))
    assert len(list_clips(DataConfig(path=str(tmp_path)), to_train=False).clips) == 1
    with pytest.raises(DataError, match="no such file"):
        list_clips(DataConfig(train=str(tmp_path / "t.csv"), val=str(tmp_path / "v.csv")))
    (tmp_path / "v.csv").write_text("a.mp4 run\n")
    with pytest.raises(DataError, match="no list for train"):
        list_clips(DataConfig(val=str(tmp_path / "v.csv")))
    with pytest.raises(DataError, match="no such folder") as raised:
        list_clips(DataConfig(val=str(tmp_path / "v.csv"), root=str(tmp_path / "nowhere")), to_train=False)
    assert "data.root" in str(raised.value)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_the_val_folder_may_have_its_other_names(tmp_path, name):
    touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", f"{name}/run/c.mp4")
    listed = list_clips(DataConfig(path=str(tmp_path)))
    assert [(clip.path, clip.split) for clip in listed.clips if clip.split != "train"] == [
        (tmp_path / name / "run" / "c.mp4", "val")]
    assert listed.notes == (() if name == "val" else (f"read as folders train, {name}",))


def test_two_folders_for_one_split_are_refused(tmp_path):
    touch(folder(tmp_path), "valid/run/x.mp4")
    with pytest.raises(DataError, match="both val and valid are val"):
        list_clips(DataConfig(path=str(tmp_path)))


def test_class_folders_alone_are_split(tmp_path):
    touch(tmp_path, *(f"{name}/{number}.mp4" for name in ("run", "jump", "train") for number in range(10)))
    listed = list_clips(DataConfig(path=str(tmp_path), test_share=0.1))
    counts = Counter((clip.split, listed.classes[clip.label]) for clip in listed.clips)
    assert listed.classes == ("jump", "run", "train") and all(
        counts["train", name] == 7 and counts["val", name] == 2 and counts["test", name] == 1
        for name in listed.classes)
    assert [clip.split for clip in listed.clips] == ["train"] * 21 + ["val"] * 6 + ["test"] * 3
    assert any("val (20%) and test (10%) made from the train clips" in note for note in listed.notes)


def test_val_is_made_from_train_where_only_it_is_missing_and_unused_folders_are_named(tmp_path):
    touch(tmp_path, *(f"train/{name}/{number}.mp4" for name in ("run", "jump") for number in range(5)),
          "test/run/t.mp4", "vla/run/x.mp4")
    listed = list_clips(DataConfig(path=str(tmp_path)))
    assert Counter(clip.split for clip in listed.clips) == {"train": 8, "val": 2, "test": 1}
    assert "not used: vla" in listed.notes[0]


def test_flat_split_folders_without_lists_are_refused_with_the_layout(tmp_path):
    touch(tmp_path, "train/a.mp4", "val/b.mp4")
    with pytest.raises(DataError, match="only train, val, and no class folders in them") as raised:
        list_clips(DataConfig(path=str(tmp_path)))
    assert "<class>/<clip>" in str(raised.value)
    with pytest.raises(DataError, match="set is no class: it has splits of its own") as raised:
        list_clips(DataConfig(path=str(folder(tmp_path / "above" / "set").parent)))
    assert f"is data.path={tmp_path / 'above' / 'set'} meant?" in str(raised.value)
    touch(tmp_path / "texts", "a/readme.md", "b/readme.md")
    with pytest.raises(DataError, match="has no clips in its folders a, b"):
        list_clips(DataConfig(path=str(tmp_path / "texts")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no class folders; found nothing"):
        list_clips(DataConfig(path=str(tmp_path / "empty")))
    with pytest.raises(DataError, match="has no class folders; found only files"):
        list_clips(DataConfig(path=str(touch(tmp_path / "flat", "a.mp4"))))


def test_a_folder_of_frames_is_a_clip_and_thumbnails_are_not(tmp_path):
    touch(tmp_path, "run/a/img_001.jpg", "run/a/img_002.jpg", "run/a/flow/x.png", "run/deep/b/1.PNG", "run/c.mp4",
          "run/c.jpg", "run/c/frame.jpg", "run/thumbs/t.jpg", "run/d/poster.jpg", "run/d/e.mp4", "jump/f/1.jpeg",
          "jump/g/notes.txt", "jump/h/1.jpg", "jump/direct.jpg")
    found = [str(clip.path.relative_to(tmp_path)) for clip in list_clips(
        DataConfig(path=str(tmp_path)), to_train=False).clips]
    assert sorted(found) == ["jump/f", "jump/h", "run/a", "run/c.mp4", "run/d/e.mp4", "run/deep/b"]


def test_listing_asks_nothing_about_a_file(tmp_path, monkeypatch):
    touch(folder(tmp_path), *(f"train/run/{number}.mp4" for number in range(50)))
    asked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **options: asked.append(args[0]) or stat(*args, **options))
    assert len(list_clips(DataConfig(path=str(tmp_path))).clips) == 55
    assert not [path for path in map(str, asked) if path.endswith((".mp4", ".avi"))]


def test_linked_folders_are_followed_and_a_link_upwards_ends(tmp_path):
    touch(tmp_path / "elsewhere", "clips/x.mp4")
    folder(tmp_path / "set")
    (tmp_path / "set/train/run/more").symlink_to(tmp_path / "elsewhere/clips")
    (tmp_path / "set/train/run/loop").symlink_to(tmp_path / "set")
    (tmp_path / "set/train/run/gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    names = [clip.path.name for clip in list_clips(DataConfig(path=str(tmp_path / "set"))).clips]
    assert names == ["c.mp4", "a.mp4", "b.avi", "gone.mp4", "x.mp4", "e.mp4", "d.mp4"]


def test_links_in_a_circle_and_links_to_nowhere_end(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "val/run/c.mp4", "val/jump/d.mp4")
    (tmp_path / "train/run/there").symlink_to(tmp_path / "val/run")
    (tmp_path / "val/run/back").symlink_to(tmp_path / "train/run")
    (tmp_path / "train/jump/self.mp4").symlink_to("self.mp4")
    (tmp_path / "notes.csv").symlink_to("nowhere.csv")
    paths = [str(clip.path.relative_to(tmp_path)) for clip in list_clips(DataConfig(path=str(tmp_path))).clips]
    assert paths == ["train/jump/b.mp4", "train/jump/self.mp4", "train/run/a.mp4", "train/run/there/c.mp4",
                     "val/jump/d.mp4", "val/run/back/a.mp4", "val/run/c.mp4"]


def test_a_folder_of_several_forms_is_refused_until_one_is_named(tmp_path):
    folder(tmp_path)
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text(f"{split}/1.mp4 swim\n{split}/2.mp4 fly\n")
    with pytest.raises(DataError, match="may be read as lists or as folders of classes") as raised:
        list_clips(DataConfig(path=str(tmp_path)))
    assert "--set data.format=lists or --set data.format=folders" in str(raised.value)
    assert list_clips(DataConfig(path=str(tmp_path), format="lists")).classes == ("fly", "swim")
    assert list_clips(DataConfig(path=str(tmp_path), format="folders")).classes == ("jump", "run")
    with pytest.raises(DataError, match="has no annotations of UCF101"):
        list_clips(DataConfig(path=str(tmp_path), format="ucf101"))


def test_numbered_class_folders_may_be_named(tmp_path):
    touch(tmp_path, "train/0/a.mp4", "train/10/b.mp4", "train/2/c.mp4", "val/2/d.mp4")
    assert list_clips(DataConfig(path=str(tmp_path))).classes == ("0", "2", "10")
    (tmp_path / "names.txt").write_text("0 run\n2 jump\n10 fly\n")
    config = DataConfig(path=str(tmp_path), class_names=str(tmp_path / "names.txt"))
    assert list_clips(config).classes == ("run", "jump", "fly")


def test_built_in_clips_are_named_without_being_rendered(tmp_path):
    config = DataConfig(cache_dir=str(tmp_path), builtin=BuiltinConfig(train_clips=17, val_clips=16, test_clips=16))
    assert len(list_clips(config).clips) == 32 + 16 + 16 and count_classes(config) == 16
    assert not list(tmp_path.iterdir())


def test_the_cache_follows_the_configuration_then_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir(DataConfig()) == tmp_path / "x3d-expand"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir(DataConfig()) == Path.home() / ".cache" / "x3d-expand"
    assert cache_dir(DataConfig(cache_dir="here")) == Path("here")


def test_listing_imports_no_torch():
    code = ("import sys; from expand.config.schema import DataConfig; from expand.data import count_classes, prepare; "
            "count_classes(DataConfig()); sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_clips_without_splits_are_all_tested(tmp_path):
    """A set that is only measured on needs no split."""
    root = touch(tmp_path, "run/a.mp4", "run/b.mp4", "jump/c.mp4")
    listed = list_clips(DataConfig(path=str(root)), to_train=False)
    assert {(clip.path.name, clip.split) for clip in listed.clips} == {(f"{name}.mp4", "test") for name in "abc"}
