from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from expand.config.schema import BuiltinConfig, DataConfig
from expand.data.sources import cache_dir, count_classes, list_clips
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
    touch(folder(tmp_path), "train/run/.DS_Store", "train/run/notes.txt", "train/.git/x.mp4", "train/readme.md")
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
    touch(tmp_path, "train/run/a.mp4", "valid/run/b.mp4")
    with pytest.raises(DataError, match="has no folder val; found train, valid"):
        list_clips(DataConfig(path=str(tmp_path)))
    with pytest.raises(DataError, match="no such file"):
        list_clips(DataConfig(train=str(tmp_path / "t.csv"), val=str(tmp_path / "v.csv")))
    (tmp_path / "t.csv").write_text("a.mp4 run\n")
    with pytest.raises(DataError, match="no list for val"):
        list_clips(DataConfig(train=str(tmp_path / "t.csv")))


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
