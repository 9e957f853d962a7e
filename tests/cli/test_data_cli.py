from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from expand.cli.data import KNOBS
from expand.config.schema import BuiltinConfig
from expand.data.frames.clip_files import KINDS
from expand.report.clips import TITLES, check_text, clips_frame
from tests.data.clips import steady, write_clip

MAIN = "import sys; from expand.cli import main; main()"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Every clip with pictures of its own: another size each."""
    root = tmp_path_factory.mktemp("set")
    for split, sides in (("train", (32, 48)), ("val", (64, 80))):
        for name, width in (("jump", 96), ("run", 112)):
            for height in sides:
                write_clip(root / split / name / f"{height}.mp4", steady(12, 0.75), height, width)
    return root


@pytest.fixture
def folder(tmp_path, source):
    return shutil.copytree(source, tmp_path / "set")


def spoil(folder):
    """A clip that cannot be read, a copy of a val clip in train, and a clip of one frame."""
    (folder / "train" / "run" / "bad.mp4").write_bytes(b"")
    shutil.copy(folder / "val" / "run" / "64.mp4", folder / "train" / "run" / "leak.mp4")
    write_clip(folder / "train" / "run" / "one.mp4", [0.0], 128, 96)


def test_a_good_set_ends_with_0_and_says_what_it_allows(command, folder):
    code, out, err = command("data", "check", folder)
    assert (code, err) == (0, "")
    assert f"{folder}: 8 clips, 2 classes" in " ".join(out.split()) and "No problems." in out
    assert "search.limits.frames=" in out and "larger crop has to be enlarged" in " ".join(out.split())


def test_problems_end_with_1_and_say_what_to_do(command, folder):
    spoil(folder)
    code, out, err = command("data", "check", folder)
    assert code == 1 and "Traceback" not in err
    assert "Problems: 3, in 3 clips" in out and "is empty: 0 bytes" in out and "one frame only" in out
    assert err.startswith(f"Error: {folder}: 3 problems in 11 clips\n")
    assert str(folder / "quarantine.csv") in err and str(folder / "data-report.json") in err


def test_json_is_one_value_with_the_keys_that_are_promised_and_ends_with_1_all_the_same(command, folder):
    spoil(folder)
    code, out, err = command("data", "check", folder, "--json")
    value = json.loads(out)
    assert code == 1 and err.startswith("Error: ")
    assert set(value) == {"data", "classes", "splits", "balance", "limits", "problems", "notes", "report", "quarantine",
                          "honoured"}
    assert set(value["limits"]) == {"clip_s", "frames", "resolution", "fps"}
    assert [(set(problem), problem["kind"], problem["quarantined"]) for problem in value["problems"]] == [
        ({"path", "kind", "reason", "split", "class", "quarantined"}, kind, quarantined)
        for kind, quarantined in (("empty", True), ("duplicate", True), ("too-short", True))]
    assert set(value["splits"]["train"]) == {"clips", "unreadable", "length_s", "fps", "short_side", "height", "width"}
    assert value["report"] == str(folder / "data-report.json") and value["quarantine"] == str(folder / "quarantine.csv")
    good = command("data", "check", shutil.rmtree(folder / "train" / "run") or folder, "--json")
    assert good[0] == 1 and good[1] == ""  # a class without clips to train on cannot even be listed


def test_a_search_leaves_the_quarantined_out_by_itself(command, folder):
    from expand.config import load_config
    from expand.data import list_clips
    spoil(folder)
    assert command("data", "check", folder)[0] == 1
    listed = list_clips(load_config(values={"data.path": str(folder)}).data)
    names = {clip.path.name for clip in listed.clips if clip.split == "train"}
    assert names.isdisjoint({"bad.mp4", "leak.mp4", "one.mp4"})
    assert any("quarantine" in note for note in listed.notes)


@pytest.mark.parametrize(("words", "parts"), [
    (["check", "SET", "--set", "candidate.epochs=3"], ["--set candidate.epochs=3: is no option of the clips"]),
    (["check", "SET", "--set", "data.timeout=3"], ["data.timeout", "did you mean"]),
    (["check", "SET", "--format", "folder"], ["folders"]),
    (["check", "SET", "--set", "data.train=list.txt"], ["data.path and data.train name different clips"]),
    (["check", "SET", "--out", "/proc/no/where"], ["/proc/no/where: cannot be written", "--out"]),
    (["check", "SET", "--workers", "0"], ["--workers"]),
    (["cache", "SET"], ["Missing option '--size'"]),
    (["cache", "SET", "--size", "4"], ["--size"]),
    (["synth"], ["Missing argument 'OUT'"]),
    (["synth", "OUT", "--texture", "9"], ["data.builtin.texture"]),
    (["chek"], ["No such command 'chek'"]),
])
def test_a_wrong_command_ends_with_2_and_touches_nothing(command, folder, words, parts):
    places = {"SET": folder, "OUT": folder.parent / "made"}
    code, out, err = command("data", *(places.get(word, word) for word in words))
    assert (code, out) == (2, "") and "Traceback" not in err
    assert all(part in err for part in parts), err
    assert sorted(entry.name for entry in folder.iterdir()) == ["train", "val"] and not places["OUT"].exists()


def test_a_folder_that_is_not_there_ends_with_1(command, tmp_path):
    code, out, err = command("data", "check", tmp_path / "none")
    assert (code, out) == (1, "") and str(tmp_path / "none") in err and not list(tmp_path.iterdir())


def test_lists_take_the_place_of_data(command, folder):
    for split in ("train", "val"):
        (folder / f"{split}.txt").write_text("".join(
            f"{path.relative_to(folder)} {path.parent.name}\n" for path in sorted(folder.glob(f"{split}/*/*.mp4"))))
    away = folder.parent / "lists"
    away.mkdir()
    for split in ("train", "val"):
        (folder / f"{split}.txt").rename(away / f"{split}.txt")
    code, out, err = command("data", "check", "--data-root", folder, "--set", f"data.train={away / 'train.txt'}",
                             "--set", f"data.val={away / 'val.txt'}")
    assert (code, err) == (0, "") and "8 clips, 2 classes" in out and (away / "data-report.json").exists()


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="no permission stops root")
def test_clips_that_may_only_be_read_get_their_report_in_the_current_folder(folder, tmp_path):
    (folder / "train" / "run" / "bad.mp4").write_bytes(b"")
    (here := tmp_path / "here").mkdir()
    folder.chmod(0o555)
    as_mortal = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    try:
        ended = subprocess.run([*as_mortal, sys.executable, "-c", MAIN, "data", "check", str(folder)], cwd=here,
                               capture_output=True, text=True, check=False,
                               env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])})
    finally:
        folder.chmod(0o755)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert f"--set data.quarantine={here / 'quarantine.csv'}" in ended.stderr
    assert sorted(entry.name for entry in here.iterdir()) == ["data-report.json", "quarantine.csv"]
    assert sorted(entry.name for entry in folder.iterdir()) == ["train", "val"]


def test_the_cache_is_filled_and_a_search_of_that_size_decodes_nothing(command, folder, tmp_path):
    words = ["data", "cache", folder, "--size", 32, "--set", f"data.cache_dir={tmp_path / 'cache'}"]
    code, out, err = command(*words)
    assert (code, err) == (0, "") and "8 of 8 clips are in the cache" in out and str(tmp_path / "cache") in out
    before = sorted((path, path.stat().st_ino) for path in tmp_path.glob("cache/frames/**/*.frames"))
    assert before and command(*words)[0] == 0
    assert sorted((path, path.stat().st_ino) for path in tmp_path.glob("cache/frames/**/*.frames")) == before


def test_what_does_not_fit_into_the_cache_is_counted(command, folder, tmp_path):
    code, out, _ = command("data", "cache", folder, "--size", 32, "--limit-gb", 0.00005, "--json",
                           "--set", f"data.cache_dir={tmp_path / 'cache'}")
    value = json.loads(out)
    assert code == 0 and value["kept"] + value["direct"] == value["clips"] == 8 and value["direct"] > 0
    code, out, _ = command("data", "cache", folder, "--size", 32, "--limit-gb", 0.00005,
                           "--set", f"data.cache_dir={tmp_path / 'cache'}")
    assert code == 0 and "decoded at each access" in out and "--limit-gb" in out


def test_a_set_is_made_as_asked_and_passes_the_check(command, tmp_path):
    made = tmp_path / "made"
    code, out, err = command("data", "synth", made, "--classes", 2, "--clips", 8, "--size", 32, "--seconds", 1,
                             "--texture", 0, "--motion", 0, "--period", 0, "--seed", 3)
    assert (code, err) == (0, "") and f"x3d-expand search --data {made}" in out
    assert {split.name for split in made.iterdir() if split.is_dir()} == {"train", "val", "test"}
    code, out, err = command("data", "check", made)
    assert (code, err) == (0, ""), out


def test_every_knob_of_the_made_clips_is_an_option_with_its_own_words():
    import inspect
    knobs = {name: words for name, _, _, words in KNOBS}
    named = {field.name for field in dataclasses.fields(BuiltinConfig)}
    counts = {"train_clips", "val_clips", "test_clips", "seed", "patterns"}
    assert set(knobs) == named - counts
    source = " ".join(inspect.getsource(BuiltinConfig).split())
    assert [name for name, words in knobs.items() if words.rstrip(".") not in source] == []


def test_the_help_answers_without_the_heavy_libraries():
    loaded = "print([name for name in ('torch', 'av', 'numpy', 'pandas', 'rich', 'pydantic') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", f"{MAIN}; {loaded}", "data", "check", "--help"], capture_output=True,
                           text=True, check=True)
    assert ended.stdout.endswith("[]\n") and "quarantine.csv" in ended.stdout


def spread(value):
    return {"min": value, "median": value, "max": value}


def figures(clips=5, unreadable=0):
    return {"clips": clips, "unreadable": unreadable, "length_s": {"min": 0.5, "median": 2, "max": 1234.5},
            **{name: spread(64) for name in ("fps", "short_side", "height", "width")}}


def result(classes=2, problems=0, kind="corrupt", **limits):
    return {"data": "set", "notes": [], "report": "r", "quarantine": None, "honoured": True,
            "classes": {f"class{n}": {"train": figures(n + 1), "val": figures()} for n in range(classes)},
            "splits": {"train": figures(), "val": {**figures(), "fps": None}},
            "limits": {"clip_s": 2.0, "frames": 51, "resolution": 56, "fps": 25, **limits},
            "problems": [{"path": f"{n}.mp4", "kind": kind, "reason": "why", "split": "train", "class": "class0",
                          "quarantined": True} for n in range(problems)]}


@pytest.mark.parametrize("width", [76, 80, 120])
def test_the_text_fits_the_terminal(width):
    for kind in TITLES:
        lines = check_text(result(problems=3, kind=kind, classes=21), width).splitlines()
        assert max(map(len, lines)) <= width and any("0.5/2/1234" in line for line in lines)


def test_of_many_classes_the_smallest_are_shown_and_of_many_problems_the_first():
    text = check_text(result(classes=400, problems=400))
    assert "The 10 classes with the fewest clips in train (of 400" in text and "class9 " in text
    assert "class10" not in text and "... and 390 more in the report" in text


def test_the_frame_has_a_row_a_class_and_split():
    frame = clips_frame(result())
    assert list(frame["split"]) == ["train", "val"] * 2 and frame["length_s_max"].max() == 1234.5


def test_every_kind_of_problem_has_a_title():
    from expand.data.check import KINDS as ALL
    assert set(TITLES) == set(ALL) and set(KINDS) < set(ALL)


def test_what_a_crop_cannot_use_is_said_in_words_that_fit():
    assert "less than a search begins with" in check_text(result(resolution=56))
    assert "--set search.limits.resolution=224" in check_text(result(resolution=224))
    assert "allow a search" not in check_text(result(clip_s=None))


def test_control_characters_of_a_file_name_do_not_reach_the_terminal():
    bad = result(problems=1)
    bad["problems"][0]["path"] = "a\x1b[2J.mp4"
    assert "\x1b" not in check_text(bad)
