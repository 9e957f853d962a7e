from __future__ import annotations

from pathlib import Path

import pytest

from expand.config.schema import DataConfig
from expand.data.sources import list_clips
from expand.data.sources.clip import ClipList
from expand.errors import DataError


def write(folder: Path, **files: str) -> Path:
    """`folder` with text files; the name's last `_` becomes a dot."""
    for name, text in files.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text(text)
    return folder


def rows(listed: ClipList) -> list[tuple[str, str, str]]:
    return [(str(clip.path), listed.classes[clip.label], clip.split) for clip in listed.clips]


LABELS = "".join(f"clips/{name}{number}.mp4 {name}\n" for name in ("run", "jump") for number in range(5))


def test_one_list_gives_train_and_val_is_made_from_it(tmp_path):
    write(tmp_path, all_txt=LABELS)
    listed = list_clips(DataConfig(path=str(tmp_path / "all.txt")))
    assert [clip.split for clip in listed.clips] == ["train"] * 8 + ["val"] * 2
    assert {listed.classes[clip.label] for clip in listed.clips if clip.split == "val"} == {"run", "jump"}
    assert listed.clips == list_clips(DataConfig(train=str(tmp_path / "all.txt"))).clips


def test_relative_paths_start_at_the_root_and_absolute_ones_stay(tmp_path):
    write(tmp_path, train_csv="a.mp4 run\n/far/b.mp4 jump\n", val_csv="c.mp4 run\n")
    (tmp_path / "videos").mkdir()
    config = DataConfig(path=str(tmp_path), root=str(tmp_path / "videos"))
    assert [path for path, _, _ in rows(list_clips(config))] == [
        f"{tmp_path}/videos/a.mp4", "/far/b.mp4", f"{tmp_path}/videos/c.mp4"]


@pytest.mark.parametrize("suffix", ["csv", "txt", "tsv"])
def test_a_folder_of_lists_may_have_txt_lists_and_call_val_validation(tmp_path, suffix):
    write(tmp_path, **{f"train_{suffix}": "a.mp4 0\nb.mp4 1\n", f"validation_{suffix}": "c.mp4 1\n"})
    assert [split for _, _, split in rows(list_clips(DataConfig(path=str(tmp_path))))] == ["train", "train", "val"]


def test_two_lists_of_one_split_are_refused(tmp_path):
    write(tmp_path, train_csv="a.mp4 0\n", train_txt="a.mp4 0\n")
    with pytest.raises(DataError, match="both train.csv and train.txt are lists of train"):
        list_clips(DataConfig(path=str(tmp_path)))


def test_val_alone_will_do_to_test_but_not_to_train(tmp_path):
    write(tmp_path, v_txt="a.mp4 run\n")
    config = DataConfig(val=str(tmp_path / "v.txt"))
    assert rows(list_clips(config, to_train=False)) == [(f"{tmp_path}/a.mp4", "run", "val")]
    with pytest.raises(DataError, match="no list for train") as raised:
        list_clips(config)
    assert "train is needed" in str(raised.value)


@pytest.mark.parametrize("text", [
    "split,label,path\ntrain,run,a.mp4\nval,run,c.mp4\ntrain,jump,b.mp4\n",
    "Video_Path\tclass\tsubset\na.mp4\trun\ttraining\nc.mp4\trun\tvalidation\nb.mp4\tjump\tTrain\n",
    "file;extra;class_name;split\na.mp4;1;run;train\nc.mp4;2;run;valid\nb.mp4;3;jump;train\n",
    '# made by hand\nlabel, filename, split\n"run", "a.mp4", train\nrun,c.mp4,val\njump,b.mp4,train\n'])
def test_a_header_names_columns_in_any_order_and_a_split_column_decides(tmp_path, text):
    write(tmp_path, list_csv=text)
    expected = [(f"{tmp_path}/a.mp4", "run", "train"), (f"{tmp_path}/b.mp4", "jump", "train"),
                (f"{tmp_path}/c.mp4", "run", "val")]
    assert rows(list_clips(DataConfig(path=str(tmp_path / "list.csv")))) == expected
    assert rows(list_clips(DataConfig(train=str(tmp_path / "list.csv")))) == expected


def test_of_lists_with_split_columns_each_gives_its_own_lines(tmp_path):
    text = "path,label,split\na.mp4,run,train\nb.mp4,jump,train\nc.mp4,run,val\n"
    write(tmp_path, one_csv=text, two_csv=text.replace(".mp4", ".avi"), three_csv="path,label,split\nd.mp4,run,val\n")
    config = DataConfig(train=str(tmp_path / "one.csv"), val=str(tmp_path / "two.csv"),
                        test=str(tmp_path / "three.csv"))
    assert [(Path(path).name, split) for path, _, split in rows(list_clips(config))] == [
        ("a.mp4", "train"), ("b.mp4", "train"), ("c.avi", "val"), ("d.mp4", "test")]


def test_columns_parted_by_blanks_are_refused(tmp_path):
    write(tmp_path, list_csv="path label split\na.mp4 run train\n")
    with pytest.raises(DataError, match="list.csv:1: has columns separated by blanks"):
        list_clips(DataConfig(path=str(tmp_path / "list.csv")))


def test_a_group_column_keeps_clips_together(tmp_path):
    text = "path,label,group\n" + "".join(f"{name}{number}.mp4,{name},p{number % 5}\n" for name in ("run", "jump")
                                         for number in range(20))
    write(tmp_path, list_csv=text)
    listed = list_clips(DataConfig(path=str(tmp_path / "list.csv")))
    splits = {group: {clip.split for clip in listed.clips if clip.group == group}
              for group in {clip.group for clip in listed.clips}}
    assert sorted(map(sorted, splits.values())) == [["train"]] * 4 + [["val"]]


def test_every_wrong_row_of_a_table_is_named(tmp_path):
    write(tmp_path, list_csv="path,label,split\na.mp4,run,train\nb.mp4,run\nc.mp4,,val\nd.mp4,run,holdout\n")
    with pytest.raises(DataError) as raised:
        list_clips(DataConfig(path=str(tmp_path / "list.csv")))
    text, place = str(raised.value), tmp_path / "list.csv"
    assert "3 lines cannot be read" in text
    assert f"{place}:3: expected 3 fields (path, label, split), got 2" in text
    assert f"{place}:4: expected `path label`, got a line without a label" in text
    assert f"{place}:5: expected train, val or test as the split, got 'holdout'" in text


def test_lists_of_frame_folders_with_counts_give_folders(tmp_path):
    write(tmp_path, train_txt="run/a 120 0\nrun/with blank 98 0\njump/b 77 1\n", val_txt="jump/c 12 1\n")
    assert rows(list_clips(DataConfig(path=str(tmp_path)))) == [
        (f"{tmp_path}/run/a", "0", "train"), (f"{tmp_path}/run/with blank", "0", "train"),
        (f"{tmp_path}/jump/b", "1", "train"), (f"{tmp_path}/jump/c", "1", "val")]


def test_folders_whose_names_end_in_a_number_are_not_taken_for_counts(tmp_path):
    (tmp_path / "take 1").mkdir()
    write(tmp_path, train_txt="take 1 0\ntake 2 1\n", val_txt="clip 3.mp4 1\n")
    assert [Path(path).name for path, _, _ in rows(list_clips(DataConfig(path=str(tmp_path))))] == [
        "take 1", "take 2", "clip 3.mp4"]


@pytest.mark.parametrize("line", ["a.mp4 1 2", "some/dir 120 1 2", "a.mp4 1,2", "a.mp4 3 1 2"])
def test_several_labels_for_a_clip_are_refused(tmp_path, line):
    write(tmp_path, train_txt=f"{line}\nb.mp4 0\n", val_txt="b.mp4 0\n")
    with pytest.raises(DataError, match="train.txt:1: .*a clip can have only one label"):
        list_clips(DataConfig(path=str(tmp_path)))


def test_a_list_of_single_frames_is_refused(tmp_path):
    head = "original_vido_id video_id frame_id path labels\n78687 0 0 78687/78687_000001.jpg \"\"\n"
    write(tmp_path, train_csv=head)
    with pytest.raises(DataError, match="list of single frames"):
        list_clips(DataConfig(train=str(tmp_path / "train.csv")))


@pytest.mark.parametrize("name, text", [
    ("names.txt", "run\njump\nfly high\n"), ("names.txt", "0 run\n1 jump\n2 fly high\n"),
    ("names.csv", "id,name\n0,run\n1,jump\n2,fly high\n"), ("names.json", '{"run": 0, "jump": 1, "\\"fly high\\"": 2}'),
    ("names.json", '{"0": "run", "1": "jump", "2": "fly high"}'), ("names.json", '["run", "jump", "fly high"]')])
def test_a_file_of_names_gives_numbers_names_and_their_order(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    write(tmp_path, train_txt="a.mp4 2\nb.mp4 0\n", val_txt="c.mp4 2\n")
    config = DataConfig(path=str(tmp_path), class_names=str(tmp_path / name))
    assert list_clips(config).classes == ("run", "fly high")


def test_a_number_without_a_name_is_named_with_its_place(tmp_path):
    write(tmp_path, names_txt="run\njump\n", train_txt="a.mp4 1\nb.mp4 2\nc.mp4 jmup\n", val_txt="c.mp4 1\n")
    with pytest.raises(DataError, match="2 labels without a name") as raised:
        list_clips(DataConfig(path=str(tmp_path), class_names=str(tmp_path / "names.txt")))
    assert f"{tmp_path / 'train.txt'}:2: '2'" in str(raised.value)
    assert "'jmup'; did you mean 'jump'?" in str(raised.value)


@pytest.mark.parametrize("line, path, label", [
    ("v/ready, go.mp4 run", "v/ready, go.mp4", "run"), ("v/a, b, c.avi run", "v/a, b, c.avi", "run"),
    ("v/a.mp4,St.John runs", "v/a.mp4", "St.John runs"), ('"v/ready, go.mp4",run', "v/ready, go.mp4", "run")])
def test_a_comma_in_a_files_name_is_no_end_of_the_path(tmp_path, line, path, label):
    write(tmp_path, train_txt=f"{line}\nb.mp4 jump\n", val_txt="b.mp4 jump\n")
    assert rows(list_clips(DataConfig(path=str(tmp_path))))[0] == (f"{tmp_path}/{path}", label, "train")


def test_equal_numbers_that_are_written_in_several_ways_are_one_class(tmp_path):
    labels = ["1" if not zeros else "0" * zeros + "1" for zeros in range(6)] + ["02"]
    write(tmp_path, train_txt="".join(f"{label}.mp4 {label}\n" for label in labels), val_txt="a.mp4 1\n")
    listed = list_clips(DataConfig(path=str(tmp_path)))
    assert listed.classes == ("1", "02") and [clip.label for clip in listed.clips] == [0] * 6 + [1, 0]


@pytest.mark.parametrize("text", ["a" + " " * 50_000 + "b1\n", "a.mp4 " + "1 " * 30_000 + ",x1\n"])
def test_a_line_that_is_longer_than_any_path_is_named_at_once(tmp_path, text):
    write(tmp_path, list_txt="a.mp4 run\n" + text)
    with pytest.raises(DataError, match=r"list.txt:2: a line of [0-9,]+ characters"):
        list_clips(DataConfig(path=str(tmp_path / "list.txt")))


def test_numbers_of_thousands_of_digits_are_names(tmp_path):
    long = "9" * 5000
    write(tmp_path, train_txt=f"a.mp4 {long}\nb.mp4 1\n", val_txt="b.mp4 1\n", names_json='{"run": 1e999}')
    config = DataConfig(path=str(tmp_path))
    assert list_clips(config).classes == ("1", long)
    with pytest.raises(DataError, match="has a class number that is no whole number"):
        list_clips(DataConfig(path=str(tmp_path), class_names=str(tmp_path / "names.json")))
    write(tmp_path, table_csv=f"path,label,number\na.mp4,run,{long}\n")
    with pytest.raises(DataError, match="table.csv:2: expected a whole number"):
        list_clips(DataConfig(path=str(tmp_path / "table.csv")))


def test_a_film_in_place_of_a_list_is_not_read_to_its_end(tmp_path):
    with open(tmp_path / "film.mp4", "wb") as file:
        file.write(b"\0\0\0\x18ftypmp42")
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="is larger than any list"):
        list_clips(DataConfig(path=str(tmp_path / "film.mp4")))
    with open(tmp_path / "film.mp4", "wb") as file:
        file.write(b"\0\0\0\x18ftypmp42")
    with pytest.raises(DataError, match="if it is a clip, name the folder of the class folders"):
        list_clips(DataConfig(path=str(tmp_path / "film.mp4")))


def test_binary_files_and_endless_quotes_are_clear_errors(tmp_path):
    (tmp_path / "cut.csv").write_bytes(b"path,label\na.mp4,run\nb.m\0\0\0\0")
    with pytest.raises(DataError, match="is not text in UTF-8"):
        list_clips(DataConfig(path=str(tmp_path / "cut.csv")))
    write(tmp_path, quote_csv='path,label,split\n"a.mp4,run,train\n' + "b.mp4,run,val\n" * 20000)
    with pytest.raises(DataError, match="quote.csv"):
        list_clips(DataConfig(path=str(tmp_path / "quote.csv")))


def test_names_that_are_no_utf8_survive(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"path,label,split\n"
                                        b"d\xe9j\xe0.mp4,run,train\nb.mp4,jump,train\nc.mp4,run,val\n")
    assert rows(list_clips(DataConfig(path=str(tmp_path / "list.csv"))))[0][0] == f"{tmp_path}/d\udce9j\udce0.mp4"
