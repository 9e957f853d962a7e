"""Annotations in the form in which the sets are handed out, with a few made-up clips."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from expand.config.schema import DataConfig
from expand.data.sources import list_clips
from expand.data.sources.clip import ClipList
from expand.data.sources.published import recording_of
from expand.errors import DataError

KINETICS = "label,youtube_id,time_start,time_end,split,is_cc\n"


def files(root: Path, *names: str, **texts: str) -> Path:
    """`root` with empty files, and with text files whose name's last `_` becomes a dot."""
    for name in (*names, *(".".join(name.rsplit("_", 1)) for name in texts)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    for name, text in texts.items():
        (root / ".".join(name.rsplit("_", 1))).write_text(text)
    return root


def rows(listed: ClipList, root: Path) -> list[tuple[str, str, str]]:
    return [(str(clip.path.relative_to(root)), listed.classes[clip.label], clip.split) for clip in listed.clips]


def kinetics(root: Path) -> Path:
    return files(root, kinetics_train_csv=KINETICS + "juggling balls,-abc_DEF123,3,13,train,0\n"
                 '"abseiling",0123456789a,170,180,train,1\n',
                 kinetics_val_csv=KINETICS + "abseiling,vvvvvvvvvvv,0,10,validate,0\n")


@pytest.mark.parametrize("folders", [("", "", ""), ("train/", "train/", "val/"),
                                     ("juggling balls/", "abseiling/", "abseiling/"),
                                     ("train/juggling_balls/", "train/abseiling/", "validate/abseiling/"),
                                     ("deep/er/train/", "deep/er/train/", "deep/er/val/")])
def test_kinetics_finds_its_clips_in_the_usual_places(tmp_path, folders):
    names = [folder + name for folder, name in zip(folders, (
        "-abc_DEF123_000003_000013.mp4", "0123456789a.mkv", "vvvvvvvvvvv_000000_000010.mp4"))]
    files(kinetics(tmp_path), *(f"videos/{name}" for name in names))
    listed = list_clips(DataConfig(path=str(tmp_path), root=str(tmp_path / "videos")))
    assert listed.classes == ("abseiling", "juggling balls") and listed.notes == ("read as Kinetics",)
    assert rows(listed, tmp_path / "videos") == [
        (names[0], "juggling balls", "train"), (names[1], "abseiling", "train"), (names[2], "abseiling", "val")]


def test_kinetics_keeps_clips_that_are_not_there_and_counts_them(tmp_path):
    files(kinetics(tmp_path), "train/-abc_DEF123_000003_000013.mp4")
    listed = list_clips(DataConfig(path=str(tmp_path)))
    assert [clip.path.name for clip in listed.clips[1:]] == [
        "0123456789a_000170_000180.mp4", "vvvvvvvvvvv_000000_000010.mp4"]
    assert listed.notes[-1] == f"2 of 3 annotated clips are not in {tmp_path}"


def test_kinetics_lists_may_be_named_and_a_test_list_without_labels_is_left_out(tmp_path):
    kinetics(tmp_path / "annotations")
    files(tmp_path / "annotations", test_csv="youtube_id,time_start,time_end,split\nttttttttttt,1,11,test\n")
    listed = list_clips(DataConfig(path=str(tmp_path)))  # a level down
    assert Counter(clip.split for clip in listed.clips) == {"train": 2, "val": 1}
    assert "left out 1 clip of test.csv without a label" in listed.notes
    folder = tmp_path / "annotations"
    config = DataConfig(train=str(folder / "kinetics_train.csv"), test=str(folder / "kinetics_val.csv"), val_share=0.5)
    with pytest.raises(DataError, match="val must be made from train, and these classes cannot be split"):
        list_clips(config)
    assert Counter(clip.split for clip in list_clips(config, to_train=False).clips) == {"train": 2, "test": 1}


def test_one_kinetics_file_may_hold_all_splits(tmp_path):
    text = KINETICS + "run,aaaaaaaaaaa,1,11,train,0\nfly,bbbbbbbbbbb,1,11,train,0\nfly,ccccccccccc,1,11,val,0\n"
    files(tmp_path, all_csv=text)
    for config in (DataConfig(path=str(tmp_path / "all.csv")), DataConfig(train=str(tmp_path / "all.csv"))):
        assert [split for _, _, split in rows(list_clips(config), tmp_path)] == ["train", "train", "val"]


def test_blank_lines_and_windows_line_ends_of_kinetics_are_passed_over(tmp_path):
    text = KINETICS + "\nrun,aaaaaaaaaaa,0,10,train,0\n\njump,bbbbbbbbbbb,0,10,train,0\njump,ccccccccccc,0,10,val,0\n\n"
    (tmp_path / "all.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert [clip.split for clip in list_clips(DataConfig(path=str(tmp_path / "all.csv"))).clips] == [
        "train", "train", "val"]


def test_times_of_kinetics_that_never_end_are_wrong(tmp_path):
    files(tmp_path, train_csv=KINETICS + "run,aaaaaaaaaaa,0,inf,train,0\nrun,aaaaaaaaaaa,nan,1,train,0\n")
    with pytest.raises(DataError, match="2 lines cannot be read"):
        list_clips(DataConfig(path=str(tmp_path)))


def test_wrong_lines_of_kinetics_are_named(tmp_path):
    files(tmp_path, train_csv=KINETICS + "run,aaaaaaaaaaa,x,11,train,0\n"
          "fly,bbbbbbbbbbb,1,11,dev,0\nrun,,1,11,train,0\n")
    with pytest.raises(DataError, match="3 lines cannot be read") as raised:
        list_clips(DataConfig(path=str(tmp_path / "train.csv")))
    assert f"{tmp_path / 'train.csv'}:2: expected a YouTube id" in str(raised.value)
    assert "got 'dev'" in str(raised.value)


def test_class_folders_beside_annotations_leave_a_doubt_that_is_settled_by_the_format(tmp_path):
    files(kinetics(tmp_path), "train/abseiling/x.mp4", "train/run/y.mp4", "val/run/z.mp4")
    with pytest.raises(DataError, match="may be read as Kinetics or as folders of classes") as raised:
        list_clips(DataConfig(path=str(tmp_path)))
    assert "--set data.format=kinetics or --set data.format=folders" in str(raised.value)
    assert list_clips(DataConfig(path=str(tmp_path), format="folders")).classes == ("abseiling", "run")
    assert list_clips(DataConfig(path=str(tmp_path), format="kinetics")).classes == ("abseiling", "juggling balls")


def ucf101(root: Path) -> Path:
    names = [f"{name}/v_{name}_g{group:02d}_c{clip:02d}.avi" for name in ("Zumba", "Archery")
             for group in range(1, 11) for clip in (1, 2)]
    train, test = names[:14] + names[20:34], names[14:20] + names[34:]
    lists = root / "ucfTrainTestlist"
    files(root, *(f"UCF-101/{name}" for name in names))
    files(lists, classInd_txt="1 Zumba\n2 Archery\n",
          trainlist01_txt="".join(f"{name} {1 if 'Zumba' in name else 2}\r\n" for name in train),
          testlist01_txt="".join(f"{name}\n" for name in test),
          trainlist02_txt="".join(f"{name} 1\n" for name in test), testlist02_txt="".join(f"{n}\n" for n in train))
    return root


def test_ucf101_keeps_its_test_split_and_makes_val_by_recording(tmp_path):
    listed = list_clips(DataConfig(path=str(ucf101(tmp_path))))
    assert listed.classes == ("Zumba", "Archery") and listed.notes[0] == "read as UCF101, fold 1"
    assert Counter(clip.split for clip in listed.clips) == {"train": 24, "val": 4, "test": 12}
    assert all(clip.path.is_file() for clip in listed.clips)
    groups = {split: {clip.group for clip in listed.clips if clip.split == split} for split in ("train", "val")}
    assert not groups["train"] & groups["val"] and len(groups["val"]) == 2
    assert "14 groups kept whole" in listed.notes[1]


def test_another_fold_of_ucf101_swaps_and_a_missing_one_is_named(tmp_path):
    listed = list_clips(DataConfig(path=str(ucf101(tmp_path)), fold=2))
    assert Counter(clip.split for clip in listed.clips) == {"train": 8, "val": 4, "test": 28}
    with pytest.raises(DataError, match="has no trainlist03.txt"):
        list_clips(DataConfig(path=str(tmp_path), fold=3))


def test_the_lists_of_ucf101_may_be_named_and_the_videos_have_another_suffix_elsewhere(tmp_path):
    lists = ucf101(tmp_path) / "ucfTrainTestlist"
    for path in list((tmp_path / "UCF-101").rglob("*.avi")):
        target = tmp_path / "elsewhere" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target.with_suffix(".mp4"))
    config = DataConfig(train=str(lists / "trainlist01.txt"), val=str(lists / "testlist01.txt"), root=str(tmp_path))
    listed = list_clips(config)
    assert Counter(clip.split for clip in listed.clips) == {"train": 28, "val": 12}
    assert all(clip.path.is_file() for clip in listed.clips)


def test_wrong_lines_of_ucf101_are_named(tmp_path):
    lists = ucf101(tmp_path) / "ucfTrainTestlist"
    with open(lists / "trainlist01.txt", "a", encoding="utf-8") as file:
        file.write("Archary/v_x_g01_c01.avi 2\nno_class.avi\n")
    with pytest.raises(DataError, match="2 lines cannot be read") as raised:
        list_clips(DataConfig(path=str(tmp_path)))
    assert "'Archary' is not in classInd.txt; did you mean 'Archery'?" in str(raised.value)
    assert "trainlist01.txt:30" in str(raised.value)


def hmdb51(root: Path) -> Path:
    for name in ("brush_hair", "run"):
        lines, clips = [], []
        for number in range(12):
            clip = f"#Film_{number // 2}_{name}_u_nm_np1_ba_goo_{number}.avi"
            clips.append(f"{name}/{clip}")
            lines.append(f"{clip} {1 if number < 8 else 2 if number < 10 else 0} \n")
        files(root, *clips)
        for fold in (1, 2, 3):
            kept = lines if fold == 1 else lines[4:]
            files(root / "testTrainMulti_7030_splits", **{f"{name}_test_split{fold}_txt": "".join(kept)})
    return root


def test_hmdb51_takes_train_and_test_and_leaves_the_rest(tmp_path):
    listed = list_clips(DataConfig(path=str(hmdb51(tmp_path)), val_share=0.25))
    assert listed.classes == ("brush_hair", "run") and listed.notes[0] == "read as HMDB51, fold 1"
    counts = Counter(clip.split for clip in listed.clips)
    assert counts["test"] == 4 and counts["train"] + counts["val"] == 16 and counts["val"] == 4
    assert all(clip.path.is_file() for clip in listed.clips)
    assert {clip.group for clip in listed.clips if clip.split == "test"} == {"#Film_4"}
    val = {clip.group for clip in listed.clips if clip.split == "val"}  # a film of both classes goes as a whole
    assert not val & {clip.group for clip in listed.clips if clip.split == "train"}
    assert len(list_clips(DataConfig(path=str(tmp_path), fold=3)).clips) == 12


def test_archives_that_were_unpacked_into_folders_of_their_own_names_are_found(tmp_path):
    plain, nested = hmdb51(tmp_path / "plain"), hmdb51(tmp_path / "nested")
    (nested / "test_train_splits").mkdir()
    (nested / "testTrainMulti_7030_splits").rename(nested / "test_train_splits" / "testTrainMulti_7030_splits")
    for name in ("brush_hair", "run"):
        (nested / name).rename(nested / "moved")
        (nested / "hmdb51_org" / name).mkdir(parents=True)
        (nested / "moved").rename(nested / "hmdb51_org" / name / name)
    found, expected = list_clips(DataConfig(path=str(nested))), list_clips(DataConfig(path=str(plain)))
    assert all(clip.path.is_file() for clip in found.clips)
    assert [(clip.path.name, clip.split) for clip in found.clips] == [
        (clip.path.name, clip.split) for clip in expected.clips]


def test_a_single_file_of_hmdb51_is_sent_to_its_folder_and_wrong_lines_are_named(tmp_path):
    path = hmdb51(tmp_path) / "testTrainMulti_7030_splits" / "run_test_split1.txt"
    with pytest.raises(DataError, match="HMDB51 has one file for each class") as raised:
        list_clips(DataConfig(train=str(path)))
    assert "data.path" in str(raised.value)
    path.write_text(path.read_text() + "a_run_b.avi 3\n")
    with pytest.raises(DataError, match="run_test_split1.txt:13: expected `file 0`"):
        list_clips(DataConfig(path=str(tmp_path)))


@pytest.mark.parametrize("name, label, expected", [
    ("v_Archery_g08_c01.avi", "Archery", "Archery/g08"),
    ("v_HandStandPushups_g01_c04.avi", "HandstandPushups", "HandstandPushups/g01"),
    ("April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "brush_hair", "April_09"),
    ("The_run_home_run_f_cm_np1_ri_med_12.avi", "run", "The_run_home"),
    ("Film_sworddraw_f_cm_np1_ri_bad_0.avi", "draw_sword", "Film_sworddraw"), ("holiday.avi", "run", None)])
def test_a_recording_is_told_from_the_files_name(name, label, expected):
    assert recording_of(name, label) == expected


def ssv2(root: Path, prefix: str = "") -> Path:
    def clip(number: int, template: str) -> dict:
        return {"id": str(number), "label": template.replace("[something]", "a cup").lower(), "template": template,
                "placeholders": ["a cup"]}

    up, down = "Moving [something] up", "Moving [something] down"
    folder = root / "labels"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"labels": {"Moving something up": "0", "Moving something down": "1"},
               "train": [clip(10, up), clip(11, down)], "validation": [clip(12, down)],
               "test": [{"id": "13"}, {"id": "14"}]}
    for name, value in content.items():
        (folder / f"{prefix}{name}.json").write_text(json.dumps(value))
    return files(root, "20bn-something-something-v2/10.webm", "20bn-something-something-v2/11.mp4",
                 "20bn-something-something-v2/12/img_00001.jpg", "20bn-something-something-v2/13.webm")


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_something_something_takes_templates_as_classes_in_the_order_of_its_labels(tmp_path, prefix):
    listed = list_clips(DataConfig(path=str(ssv2(tmp_path, prefix))))
    assert listed.classes == ("Moving something up", "Moving something down")
    assert rows(listed, tmp_path / "20bn-something-something-v2") == [
        ("10.webm", "Moving something up", "train"), ("11.mp4", "Moving something down", "train"),
        ("12", "Moving something down", "val")]
    assert f"left out {prefix}test.json, which has no labels; its answers are a file of their own" in listed.notes


def test_something_something_takes_its_test_split_from_the_answers(tmp_path):
    answers = ssv2(tmp_path) / "labels" / "test-answers.csv"
    answers.write_text("13;Moving something up\n14;Moving something down\n")
    for config in (DataConfig(path=str(tmp_path)), DataConfig(test=str(answers), root=str(tmp_path)),
                   DataConfig(test=str(tmp_path / "labels/test.json"), root=str(tmp_path))):
        listed = list_clips(config, to_train=False)
        assert [row for row in rows(listed, tmp_path / "20bn-something-something-v2") if row[2] == "test"] == [
            ("13.webm", "Moving something up", "test"), ("14.webm", "Moving something down", "test")]


def test_frame_lists_beside_the_annotations_of_something_something_are_no_second_source(tmp_path):
    ssv2(tmp_path)
    for split in ("train", "val"):
        files(tmp_path, **{f"{split}_csv": "original_vido_id video_id frame_id path labels\n10 0 0 10/1.jpg \"\"\n"})
    assert list_clips(DataConfig(path=str(tmp_path))).notes[0] == "read as Something-Something v2"


def test_lists_of_its_elder_and_of_jester_are_lists_parted_by_semicolons(tmp_path):
    files(tmp_path, train_csv="34870;Drumming Fingers\n56557;Putting a, b and c down\n",
          validation_csv="9223;Drumming Fingers\n", labels_csv="Drumming Fingers\nPutting a, b and c down\n")
    assert rows(list_clips(DataConfig(path=str(tmp_path))), tmp_path) == [
        ("34870", "Drumming Fingers", "train"), ("56557", "Putting a, b and c down", "train"),
        ("9223", "Drumming Fingers", "val")]


@pytest.mark.parametrize("name, text, message", [
    ("train.json", '[{"id": "1", "template": 5}]', "is no JSON list of clips with an id"),
    ("train.json", '[{"id": "1\\u0000", "template": "Moving something up"}]', "stands for no character"),
    ("train.json", '[{"id": "1\\ud800", "template": "Moving something up"}]', "stands for no character"),
    ("labels.json", '{"Moving something up": 1e999}', "is no JSON of {template: number}"),
    ("test-answers.csv", "\n\n13;Moving something up\n\n14\n", "test-answers.csv:5: '14'")])
def test_what_something_something_cannot_mean_is_named(tmp_path, name, text, message):
    (ssv2(tmp_path) / "labels" / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        list_clips(DataConfig(path=str(tmp_path)))


def test_unknown_templates_and_missing_labels_are_named(tmp_path):
    labels = ssv2(tmp_path) / "labels" / "labels.json"
    labels.write_text('{"Moving something up": "0", "Moving something downn": "1"}')
    with pytest.raises(DataError, match="2 templates not in labels.json") as raised:
        list_clips(DataConfig(path=str(tmp_path)))
    assert "clip 11: 'Moving something down'; did you mean 'Moving something downn'?" in str(raised.value)
    labels.unlink()
    with pytest.raises(DataError, match="has no labels.json"):
        list_clips(DataConfig(path=str(tmp_path)))


def test_two_sets_in_a_folder_and_files_of_two_sets_are_refused(tmp_path):
    kinetics(ucf101(tmp_path))
    with pytest.raises(DataError, match="may be read as Kinetics or as UCF101"):
        list_clips(DataConfig(path=str(tmp_path)))
    assert list_clips(DataConfig(path=str(tmp_path), format="ucf101")).classes == ("Zumba", "Archery")
    with pytest.raises(DataError, match="annotations of several kinds"):
        list_clips(DataConfig(train=str(tmp_path / "kinetics_train.csv"),
                              val=str(tmp_path / "ucfTrainTestlist" / "testlist01.txt")))
    with pytest.raises(DataError, match="is no annotation of HMDB51"):
        list_clips(DataConfig(train=str(tmp_path / "kinetics_train.csv"), format="hmdb51"))
