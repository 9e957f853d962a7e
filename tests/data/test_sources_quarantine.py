from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expand.config.schema import BuiltinConfig, DataConfig
from expand.data.sources import list_clips, list_run_clips, quarantine_file, read_quarantine, write_quarantine
from expand.data.sources.clip import Clip, ClipList
from expand.data.sources.run_list import read_clips, write_clips, write_run_list
from expand.errors import DataError


def folder(root: Path) -> Path:
    for name in ("train/run/a.mp4", "train/run/b.mp4", "train/jump/c.mp4", "val/run/d.mp4", "val/jump/e.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def names(config: DataConfig, **options: bool) -> list[str]:
    return [clip.path.name for clip in list_clips(config, **options).clips]


def test_clips_in_quarantine_are_left_out_with_a_note(tmp_path):
    config = DataConfig(path=str(folder(tmp_path)))
    assert quarantine_file(config) == tmp_path / "quarantine.csv"
    write_quarantine(quarantine_file(config), [(tmp_path / "train/run/a.mp4", "corrupt", "no frame, none"),
                                               (tmp_path / "val/run/gone.mp4", "missing", "not there")])
    assert (tmp_path / "quarantine.csv").read_text() == (
        'path,kind,reason\ntrain/run/a.mp4,corrupt,"no frame, none"\nval/run/gone.mp4,missing,not there\n')
    assert names(config) == ["c.mp4", "b.mp4", "e.mp4", "d.mp4"]
    assert list_clips(config).notes[-1] == f"left out 1 clip that {tmp_path / 'quarantine.csv'} names"
    assert "a.mp4" in names(config, quarantine=False)


def test_a_quarantine_that_leaves_nothing_out_is_said(tmp_path):
    config = DataConfig(path=str(folder(tmp_path / "set")), quarantine=str(tmp_path / "q.csv"))
    write_quarantine(tmp_path / "q.csv", [(tmp_path / "elsewhere/train/run/a.mp4", "corrupt", "no frame")])
    listed = list_clips(config)
    assert listed.notes[-1] == f"{tmp_path / 'q.csv'} names 1 clip, none of them among these"
    assert len(listed.clips) == 5


def test_relative_and_absolute_paths_meet(tmp_path, monkeypatch):
    monkeypatch.chdir(folder(tmp_path / "set").parent)
    (tmp_path / "q.csv").write_text("path,kind,reason\nset/./train/run/a.mp4,x,y\n"
                                    f"{tmp_path}/set/val/jump/../run/d.mp4,x,y\n")
    config = DataConfig(path="set", quarantine="q.csv")
    assert names(config) == ["c.mp4", "b.mp4", "e.mp4"]
    assert set(read_quarantine(Path("q.csv"))) == {tmp_path / "set/train/run/a.mp4", tmp_path / "set/val/run/d.mp4"}


def test_the_quarantine_lies_beside_a_list_and_is_no_list_itself(tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "t.txt").write_text("a.mp4 run\nb.mp4 jump\nc.mp4 run\nd.mp4 jump\n")
    config = DataConfig(train=str(lists / "t.txt"), root=str(tmp_path))
    assert quarantine_file(config) == lists / "quarantine.csv"
    assert quarantine_file(DataConfig(path=str(lists / "t.txt"))) == lists / "quarantine.csv"
    before = {clip.path.name: clip.split for clip in list_clips(config).clips}
    gone = next(name for name, split in before.items() if split == "val")
    write_quarantine(quarantine_file(config), [(tmp_path / gone, "hang", "took 60 s")])
    after = {clip.path.name: clip.split for clip in list_clips(config).clips}
    assert after == {name: split for name, split in before.items() if name != gone}  # no other clip moves
    folder(tmp_path / "set")
    (tmp_path / "set/quarantine.csv").write_text("path,kind,reason\n")
    (tmp_path / "set/data-report.json").write_text("{}")
    assert list_clips(DataConfig(path=str(tmp_path / "set"))).notes == ()


def test_a_split_or_class_that_is_all_in_quarantine_is_named(tmp_path):
    config = DataConfig(path=str(folder(tmp_path)))
    write_quarantine(quarantine_file(config), [(tmp_path / "train/jump/c.mp4", "empty", "0 bytes")])
    with pytest.raises(DataError, match="all clips of class 'jump' in train are in quarantine"):
        list_clips(config)


def test_a_quarantine_that_is_none_or_missing_is_a_clear_error(tmp_path):
    config = DataConfig(path=str(folder(tmp_path)), quarantine=str(tmp_path / "q.csv"))
    with pytest.raises(DataError, match="no such file") as raised:
        list_clips(config)
    assert "x3d-expand data check" in str(raised.value)
    assert len(names(config, quarantine=False)) == 5
    (tmp_path / "q.csv").write_text("file,why\nx,y\n")
    with pytest.raises(DataError, match="has no column path"):
        list_clips(config)
    (tmp_path / "q.csv").write_text("path,kind,reason\n,corrupt,no path\n")
    with pytest.raises(DataError, match="q.csv:2: a line without a path"):
        list_clips(config)


def test_built_in_clips_may_be_left_out_too(tmp_path):
    config = DataConfig(cache_dir=str(tmp_path), builtin=BuiltinConfig(train_clips=16, val_clips=16, test_clips=16))
    clips = list_clips(config).clips
    write_quarantine(quarantine_file(config), [(clips[3].path, "corrupt", "x")])
    assert list_clips(config).clips == clips[:3] + clips[4:]


FILE = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name not in (".", ".."))


@st.composite
def clip_lists(draw: st.DrawFn) -> ClipList:
    classes = draw(st.lists(FILE, min_size=1, max_size=4, unique=True).map(tuple))
    clip = st.builds(Clip, FILE.map(lambda name: Path("/clips", name)), st.integers(0, len(classes) - 1),
                     st.sampled_from(["train", "val", "test"]), st.none() | FILE)
    return ClipList(classes, tuple(draw(st.lists(clip, max_size=6))))


@given(listed=clip_lists())
def test_what_is_written_is_read_back_exactly(tmp_path_factory, listed):
    path = tmp_path_factory.getbasetemp() / "clips.csv"
    write_clips(path, listed)
    assert read_clips(path) == listed


def test_a_runs_list_is_a_source_with_its_own_order_of_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clips = tuple(Clip(Path(f"{split}{label}\udce9.mp4"), label, split, f"p{label}") for split in ("train", "val")
                  for label in (2, 0, 1))
    listed = ClipList(("run", "jump", "10"), clips)
    write_clips(Path("out/clips.csv"), listed)
    absolute = tuple(Clip(tmp_path / clip.path, clip.label, clip.split, clip.group) for clip in clips)
    assert read_clips(Path("out/clips.csv")) == ClipList(listed.classes, absolute)
    again = list_clips(DataConfig(path="out/clips.csv"))
    assert (again.classes, again.clips) == (listed.classes, absolute)


def test_a_run_keeps_its_clips_but_not_the_built_in_ones(tmp_path):
    config, path = DataConfig(path=str(folder(tmp_path / "set"))), tmp_path / "clips.csv"
    listed = list_clips(config)
    assert list_run_clips(path, config) == listed
    write_run_list(path, config, listed)
    (tmp_path / "set/train/run/new.mp4").write_bytes(b"")
    assert list_run_clips(path, config).clips == listed.clips and len(list_clips(config).clips) == 6
    builtin = DataConfig(cache_dir=str(tmp_path))
    write_run_list(tmp_path / "none.csv", builtin, list_clips(builtin))
    assert not (tmp_path / "none.csv").exists()
    assert list_run_clips(tmp_path / "none.csv", builtin) == list_clips(builtin)


def test_a_path_that_goes_up_from_a_link_is_kept_as_the_system_reads_it(tmp_path, monkeypatch):
    folder(tmp_path / "disk/set")
    (tmp_path / "disk/lists").mkdir()
    (tmp_path / "lists").symlink_to(tmp_path / "disk/lists")
    (tmp_path / "lists/all.csv").write_text("path,label,split\n../set/train/run/a.mp4,run,train\n"
                                            "../set/train/jump/c.mp4,jump,train\n../set/val/run/d.mp4,run,val\n")
    monkeypatch.chdir(tmp_path)
    config = DataConfig(path="lists/all.csv")
    write_run_list(tmp_path / "clips.csv", config, list_clips(config))
    monkeypatch.chdir(tmp_path / "disk")
    assert all(clip.path.is_file() for clip in list_run_clips(tmp_path / "clips.csv", config).clips)


def test_clips_that_were_moved_are_named_with_the_file_that_says_where_they_were(tmp_path):
    config, path = DataConfig(path=str(folder(tmp_path / "set"))), tmp_path / "clips.csv"
    write_run_list(path, config, list_clips(config))
    (tmp_path / "set").rename(tmp_path / "new")
    with pytest.raises(DataError, match="none of the 5 clips of this run exists any more") as raised:
        list_run_clips(path, config)
    assert str(path) in str(raised.value) and "write their new places into that file" in str(raised.value)
    path.write_text(path.read_text().replace("/set/", "/new/"))
    assert len(list_run_clips(path, config).clips) == 5


@pytest.mark.parametrize("text, what", [
    ("", "is no list of a run's clips"), ("path,label\n/a.mp4,run\n", "is no list of a run's clips"),
    ("path,label,split,group,number\n/a.mp4,run,train,,0\n/b.mp4,ru", "cannot be read"),
    ("path,label,split,group,number\n/a.mp4,run,train,,0\n/b.mp4,jump,train,,0\n", "class 0 'jump'"),
    ("path,label,split,group,number\n/a.mp4,run,train,,1\n", "lacks a class")])
def test_a_runs_list_that_was_changed_is_a_clear_error(tmp_path, text, what):
    (tmp_path / "clips.csv").write_text(text)
    with pytest.raises(DataError, match=what) as raised:
        read_clips(tmp_path / "clips.csv")
    assert "changed by hand" in str(raised.value)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_clips(tmp_path / "nowhere.csv")
