from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import time
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expand.config.schema import DataConfig
from expand.data import list_clips, prepare
from expand.data.check import check_clips, find_problems, measure, refuse_problems, shortness_reason, truncation_reason
from expand.data.check.measure import CLIP, Sketch, by_class_and_split, same_contents
from expand.data.frames.decode import ClipReader
from expand.data.sources.clip import Clip, ClipList
from expand.errors import DataError, UsageError

FPS = 25


def film(path: Path, seed: int, frames: int = 12, height: int = 32, width: int = 48, codec: str = "libx264") -> Path:
    """A clip of moving blobs that no other seed gives."""
    rng = np.random.default_rng(seed)
    blobs = rng.uniform(0, 255, (4, 6, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(frames):
            grown = np.roll(np.kron(blobs, np.ones((height // 4, width // 6, 1))), number, axis=1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(grown), format="rgb24")))
        container.mux(stream.encode())
    return path


def remuxed(source: Path, target: Path) -> Path:
    """The same stream in the container that the suffix names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return target


def sound(path: Path) -> Path:
    """A file with sound alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(source: Path, target: Path, share: float) -> Path:
    """The first bytes of a Matroska file."""
    whole = remuxed(source, target.with_suffix(".whole.mkv"))
    target.write_bytes(whole.read_bytes()[:round(share * whole.stat().st_size)])
    whole.unlink()
    return target


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    root = tmp_path_factory.mktemp("films")
    for split, seed in (("train", 0), ("val", 50)):
        for label, name in enumerate(("jump", "run")):
            for number in range(3):
                film(root / split / name / f"{number}.mp4", seed + 10 * label + number, frames=12 + 3 * number)
    return root


@pytest.fixture
def folder(tmp_path, films):
    return shutil.copytree(films, tmp_path / "set")


def checked(folder, workers=1, out=None, **options):
    return check_clips(DataConfig(path=str(folder), **options), out=out, workers=workers)


def found(result):
    """{name: (kind, quarantined)} of the problems; names are paths below the split."""
    return {"/".join(Path(problem["path"]).parts[-3:]): (problem["kind"], problem["quarantined"])
            for problem in result["problems"]}


def clips_left(folder, **options):
    return {"/".join(clip.path.parts[-3:]) for clip in list_clips(DataConfig(path=str(folder), **options)).clips}


def test_a_good_set_has_no_problem_and_gets_a_report_alone(folder):
    seen = []
    result = check_clips(DataConfig(path=str(folder)), workers=2, progress=lambda *counts: seen.append(counts))
    assert result["problems"] == [] and result["quarantine"] is None and refuse_problems(result) is None
    assert sorted(entry.name for entry in folder.iterdir()) == ["data-report.json", "train", "val"]
    assert seen == [(done, 12) for done in range(1, 13)]
    figures = result["splits"]["train"]
    assert (figures["clips"], figures["unreadable"]) == (6, 0)
    assert figures["length_s"] == {"min": 0.44, "median": 0.56, "max": 0.68}
    assert figures["fps"] == {"min": 25, "median": 25, "max": 25} and figures["short_side"]["median"] == 32
    assert result["classes"]["run"]["val"]["clips"] == 3


def test_the_report_holds_everything_and_how_it_came_about(folder):
    (folder / "train" / "run" / "0.mp4").write_bytes(b"")
    result = checked(folder)
    report = json.loads(Path(result["report"]).read_text())
    for key in ("classes", "splits", "limits", "notes", "honoured"):
        assert report[key] == json.loads(json.dumps(result[key])), key
    assert report["problems"][0]["path"] == str(folder / "train" / "run" / "0.mp4")
    assert report["settings"]["path"] == str(folder) and report["settings"]["timeout_s"] == 60.0
    assert report["versions"]["av"] == av.__version__ and report["date"].startswith("20")


def test_the_limits_are_what_a_search_would_settle_and_the_clips_can_fill(folder, tmp_path):
    film(folder / "train" / "run" / "9.mp4", 99, frames=40, height=64, width=96)
    result = checked(folder)
    data = prepare(DataConfig(path=str(folder), cache_dir=str(tmp_path / "cache")), short_side=32, workers=1)
    limits = result["limits"]
    assert limits == {"clip_s": round(data.median_s, 6), "frames": 15, "resolution": 28, "fps": 25}


@pytest.mark.parametrize(("fps", "length_s", "frames"), [(25, 0.56, 15), (30, 1.0, 31), (60, 1.0, 31), (10, 2.0, 21),
                                                         (29.97, 100 / 29.97, 101), (0, 0.0, None)])
def test_no_more_than_30_frames_a_second_differ(fps, length_s, frames):
    from expand.data.check.measure import search_limits
    table = rows((length_s, fps, 240))
    assert search_limits(table, table["readable"], length_s, DataConfig())["frames"] == frames


def rows(*clips):
    table = np.zeros(len(clips), CLIP)
    for row, (length_s, fps, side) in zip(table, clips):
        row["readable"], row["length_s"], row["fps"], row["height"], row["width"] = True, length_s, fps, side, side
        row["content"] = len(clips)
    return table


BROKEN = {
    "missing": lambda good, path: path.symlink_to("nowhere.mp4"),
    "empty": lambda good, path: path.write_bytes(b""),
    "no-video": lambda good, path: sound(path),
    "corrupt": lambda good, path: path.write_bytes(good.read_bytes()[:200] + bytes(3000)),
    "tiny": lambda good, path: film(path, 5, height=4, width=6, codec="mpeg4"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_named_and_left_out_by_a_search(folder, kind):
    good = folder / "train" / "run" / "0.mp4"
    names = [folder / split / "run" / "bad.mp4" for split in ("train", "val")]
    lists = "".join(f"{path} {path.parent.name}\n" for path in sorted(folder.glob("train/*/*.mp4")))
    if kind == "missing":  # a folder holds no file that is not there; a list may
        (folder / "train.csv").write_text(lists + f"{names[0]} run\n")
        config = DataConfig(train=str(folder / "train.csv"), val_share=0.3)
        result = check_clips(config)
        assert found(result) == {"train/run/bad.mp4": ("missing", True)} or \
            found(result) == {"run/bad.mp4": ("missing", True)}
        assert names[0] not in {clip.path for clip in list_clips(config).clips}
        return
    for path in names:
        BROKEN[kind](good, path)
    result = checked(folder)
    assert found(result) == {f"{split}/run/bad.mp4": (kind, True) for split in ("train", "val")}
    assert all(problem["class"] == "run" and problem["split"] in ("train", "val") for problem in result["problems"])
    assert len(clips_left(folder)) == 12 and result["quarantine"] == folder / "quarantine.csv"
    with pytest.raises(DataError, match="2 problems in 14 clips") as raised:
        refuse_problems(result)
    assert f"a search leaves out the clips in {result['quarantine']}" in str(raised.value)


class Murderous(ClipReader):
    """A reader that dies of files of some names."""

    def __iter__(self):
        if self.path.stem == "crash":
            faulthandler.disable()  # pytest's, which would tell of it
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.path.stem == "hang":
            time.sleep(60)
        return super().__iter__()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crash_or_a_hang_is_the_problem_of_one_clip(folder, monkeypatch, workers):
    monkeypatch.setattr(measure, "ClipReader", Murderous)
    for name in ("crash", "hang"):
        film(folder / "train" / "run" / f"{name}.mp4", 7)
    began = time.monotonic()
    result = checked(folder, workers, timeout_s=0.7)
    assert found(result) == {"train/run/crash.mp4": ("crash", True), "train/run/hang.mp4": ("hang", True)}
    crash, hang = (problem["reason"] for problem in result["problems"])
    assert "SIGSEGV" in crash and "0.7 s" in hang
    assert result["splits"]["train"]["unreadable"] == 2 and time.monotonic() - began < 20


def test_a_cut_file_is_told_by_what_it_gives_and_stays_in_use(folder):
    whole = film(folder.parent / "long.mp4", 70, frames=100)
    cut(whole, folder / "train" / "run" / "cut.mkv", 0.5)
    result = checked(folder)
    assert found(result) == {"train/run/cut.mkv": ("truncated", False)}
    (problem,) = result["problems"]
    assert "of the 4.0 s that its header announces" in problem["reason"]
    assert result["quarantine"] is None and "train/run/cut.mkv" in clips_left(folder)
    with pytest.raises(DataError, match="1 problem in 13 clips") as raised:
        refuse_problems(result)
    assert "the others stay in use" in str(raised.value)


def header(**values):
    row = np.zeros((), CLIP)
    whole = {"readable": True, "frames": 250, "decoded": 250, "length_s": 9.96, "fps": 25.0}
    for name, value in {**whole, **values}.items():
        row[name] = value
    return row


@pytest.mark.parametrize(("values", "reason"), [
    ({"announced_s": 10.0}, None),
    ({"announced_s": 10.9}, None),
    ({"announced_s": 20.0}, "gives 10.0 s of the 20.0 s that its header announces"),
    ({"announced_frames": 500}, "gives 10.0 s of the 20.0 s that its header announces"),
    ({"announced_s": 20.0, "announced_frames": 250}, None),  # the last picture stands still
    ({"announced_frames": 260}, None),
    ({"announced_frames": 500, "frames": 250, "decoded": 500, "fps": 50.0}, None),  # every other one is taken
    ({"damaged": 2}, "2 packets could not be decoded"),
    ({"damaged": 1, "broken_off": True}, "the file breaks off"),
    ({"damaged": 3, "broken_off": True, "announced_s": 20.0},
     "gives 10.0 s of the 20.0 s that its header announces; the file breaks off; 3 packets could not be decoded"),
])
def test_headers_that_are_off_by_a_little_are_believed(values, reason):
    assert truncation_reason(header(**values)) == reason


def test_folders_of_frames_are_clips_like_any_other(folder):
    for name in ("whole", "spoilt"):
        (frames := folder / "val" / "jump" / name).mkdir()
        film(frames / "%04d.jpg", 90 if name == "whole" else 91, frames=12, codec="mjpeg")
    (folder / "val" / "jump" / "spoilt" / "0005.jpg").write_bytes(b"no picture")
    result = checked(folder, frame_rate=12.0)
    (problem,) = result["problems"]
    assert problem["path"] == folder / "val" / "jump" / "spoilt" and problem["kind"] == "truncated"
    assert problem["reason"] == "1 picture could not be decoded"
    assert result["classes"]["jump"]["val"]["clips"] == 5 and result["splits"]["val"]["fps"]["min"] == 12


@pytest.mark.parametrize(("decoded", "length_s", "announced", "damaged", "fps"), [
    (60, 58 / 60, 60.0, False, 60), (250, 9.96, 1000.0, False, 25), (100, 3.3, 29.97, False, 29.97),
    (100, 9.96, 25.0, True, 25), (1, 0.0, 12.0, False, 12), (1, 0.0, None, False, 0), (26, 1.0, None, False, 25)])
def test_a_rate_is_what_came_and_the_headers_where_that_agrees(decoded, length_s, announced, damaged, fps):
    assert measure.source_fps(decoded, length_s, announced, damaged) == pytest.approx(fps)


def test_clips_that_show_next_to_nothing_are_too_short(folder):
    film(folder / "train" / "run" / "one.mp4", 80, frames=1)
    assert found(checked(folder)) == {"train/run/one.mp4": ("too-short", True)}
    assert "train/run/one.mp4" not in clips_left(folder)
    assert "less than a tenth" in shortness_reason(header(length_s=0.3), 4.0) \
        and shortness_reason(header(length_s=0.5), 4.0) is None


def test_a_copy_in_another_container_leaks_and_only_train_gives_it_up(folder):
    remuxed(folder / "val" / "run" / "0.mp4", folder / "train" / "run" / "copy.mkv")
    result = checked(folder)
    assert found(result) == {"train/run/copy.mkv": ("duplicate", True)}
    assert f"the same pictures as {folder / 'val' / 'run' / '0.mp4'} in val" in result["problems"][0]["reason"]
    everything = {"/".join(path.parts[-3:]) for path in folder.glob("*/*/*.m*")}
    assert clips_left(folder) == everything - {"train/run/copy.mkv"}


def test_a_file_that_both_lists_name_is_not_quarantined_for_val_would_lose_it_too(folder):
    clips = sorted(folder.glob("*/*/*.mp4"))
    for split, shared in (("train", "val/run/0.mp4"), ("val", None)):
        named = [path for path in clips if path.parts[-3] == split] + ([folder / shared] if shared else [])
        (folder / f"{split}.txt").write_text("".join(f"{path} {path.parent.name}\n" for path in named))
    config = DataConfig(train=str(folder / "train.txt"), val=str(folder / "val.txt"))
    result = check_clips(config)
    (problem,) = result["problems"]
    assert (problem["kind"], problem["split"], problem["quarantined"]) == ("duplicate", "train", False)
    assert "the same file as" in problem["reason"] and "in val" in problem["reason"] and result["quarantine"] is None


def test_one_content_with_two_labels_is_for_a_person_to_settle(folder):
    shutil.copy(folder / "train" / "run" / "0.mp4", folder / "train" / "jump" / "same.mp4")
    result = checked(folder)
    assert found(result) == {"train/run/0.mp4": ("duplicate", False), "train/jump/same.mp4": ("duplicate", False)}
    assert "which is of class 'jump'" in result["problems"][1]["reason"] and result["quarantine"] is None
    (folder / "quarantine.csv").write_text("path,why\ntrain/jump/same.mp4,it is a run\ntrain/gone.mp4,it was bad\n")
    settled = checked(folder)
    assert settled["problems"] == [] and "1 clip left out by hand, in the quarantine list" in settled["notes"]
    assert len(clips_left(folder)) == 12


def test_copies_within_a_split_and_class_are_counted_and_no_problem(folder):
    for name in ("again.mp4", "once-more.mp4"):
        shutil.copy(folder / "train" / "run" / "0.mp4", folder / "train" / "run" / name)
    result = checked(folder)
    assert result["problems"] == []
    assert "2 clips with the same content as another of the same split and class" in result["notes"]


def test_the_list_is_made_anew_and_goes_when_nothing_is_left_to_quarantine(folder):
    bad = folder / "train" / "run" / "bad.mp4"
    bad.write_bytes(b"")
    assert checked(folder)["quarantine"] and "train/run/bad.mp4" not in clips_left(folder)
    film(bad, 77)
    result = checked(folder)
    assert result["problems"] == [] and result["quarantine"] is None and not (folder / "quarantine.csv").exists()
    assert any(note.startswith("no clip needs to be left out any more") for note in result["notes"])
    assert "train/run/bad.mp4" in clips_left(folder)


def test_lines_that_a_person_wrote_survive_a_check(folder):
    (folder / "quarantine.csv").write_text("path,kind,reason\ntrain/run/0.mp4,ugly,\n")
    (folder / "val" / "run" / "0.mp4").write_bytes(b"")
    assert set(found(checked(folder))) == {"val/run/0.mp4"}
    assert clips_left(folder, max_unreadable=1.0).isdisjoint({"train/run/0.mp4", "val/run/0.mp4"})
    film(folder / "val" / "run" / "0.mp4", 78)
    assert checked(folder)["quarantine"] and "train/run/0.mp4" not in clips_left(folder)


def test_a_split_that_is_made_stays_the_same_but_for_the_quarantined(folder):
    (folder / "train.csv").write_text("".join(f"{path} {path.parent.name}\n" for path in folder.glob("*/*/*.mp4")))
    config = DataConfig(train=str(folder / "train.csv"), val_share=0.4)
    before = {clip.path: clip.split for clip in list_clips(config).clips}
    victim = next(path for path, split in before.items() if split == "val")
    victim.write_bytes(b"")
    assert [problem["path"] for problem in check_clips(config)["problems"]] == [victim]
    after = {clip.path: clip.split for clip in list_clips(config).clips}
    assert after == {path: split for path, split in before.items() if path != victim}


def test_a_set_of_which_nothing_can_be_read_is_not_quarantined_whole(folder):
    for path in folder.glob("*/*/*.mp4"):
        path.write_bytes(b"")
    result = checked(folder)
    assert len(result["problems"]) == 12 and result["quarantine"] is None
    assert result["limits"] == {"clip_s": None, "frames": None, "resolution": None, "fps": None}


def test_a_class_that_loses_all_its_clips_is_said(folder):
    for path in folder.glob("train/run/*.mp4"):
        path.write_bytes(b"")
    assert any("class 'run' in train" in note for note in checked(folder)["notes"])


def test_out_takes_the_files_and_says_how_a_search_finds_them(folder, tmp_path):
    (folder / "train" / "run" / "0.mp4").write_bytes(b"")
    result = checked(folder, out=tmp_path / "out")
    assert sorted(entry.name for entry in folder.iterdir()) == ["train", "val"]
    assert result["quarantine"] == tmp_path / "out" / "quarantine.csv" and not result["honoured"]
    with pytest.raises(DataError, match="--set data.quarantine=" + str(result["quarantine"])):
        refuse_problems(result)
    assert len(clips_left(folder, quarantine=str(result["quarantine"]))) == 11
    with open(result["quarantine"], "a") as file:
        file.write(f"{folder / 'val' / 'run' / '0.mp4'},by hand,\n")
    checked(folder, out=tmp_path / "out")
    assert len(clips_left(folder, quarantine=str(result["quarantine"]))) == 10


def test_an_out_that_cannot_be_written_is_said_before_any_clip_is_decoded(folder, monkeypatch):
    monkeypatch.setattr(measure, "process_map", None)
    (folder.parent / "file").write_text("")
    with pytest.raises(UsageError, match="--out"):
        checked(folder, out=folder.parent / "file" / "out")


def test_the_built_in_clips_are_checked_where_nothing_is_named(tmp_path):
    from expand.config.schema import BuiltinConfig
    builtin = BuiltinConfig(size=32, seconds=1.0, fps=8, train_clips=16, val_clips=16, test_clips=16)
    result = check_clips(DataConfig(cache_dir=str(tmp_path), builtin=builtin), out=tmp_path / "out", workers=2)
    assert result["problems"] == [] and {split: of["clips"] for split, of in result["splits"].items()} == {
        "train": 16, "val": 16, "test": 16}


def test_real_odd_clips_are_each_called_by_their_fault(shared_data, tmp_path):
    odd = shared_data / "odd"
    for number, path in enumerate(sorted(odd.iterdir())):
        place = tmp_path / "set" / ("val" if number % 4 == 3 else "train") / f"class{number % 2}" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    problems = checked(tmp_path / "set", workers=2)["problems"]
    kinds = {Path(problem["path"]).name: problem["kind"] for problem in problems}
    assert kinds.items() >= {
        "decord_corrupted.mp4": "truncated", "derived_truncated_BaseballPitch.avi": "truncated",
        "derived_truncated_demo.mp4": "corrupt", "moviepy_tiny.mp4": "tiny",
        "zero_bytes.webm": "empty", "imageio_issue245.gif": "too-short",
        "ucf101_v_ApplyEyeMakeup_g01_c01.avi": "duplicate"}.items()


def test_an_interrupted_check_goes_on_where_it_stopped(folder, lines):
    def interrupt(done, total):
        if done == 7:
            raise KeyboardInterrupt

    whole = checked(shutil.copytree(folder, folder.parent / "other" / "set"))
    with pytest.raises(KeyboardInterrupt):
        check_clips(DataConfig(path=str(folder)), progress=interrupt)
    unfinished = folder / ".data-report.json.unfinished"
    changed = min(folder.glob("train/*/*.mp4"))
    *others, (path, state, row) = [json.loads(line) for line in unfinished.read_text().splitlines()[1:] if line]
    assert len(others) == 6 and path != str(changed)
    row[1] = 10 ** 12  # more frames than there is room for: a line that something else wrote
    rows = [unfinished.read_text().splitlines()[0], *map(json.dumps, [*others, (path, state, row)]), '["torn']
    unfinished.write_text("\n".join(rows))
    shutil.copy(changed, folder / "copy.bin")
    os.replace(folder / "copy.bin", changed)
    seen = []
    result = check_clips(DataConfig(path=str(folder)), progress=lambda *counts: seen.append(counts))
    assert seen == [(done, 12) for done in range(6, 13)]  # one that was changed, one overflown, and five left
    assert any("5 of 12 clips are done" in line for line in lines) and not unfinished.exists()
    assert (result["classes"], result["limits"]) == (whole["classes"], whole["limits"])


def test_what_another_version_measured_is_measured_again(folder, monkeypatch):
    (folder / ".data-report.json.unfinished").write_text('["0.0.0"]\n["a", "b", []]\nnonsense')
    seen = []
    check_clips(DataConfig(path=str(folder)), progress=lambda *counts: seen.append(counts))
    assert seen[0] == (1, 12) and sorted(entry.name for entry in folder.iterdir()) == [
        "data-report.json", "train", "val"]


def test_little_is_kept_of_a_clip():
    assert CLIP.itemsize <= 64


def test_a_clip_is_known_by_its_pictures_not_by_their_order_or_number():
    pictures = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)

    def content(order):
        sketch = Sketch()
        for number in order:
            sketch.add(pictures[number])
        return sketch.content

    assert content(range(50)) == content([*range(49, -1, -1), *range(50)]) != content(range(0, 50, 10))
    dropped = sum(content([n for n in range(50) if n != gone]) == content(range(50)) for gone in range(50))
    assert dropped == 46  # a frame more or less is seldom noticed


def test_many_copies_of_one_content_take_no_long_time():
    entries = [("train", 0, 0, True)] * 20_000 + [("train", 1, 0, True)]
    listed, table = made(entries)
    began = time.monotonic()
    assert len(find_problems(listed, table, {}, None)) == len(entries)
    assert time.monotonic() - began < 5


tables = st.lists(st.tuples(st.sampled_from(["train", "val", "test"]), st.integers(0, 2), st.integers(0, 4),
                            st.booleans()), min_size=1, max_size=14)


def made(entries):
    clips = tuple(Clip(Path(f"/{number}.mp4"), label, split) for number, (split, label, _, _) in enumerate(entries))
    table = rows(*[(1.0, 25, 32)] * len(entries))
    table["content"] = [content for _, _, content, _ in entries]
    table["readable"] = [readable for _, _, _, readable in entries]
    table["frames"] = table["decoded"] = 26
    return ClipList(("a", "b", "c"), clips), table


@given(tables)
def test_after_the_quarantine_train_shares_nothing_and_val_and_test_are_whole(entries):
    listed, table = made(entries)
    problems = find_problems(listed, table, {}, None)
    gone = {problem.index for problem in problems if problem.quarantined}
    assert all(listed.clips[index].split == "train" for index in gone)
    left = [set(), set()]
    for index, (split, _, content, readable) in enumerate(entries):
        if readable and index not in gone:
            left[split == "train"].add(content)
    assert not left[0] & left[1]
    assert len({(problem.index, problem.kind) for problem in problems}) == len(problems)


@given(tables)
def test_a_content_with_two_labels_never_goes_unsaid(entries):
    listed, table = made(entries)
    named = {problem.index for problem in find_problems(listed, table, {}, None)}
    for group in same_contents(table):
        if len({listed.clips[index].label for index in group}) > 1:
            assert named >= set(group.tolist())


@given(tables)
def test_every_clip_is_counted_once_in_the_figures(entries):
    listed, table = made(entries)
    classes, splits = by_class_and_split(listed, table)
    for name, of in splits.items():
        assert of["clips"] == sum(entry[0] == name for entry in entries)
        assert of["unreadable"] == sum(entry[0] == name and not entry[3] for entry in entries)
        assert sum(per[name]["clips"] for per in classes.values()) == of["clips"]
