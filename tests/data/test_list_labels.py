"""Labels and paths in lists as people of all systems write them: read, or explained."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from expand.config.schema import DataConfig
from expand.data.sources import list_clips
from expand.errors import DataError


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """`base/{a,b}/<letter><number>.mp4`, and a folder `lists` beside it."""
    for name in "ab":
        (tmp_path / "base" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "base" / name / f"{name}{number}.mp4").touch()
    (tmp_path / "lists").mkdir()
    return tmp_path


def classes_of(base: Path, line: str, label_a: str, label_b: str, name: str = "all.txt") -> dict[str, set[str]]:
    """The clips by class of a list with `line` for each of the eight files; all of them must be there."""
    lines = [
        line.format(
            path=f"../base/{letter}/{letter}{number}.mp4",
            name=f"{letter}{number}",
            letter=letter,
            label=label,
            base=base,
        )
        for number in range(4)
        for letter, label in (("a", label_a), ("b", label_b))
    ]
    (base / "lists" / name).write_text("\n".join(lines), newline="")
    listed = list_clips(DataConfig(path=str(base / "lists" / name)))
    assert all(clip.path.is_file() for clip in listed.clips), [clip.path for clip in listed.clips]
    found: dict[str, set[str]] = {name: set() for name in listed.classes}
    for clip in listed.clips:
        found[listed.classes[clip.label]].add(clip.path.name)
    return found


ALL = {letter: {f"{letter}{number}.mp4" for number in range(4)} for letter in "ab"}


@pytest.mark.parametrize(
    "line",
    [
        "{path} {label}",
        "{path}  {label} ",
        "{path}\t{label}",
        "{path} \t {label}",
        "{path},{label}",
        "{path}, {label}",
        "{path};{label}",
        "{path};{label};;",
        "{path},{label},,",
        '"{path}" "{label}"',
        '{path} "{label}"',
        "{path} '{label}'",
        "'{path}' '{label}'",
        "'{path}','{label}'",
        '"{path}" {label}',
        "{path} {label}\r",
        "{path}\u00a0{label}\u200b",
        "{path}|{label}",
        "..\\base\\{letter}\\{name}.mp4 {label}",
        "..\\base\\{letter}\\{name}.mp4,{label}",
        "file://{base}/base/{letter}/{name}.mp4 {label}",
        "../base/{letter}/%{letter:.0}61{name:.0}".replace("%{letter:.0}61{name:.0}", "{name}.mp4 {label}"),
    ],
)
def test_labels_of_two_words_are_read_however_the_line_is_parted(base: Path, line: str) -> None:
    assert classes_of(base, line, "playing guitar", "riding a bike") == {
        "playing guitar": ALL["a"],
        "riding a bike": ALL["b"],
    }


def test_paths_with_blanks_and_without_a_videos_suffix_go_before_labels_of_two_words(base: Path) -> None:
    for letter in "ab":
        for number in range(4):
            (base / "lists" / f"take {letter}{number} of one").mkdir()
    lines = [
        f"take {letter}{number} of one {label}"
        for number in range(4)
        for letter, label in (("a", "playing guitar"), ("b", "riding a bike"))
    ]
    (base / "lists/all.txt").write_text("\n".join(lines))
    listed = list_clips(DataConfig(path=str(base / "lists/all.txt")))
    assert listed.classes == ("playing guitar", "riding a bike") and all(clip.path.is_dir() for clip in listed.clips)


@pytest.mark.parametrize(
    "label_a, label_b, classes",
    [
        ("1", "2", ["1", "2"]),
        ("1.0", "10.0", ["1", "10"]),
        ("10.0", "9.0", ["9", "10"]),
        ("01", "10", ["01", "10"]),
        (" 1 ", "2", ["1", "2"]),
        ("-1", "1", ["-1", "1"]),
        ("1.5", "2.5", ["1.5", "2.5"]),
    ],
)
def test_labels_that_are_numbers_keep_their_order(base: Path, label_a: str, label_b: str, classes: list[str]) -> None:
    assert list(classes_of(base, "{path} {label}", label_a, label_b)) == classes


@pytest.mark.parametrize(
    "train, val, classes",
    [
        ("1 2", "01 02", ["1", "2"]),
        ("01 02", "1 2", ["1", "2"]),
        ("1 2", "1.0 2.0", ["1", "2"]),
        ("01 02", "01 02", ["01", "02"]),
        ("Run jump", "run Jump", ["Run", "jump"]),
    ],
)
def test_one_class_written_in_two_ways_in_train_and_val_is_one_class(
    base: Path, train: str, val: str, classes: list[str]
) -> None:
    for split, labels, numbers in (("train", train, "01"), ("val", val, "23")):
        (base / "lists" / f"{split}.txt").write_text(
            "".join(
                f"../base/{letter}/{letter}{number}.mp4 {label}\n"
                for number in numbers
                for letter, label in zip("ab", labels.split())
            )
        )
    listed = list_clips(DataConfig(path=str(base / "lists")))
    assert list(listed.classes) == classes
    assert all(clip.path.name[0] == "ab"[clip.label] for clip in listed.clips) and len(listed.clips) == 8


def test_a_zero_in_front_makes_no_other_class(base: Path) -> None:
    lines = [
        f"../base/{letter}/{letter}{number}.mp4 {label}"
        for number in range(4)
        for letter, label in (("a", "01" if number % 2 else "1"), ("b", "2"))
    ]
    (base / "lists/all.txt").write_text("\n".join(lines))
    listed = list_clips(DataConfig(path=str(base / "lists/all.txt")))
    assert listed.classes == ("1", "2") and any("'01' as '1'" in note for note in listed.notes)


def test_a_negative_number_among_classes_is_explained(base: Path) -> None:
    (base / "lists/all.txt").write_text("../base/a/a0.mp4 0\n../base/a/a1.mp4 1\n../base/b/b0.mp4 -1\n")
    with pytest.raises(DataError, match="all.txt:3: label -1, but classes are numbered from 0") as raised:
        list_clips(DataConfig(path=str(base / "lists/all.txt")))
    assert "no label" in str(raised.value)


def test_names_are_the_same_in_both_forms_of_unicode(tmp_path: Path) -> None:
    forms = {"train": "NFC", "val": "NFD"}
    for split, form in forms.items():
        for name in ("tênis", "vôlei"):
            folder = tmp_path / unicodedata.normalize(form, f"{split}/{name}")
            folder.mkdir(parents=True)
            for number in range(2):
                (folder / unicodedata.normalize("NFD", f"é{number}.mp4")).touch()
    assert list_clips(DataConfig(path=str(tmp_path))).classes == ("tênis", "vôlei")
    for split, form in forms.items():
        other = "NFD" if form == "NFC" else "NFC"
        (tmp_path / f"{split}_list.csv").write_text(
            "".join(
                f"{split}/{unicodedata.normalize(other, name)}/{unicodedata.normalize('NFC', f'é{number}.mp4')},"
                f"{unicodedata.normalize(form, name)}\n"
                for name in ("tênis", "vôlei")
                for number in range(2)
            )
        )
    listed = list_clips(DataConfig(train=str(tmp_path / "train_list.csv"), val=str(tmp_path / "val_list.csv")))
    assert listed.classes == ("tênis", "vôlei") and all(clip.path.is_file() for clip in listed.clips)


def test_names_of_numbers_match_in_both_forms_of_unicode(base: Path) -> None:
    (base / "names.txt").write_text(unicodedata.normalize("NFD", "tênis\nvôlei\n"))
    (base / "lists/all.txt").write_text(
        "".join(
            f"../base/{letter}/{letter}{number}.mp4 {label}\n"
            for number in range(4)
            for letter, label in (("a", "tênis"), ("b", "vôlei"))
        )
    )
    listed = list_clips(DataConfig(path=str(base / "lists/all.txt"), class_names=str(base / "names.txt")))
    assert [unicodedata.normalize("NFC", name) for name in listed.classes] == ["tênis", "vôlei"]


def test_classes_of_train_that_differ_by_capitals_are_spoken_of(base: Path) -> None:
    lines = [f"../base/a/a{number}.mp4 {'Run' if number % 2 else 'run'}\n" for number in range(4)]
    (base / "lists/all.txt").write_text("".join(lines))
    assert any(
        "'Run' and 'run' differ by capitals only" in note
        for note in list_clips(DataConfig(path=str(base / "lists/all.txt"))).notes
    )


def test_percent_signs_of_addresses_are_resolved_where_that_file_is_there(base: Path) -> None:
    (base / "base/a/a b.mp4").touch()
    (base / "base/a/c%20d.mp4").touch()
    (base / "lists/all.txt").write_text(
        "../base/a/a%20b.mp4 run\n../base/a/c%20d.mp4 jump\n../base/a/a1.mp4 run\n../base/a/a2.mp4 jump\n"
    )
    assert all(clip.path.is_file() for clip in list_clips(DataConfig(path=str(base / "lists/all.txt"))).clips)


def test_paths_of_windows_are_explained_with_their_line(base: Path) -> None:
    (base / "lists/all.txt").write_text("../base/a/a0.mp4 1\nC:\\data\\b\\b0.mp4 2\n")
    with pytest.raises(DataError, match=r"all.txt:2: .*is a Windows path: write the path as this system has it"):
        list_clips(DataConfig(path=str(base / "lists/all.txt")))


def test_a_list_in_the_encoding_of_windows_names_the_files_that_are_there(base: Path) -> None:
    (base / "base/a/café.mp4").touch()
    (base / "lists/all.csv").write_bytes(
        "../base/a/café.mp4,1\n../base/a/a1.mp4,1\n../base/b/b0.mp4,2\n../base/b/b1.mp4,2\n".encode("cp1252")
    )
    assert all(clip.path.is_file() for clip in list_clips(DataConfig(path=str(base / "lists/all.csv"))).clips)
