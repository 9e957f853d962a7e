"""A run goes on after its list of clips was edited or its clips were touched; or says what is different and what to do.

The runs here are stopped when they begin and when they go on, before anything is trained.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expand import api
from expand.config import load_config
from expand.errors import DataError, ExpandError, Interrupted, RunError
from expand.expansion.events import Event
from expand.run.display import Quiet
from expand.rundir.journal import read_events
from expand.rundir.paths import RunPaths
from tests.data.clips import steady, write_clip

CLASSES = ("01", "déjà vu", "run")
SMALL = {
    "search.target_gflops": 0.0026,
    "search.axes": ["x_fast"],
    "search.basis.resolution": 32,
    "search.basis.depth": 0.4,
    "candidate.epochs": 1,
    "final.epochs": 1,
    "candidate.batch_size": 4,
    "final.batch_size": 4,
    "run.threads": 1,
}


class Stopping(Quiet):
    """Keeps what is said, and stops the run at its first event."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)
        if text.startswith("training "):
            raise Interrupted("enough seen")

    def event(self, event: Event, state: Any) -> None:
        raise Interrupted("enough seen")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `set/{train,val}/<class>/<clip>` and two runs on it that were stopped, `search` and `train`."""
    root = tmp_path_factory.mktemp("begun")
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                write_clip(
                    root / "set" / split / name / f"é {number}.mp4",
                    steady(12, 0.5 + 0.25 * number),
                    width=48 + 2 * label,
                )
    values = {**SMALL, "data.path": str(root / "set"), "data.cache_dir": str(root / "cache")}
    with pytest.raises(Interrupted):
        api.search(values=values, run_dir=root / "search", display=Stopping())
    with pytest.raises(Interrupted):
        api.train(
            "xs",
            values={
                **{key: value for key, value in values.items() if not key.startswith("search.")},
                "final.epochs": 1,
            },
            run_dir=root / "train",
            display=Stopping(),
        )
    return root


@pytest.fixture(params=["search", "train"])
def run(request: pytest.FixtureRequest, begun: Path, tmp_path: Path) -> Path:
    """A copy of one of the runs, whose clips lie in a copy of the set beside it."""
    copy = tmp_path / request.param
    shutil.copytree(begun / request.param, copy)
    shutil.copytree(begun / "set", tmp_path / "set")
    for name in ("clips.csv", "clips-begun.csv"):
        (copy / name).write_text((copy / name).read_text().replace(str(begun / "set"), str(tmp_path / "set")))
    return copy


def resumed(run: Path) -> list[str]:
    """What is said until the run goes on; its own errors come through."""
    display = Stopping()
    with pytest.raises(Interrupted):
        api.resume(run, display=display)
    if (run / "journal.jsonl").exists():
        assert read_events(RunPaths(run).journal)[-1].kind == "run_resumed"
    return display.said


def rewritten(rows: list[list[str]], ending: str = "\r\n", **how: Any) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=ending, **how).writerows(rows)
    return text.getvalue()


def table(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def by_line(change: Callable[[list[str]], list[str]]) -> Callable[[str], bytes]:
    return lambda text: rewritten([table(text)[0], *map(change, table(text)[1:])]).encode()


def as_excel(text: str) -> str:
    """Numbers without zeros in front, and a last column that is none."""
    return rewritten(
        [[value.lstrip("0") if value == "01" else value for value in row] + [""] for row in table(text)], delimiter=";"
    )


EDITS: dict[str, Callable[[str], bytes]] = {
    "mark of UTF-8": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "UTF-16": lambda text: text.replace(",", "\t").encode("utf-16"),
    "UTF-16, big end first": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "Latin-1": lambda text: text.encode("cp1252"),
    "blank last line": lambda text: (text + "\n  \n").encode(),
    "blank lines between": lambda text: text.replace("\n", "\n\n").encode(),
    "lines of commas": lambda text: (text.replace("\n", "\n,,,,\n") + ",,,,").encode(),
    "no last line end": lambda text: text.rstrip("\n").encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "all quoted": lambda text: rewritten(table(text), quoting=csv.QUOTE_ALL).encode(),
    "single quotes": lambda text: rewritten(table(text), quoting=csv.QUOTE_ALL, quotechar="'").encode(),
    "semicolons": lambda text: rewritten(table(text), delimiter=";").encode(),
    "tabs": lambda text: rewritten(table(text), delimiter="\t").encode(),
    "spreadsheet": lambda text: as_excel(text).encode("utf-8-sig"),
    "hint for spreadsheets": lambda text: ("sep=;\r\n" + as_excel(text)).encode(),
    "empty columns": lambda text: text.replace("\n", ",,,\n").encode(),
    "blanks around": by_line(lambda row: [f" {value} " for value in row]),
    "number as a fraction": by_line(lambda row: [*row[:4], f"{row[4]}.0"]),
    "number with a comma": lambda text: rewritten(
        [[*row[:4], row[4] + (",0" if row[4].isdigit() else "")] for row in table(text)], delimiter=";"
    ).encode(),
    "no number": lambda text: rewritten([row[:4] for row in table(text)]).encode(),
    "no label": lambda text: rewritten([[row[0], *row[2:]] for row in table(text)]).encode(),
    "columns turned round": lambda text: rewritten([row[::-1] for row in table(text)]).encode(),
    "an index in front": lambda text: rewritten(
        [["" if not at else str(at - 1), *row] for at, row in enumerate(table(text))]
    ).encode(),
    "header in capitals": lambda text: text.replace(
        "path,label,split,group,number", "Path,Label,Split,Group,Number"
    ).encode(),
    "no header": lambda text: text.split("\n", 1)[1].encode(),
    "sorted": lambda text: "\n".join(sorted(text.splitlines())).encode(),
    "turned round, header last": lambda text: "\n".join(reversed(text.splitlines())).encode(),
    "comments": lambda text: ("# moved on Monday\n" + text.replace("\n", "\n# so\n", 1)).encode(),
    "split in capitals": by_line(lambda row: [*row[:2], row[2].upper(), *row[3:]]),
    "decomposed letters": lambda text: unicodedata.normalize("NFD", text).encode(),
    "backslashes": by_line(lambda row: [row[0].replace("/", "\\"), *row[1:]]),
    "file addresses": by_line(lambda row: [Path(row[0]).as_uri(), *row[1:]]),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("run", ["search"], indirect=True)
def test_a_run_goes_on_with_the_same_clips_after_an_editor(run: Path, edit: str) -> None:
    path = run / "clips.csv"
    path.write_bytes(EDITS[edit](path.read_text()))
    resumed(run)


@pytest.mark.parametrize("start", ["run", "current folder", "home"])
def test_relative_paths_start_at_the_run_and_else_at_the_current_folder(
    run: Path, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    new = {"run": "../set/", "current folder": "", "home": "~/set/"}[start]
    path = run / "clips.csv"
    path.write_text(path.read_text().replace(f"{tmp_path}/set/", new))
    resumed(run)


def test_a_sorted_list_of_clips_that_were_moved_goes_on_in_the_old_order(run: Path, tmp_path: Path) -> None:
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    path = run / "clips.csv"
    header, *lines = path.read_text().replace(f"{tmp_path}/set/", f"{tmp_path}/elsewhere/").splitlines()
    path.write_text("\n".join([header, *sorted(lines, reverse=True)]))
    resumed(run)


@pytest.mark.parametrize("is_sorted", [False, True])
def test_a_run_that_did_not_keep_its_list_as_it_began_goes_on(run: Path, is_sorted: bool) -> None:
    (run / "clips-begun.csv").unlink()
    path = run / "clips.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\ufeff" + "\n".join([header, *(sorted(lines, reverse=True) if is_sorted else lines)]) + "\n\n")
    assert any("in another order" in line for line in resumed(run)) == is_sorted


def test_a_list_that_was_deleted_is_written_anew(run: Path) -> None:
    before = (run / "clips.csv").read_bytes()
    (run / "clips.csv").unlink()
    resumed(run)
    assert (run / "clips.csv").read_bytes() == before


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda lines: lines[:3] + lines[4:], "a line is missing: {3}"),
        (lambda lines: [*lines, lines[3]], "clips.csv:17: {3} is no clip of this run, or is named twice"),
        (lambda lines: [*lines, lines[3].replace("é ", "new ")], "clips.csv:17: "),
        (
            lambda lines: [lines[0], lines[1].replace(",01,train,,0", ",run,train,,2"), *lines[2:]],
            "clips.csv:2: {1} has the class 'run'; it was '01'",
        ),
        (
            lambda lines: [lines[0], lines[1].replace(",train,", ",val,"), *lines[2:]],
            "clips.csv:2: {1} has the split 'val'; it was 'train'",
        ),
        (
            lambda lines: [lines[0], lines[1].replace(",01,", ",run,"), *lines[2:]],
            "clips.csv:2: says class 0 'run', but class 0 is '01'",
        ),
        (
            lambda lines: [lines[0], lines[1].replace(",train,,0", ",train,,zero"), *lines[2:]],
            "clips.csv:2: expected a whole number as the class's number, got 'zero'",
        ),
        (
            lambda lines: [lines[0], lines[1].replace(",train,", ",often,"), *lines[2:]],
            "clips.csv:2: expected train, val or test as the split, got 'often'",
        ),
        (
            lambda lines: [lines[0], "C:\\clips\\a.mp4,01,train,,0", *lines[2:]],
            "clips.csv:2: 'C:\\\\clips\\\\a.mp4' is a Windows path",
        ),
        (
            lambda lines: ["to be done"],
            "it has no line with the columns path,label,split,group,number; it begins with 'to be done'",
        ),
        (lambda lines: [*lines[:4], lines[4][: len(lines[4]) - 9]], "clips.csv:5: "),
    ],
)
@pytest.mark.parametrize("run", ["search"], indirect=True)
def test_what_really_differs_is_named_by_its_line_and_can_be_mended(run: Path, change: Callable, expected: str) -> None:
    path = run / "clips.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(ExpandError) as raised:
        api.resume(run, display=Stopping())
    text = str(raised.value)
    assert expected.format(*(line.split(",")[0] for line in lines)) in text
    assert "delete" in text and "x3d-expand resume" in text and "--set" not in text
    path.unlink()
    resumed(run)


@pytest.mark.parametrize("keeps_times", [False, True])
def test_clips_with_another_content_are_named_and_refused(run: Path, tmp_path: Path, keeps_times: bool) -> None:
    clip = tmp_path / "set/train/run/é 1.mp4"
    old, about = clip.read_bytes(), clip.stat()
    resumed(run)
    clip.write_bytes(
        old[:-20] + b"\1" * 20 if keeps_times else old + b"\0" * 8
    )  # the same pictures for all that is seen
    if keeps_times:
        os.utime(clip, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(RunError, match="1 of the 15 clips of this run have another content") as raised:
        api.resume(run, display=Stopping())
    assert str(clip) in str(raised.value) and "put the old files back" in str(raised.value)
    clip.write_bytes(old)  # touched: its times are new, its bytes are not
    resumed(run)


def test_many_changed_clips_are_counted(run: Path, tmp_path: Path) -> None:
    for clip in (tmp_path / "set").rglob("*.mp4"):
        clip.write_bytes(clip.read_bytes() + b"\0" * 8)
    with pytest.raises(RunError, match="15 of the 15 clips") as raised:
        api.resume(run, display=Stopping())
    assert "... and 5 more" in str(raised.value)


@pytest.mark.parametrize("damage", ["half gone", "all gone", "one unreadable"])
def test_clips_that_are_gone_get_advice_that_resume_can_follow(run: Path, tmp_path: Path, damage: str) -> None:
    clips = sorted((tmp_path / "set").rglob("*.mp4"))
    for clip in {"half gone": clips[::2], "all gone": clips, "one unreadable": clips[:1]}[damage]:
        clip.unlink() if "gone" in damage else clip.write_bytes(b"no film")
    with pytest.raises(DataError) as raised:
        api.resume(run, display=Stopping())
    text = str(raised.value)
    assert (
        "of this run" in text and str(clips[0]) in text and "put them back" in text and str(run / "clips.csv") in text
    )
    assert "--" not in text.replace("'--", "") and "max_unreadable" not in text


def test_the_command_line_says_the_same_and_ends_with_1(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from expand.cli import main

    (tmp_path / "set/val/run/é 0.mp4").unlink()
    monkeypatch.setattr("sys.argv", ["x3d-expand", "resume", str(run)])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().err
    assert ended.value.code == 1 and "1 of the 15 clips of this run cannot be read" in shown and "--set" not in shown


def test_plan_gives_the_advice_of_search_and_its_own_option(tmp_path: Path) -> None:
    values = {"search.target_gflops": 6.0, "data.path": str(tmp_path / "nowhere")}
    advice = {}
    for name in ("search", "plan"):
        with pytest.raises(ExpandError) as raised:
            getattr(api, name)(values=values)
        advice[name] = str(raised.value)
    assert advice["plan"].startswith(advice["search"]) and "--classes N" in advice["plan"]


def test_the_configuration_of_a_stopped_run_is_whole(begun: Path) -> None:
    assert load_config(begun / "search/config.yaml", (), {}).data.path == str(begun / "set")
