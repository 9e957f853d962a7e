"""Lists as other programs write them: their columns, and the files that these name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expand.config.schema import DataConfig
from expand.data.sources import list_clips
from expand.errors import DataError

CLIPS = [("run", "a0"), ("jump", "b0"), ("run", "a1"), ("jump", "b1"), ("run", "a2"), ("jump", "b2")]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder `clips/<class>/<name>.mp4` of empty files, and `lists` beside it."""
    for label, name in CLIPS:
        (tmp_path / "clips" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / label / f"{name}.mp4").touch()
    (tmp_path / "lists").mkdir()
    return tmp_path


def found(list_file: Path, **options: str) -> set[tuple[str, str]]:
    """(class, name) of the clips that a list gives; each of them must be there."""
    listed = list_clips(DataConfig(path=str(list_file), **options))
    assert all(clip.path.is_file() for clip in listed.clips), listed.clips
    return {(listed.classes[clip.label], clip.path.stem) for clip in listed.clips}


@pytest.mark.parametrize(
    "header",
    [
        "file_name,label",
        "filepath,label",
        "filename,category",
        "FileName,Category",
        "File Name,Class Name",
        "file-name,class-name",
        "video_path,label",
        "video_name,tag",
        "video,action",
        "filename,class",
        "Filename,Class",
        "clip_path,class_label",
        "video file path,activity",
        "name,target",
        "path,label_id",
        "image_path,y",
        "file_path,gloss",
        '"file_name","label"',
        "'file_name','label'",
        "\ufefffile_name,label",
        "relative_path,gt_label",
        "src_file,label_name",
    ],
)
def test_columns_of_usual_names_are_found(clips: Path, header: str) -> None:
    lines = [f"../clips/{label}/{name}.mp4,{label}" for label, name in CLIPS]
    (clips / "lists/all.csv").write_text("\n".join([header, *lines]) + "\n")
    assert found(clips / "lists/all.csv") == set(CLIPS)


@pytest.mark.parametrize("delimiter", ["\t", ";", "|", ","])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_columns_are_found_as_spreadsheets_part_and_encode_them(
    clips: Path, delimiter: str, ending: str, encoding: str
) -> None:
    rows = [
        ("", "file_name", "label", "label_id", ""),
        *(
            (str(number), f"../clips/{label}/{name}.mp4", label, str(ord(label[0])), "")
            for number, (label, name) in enumerate(CLIPS)
        ),
    ]
    text = ending.join(delimiter.join(row) for row in [*rows, ("",) * 5])
    (clips / "lists/all.csv").write_bytes(text.encode(encoding))
    assert found(clips / "lists/all.csv") == set(CLIPS)


@pytest.mark.parametrize(
    "header, line",
    [
        ("clip_name,clip_path,label", "{name},../clips/{label}/{name}.mp4,{label}"),
        (",path,label", "7,../clips/{label}/{name}.mp4,{label}"),
        ("Unnamed: 0,path,label", "7,../clips/{label}/{name}.mp4,{label}"),
        ("id,filename,class_id,class_name", "7,../clips/{label}/{name}.mp4,{number},{label}"),
        ("label,file_name,label_id", "{label},../clips/{label}/{name}.mp4,{number}"),
        ("sep=,\nfile_name,label", "../clips/{label}/{name}.mp4,{label}"),
        ("class_name,url,path", "{label},https://x.test/{name},../clips/{label}/{name}.mp4"),
    ],
)
def test_the_path_and_the_classes_name_are_chosen_among_many_columns(clips: Path, header: str, line: str) -> None:
    lines = [line.format(label=label, name=name, number=len(label)) for label, name in CLIPS]
    (clips / "lists/all.csv").write_text("\n".join([header, *lines]))
    assert found(clips / "lists/all.csv") == set(CLIPS)


@pytest.mark.parametrize(
    "header, line",
    [
        ("clip_name,tag", "{name}"),
        (",video_name,tag", "0,{name}.mp4"),
        ("youtube_id,label", "{name}"),
        ("id,label", "{name}"),
        ("clip_path,label", "/{label}/{name}.mp4"),
        ("clip_path,label", "{label}/{name}"),
        ("name,target", "{name}"),
    ],
)
def test_clips_named_without_suffix_or_folder_are_looked_for(clips: Path, header: str, line: str) -> None:
    lines = [line.format(label=label, name=name) + f",{label}" for label, name in CLIPS]
    (clips / "clips/all.csv").write_text("\n".join([header, *lines]))
    assert found(clips / "clips/all.csv") == set(CLIPS)
    (clips / "lists/all.csv").write_text("\n".join([header, *lines]))
    assert found(clips / "lists/all.csv", root=str(clips / "clips")) == set(CLIPS)


def test_of_two_files_of_one_name_the_one_in_its_classes_folder_is_taken(clips: Path) -> None:
    for label, other in (("run", "jump"), ("jump", "run")):
        for file in (clips / "clips" / label).glob(f"{label == 'run' and 'a' or 'b'}*"):
            (clips / "clips" / other / file.name).touch()
    (clips / "clips/all.csv").write_text("clip_name,tag\n" + "".join(f"{name},{label}\n" for label, name in CLIPS))
    listed = list_clips(DataConfig(path=str(clips / "clips/all.csv")))
    assert all(clip.path.parent.name == listed.classes[clip.label] for clip in listed.clips)


@pytest.mark.parametrize(
    "column, values",
    [
        ("split", ("train", "val")),
        ("Set", ("Train", "Validation")),
        ("subset", ("training", "dev")),
        ("partition", ("TRAIN", "VALID")),
        ("Usage", ("Training", "PublicTest")),
        ("my_subset", ("training", "validation")),
        ("fold", ("train", "val")),
        ("is_train", ("1", "0")),
        ("is_valid", ("False", "True")),
        ("phase", ("tr", "eval")),
    ],
)
def test_columns_that_say_the_split_are_found(clips: Path, column: str, values: tuple[str, str]) -> None:
    lines = [f"../clips/{label}/{name}.mp4,{label},{values[name.endswith('2')]}" for label, name in CLIPS]
    (clips / "lists/all.csv").write_text("\n".join([f"file_name,label,{column}", *lines]))
    listed = list_clips(DataConfig(path=str(clips / "lists/all.csv")))
    assert {clip.path.stem: clip.split for clip in listed.clips} == {
        name: "val" if name.endswith("2") else "train" for _, name in CLIPS
    }


def test_a_fold_of_numbers_is_no_split_and_other_values_of_a_split_are_mistakes(clips: Path) -> None:
    lines = [f"../clips/{label}/{name}.mp4,{label},{name[1]}" for label, name in CLIPS]
    (clips / "lists/all.csv").write_text("\n".join(["file_name,label,fold", *lines]))
    assert found(clips / "lists/all.csv") == set(CLIPS)
    (clips / "lists/all.csv").write_text("\n".join(["file_name,label,set", *lines]))
    with pytest.raises(DataError, match="all.csv:2: expected train, val or test as the split, got '0'"):
        list_clips(DataConfig(path=str(clips / "lists/all.csv")))


@pytest.mark.parametrize("as_array", [False, True])
def test_json_lines_are_read_by_the_same_names(clips: Path, as_array: bool) -> None:
    values = [
        {"file_name": f"../clips/{label}/{name}.mp4", "label": len(label), "class_name": label} for label, name in CLIPS
    ]
    text = json.dumps(values, indent=1) if as_array else "\n".join(map(json.dumps, values))
    (clips / "lists/metadata.jsonl").write_text(text)
    assert found(clips / "lists/metadata.jsonl") == set(CLIPS)


@pytest.mark.parametrize("header", ["foo,bar", "foo,label", "file_name,bar", "movie title,mood", "a b", "foo,bar,baz"])
def test_a_header_of_unknown_names_is_refused_and_never_a_clip(clips: Path, header: str) -> None:
    delimiter = "," if "," in header else " "
    lines = [
        delimiter.join([f"../clips/{label}/{name}.mp4", label, "x"][: header.count(delimiter) + 1])
        for label, name in CLIPS
    ]
    (clips / "lists/all.csv").write_text("\n".join([header, *lines]))
    with pytest.raises(DataError, match=r"all.csv:1: no column for") as raised:
        list_clips(DataConfig(path=str(clips / "lists/all.csv")))
    text = str(raised.value)
    assert "file_name" in text and "category" in text and all(repr(name) in text for name in header.split(delimiter))


def test_a_first_clip_that_is_there_is_no_header(clips: Path) -> None:
    for label in ("action", "wave"):
        (clips / "lists" / f"video {label}").mkdir()
    (clips / "lists/video").mkdir()
    (clips / "lists/all.txt").write_text(
        "video action\nvideo wave\n../clips/run/a0.mp4 action\n../clips/run/a1.mp4 wave\n"
    )
    listed = list_clips(DataConfig(path=str(clips / "lists/all.txt")))
    assert listed.classes == ("action", "wave") and len(listed.clips) == 4


def test_ids_without_any_file_are_refused_with_the_column(clips: Path) -> None:
    (clips / "lists/all.csv").write_text("video_id,label\nx1,run\nx2,jump\nx3,run\nx4,jump\n")
    with pytest.raises(DataError, match="the column 'video_id' names no file: 'x1' and 3 others") as raised:
        list_clips(DataConfig(path=str(clips / "lists/all.csv")))
    assert "data.root" in str(raised.value)


def test_addresses_on_a_network_are_explained(clips: Path) -> None:
    (clips / "lists/all.csv").write_text("url,label\nhttps://x.test/a.mp4,run\nhttps://x.test/b.mp4,jump\n")
    with pytest.raises(DataError, match="all.csv:2: 'https://x.test/a.mp4' is a network address"):
        list_clips(DataConfig(path=str(clips / "lists/all.csv")))


def written(clips: Path, name: str, text: str) -> set[tuple[str, str]]:
    (clips / "clips" / name).write_text(text)
    return found(clips / "clips" / name)


@pytest.mark.parametrize("header", ["filepath,ground_truth.label,tags", "Filename,Action Label,Train/Test",
                                    "fname,labels,x.y", "video,choice,lead_time", "path,klass,n/a"])
def test_other_columns_may_have_any_names(clips: Path, header: str) -> None:
    assert written(clips, "list.csv", header + "\n" + "".join(f"{label}/{name}.mp4,{label},train\n"
                                                              for label, name in CLIPS)) == set(CLIPS)


@pytest.mark.parametrize("line", ["{0},{0}/{1}.mp4", "{0} {0}/{1}.mp4", "{0}\t{0}/{1}.mp4"])
def test_labels_may_come_before_paths_in_every_line(clips: Path, line: str) -> None:
    assert written(clips, "list.txt", "".join(line.format(*clip) + "\n" for clip in CLIPS)) == set(CLIPS)


PATHS = [(f"{label}/{name}.mp4", label) for label, name in CLIPS]


@pytest.mark.parametrize("value", [
    dict(PATHS),
    {path: {"label": label, "split": "train"} for path, label in PATHS},
    {name: [path for path, label in PATHS if label == name] for name in ("run", "jump")},
    {"file_name": [path for path, _ in PATHS], "label": [label for _, label in PATHS]},
    {"path": {str(n): path for n, (path, _) in enumerate(PATHS)},
     "label": {str(n): label for n, (_, label) in enumerate(PATHS)}},
    {"train": [{"video": path, "label": label} for path, label in PATHS]},
    {"train": dict(PATHS[2:]), "validation": dict(PATHS[:2])},
    {"version": "1", "database": {name: {"subset": "training", "annotations": {"label": label, "segment": [0, 1]}}
                                  for label, name in CLIPS}},
    {"classes": ["jump", "run"], "labels": {name: int(label == "run") for label, name in CLIPS}},
    [{"id": n, "annotations": [{"result": [{"value": {"choices": [label]}, "type": "choices"}]}],
      "data": {"video": path}} for n, (path, label) in enumerate(PATHS)],
    [{"id": n, "video": path, "choice": label} for n, (path, label) in enumerate(PATHS)],
    [{"path": path, "label": label, "notes": "x" * 10_000} for path, label in PATHS]])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_is_read_in_all_forms_that_programs_write(clips: Path, value: object, indent: int | None) -> None:
    assert written(clips, "list.json", json.dumps(value, indent=indent)) == set(CLIPS)


@pytest.mark.parametrize("value", [{"a": 1}, {"images": [], "categories": []}, {"x": {"y": [1, 2]}}, [1, 2], {}, [[]],
                                   {"path": ["a.mp4"], "label": []}, {"classes": [], "labels": {"a": 3}}])
def test_json_of_other_forms_is_refused(clips: Path, value: object) -> None:
    with pytest.raises(DataError):
        written(clips, "list.json", json.dumps(value))


def test_several_choices_for_one_clip_are_refused(clips: Path) -> None:
    value = [{"annotations": [{"result": [{"value": {"choices": ["run", "jump"]}}]}], "data": {"video": path}}
             for path, _ in PATHS]
    with pytest.raises(DataError, match="several values for one of them"):
        written(clips, "list.json", json.dumps(value))
