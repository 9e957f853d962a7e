"""Untrusted run directories through the real command line: nothing hangs, nothing outside is touched, and what is
wrong is said with the file's name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expand.config import dump_config, parse_config
from expand.errors import RunError
from expand.exports.card import write_card
from expand.rundir.lock import RunLock
from expand.rundir.paths import RunPaths
from tests.cli.conftest import command  # noqa: F401 - the command line, called in this process
from tests.exports.test_card import CLASSES, CONFIG, RESULT, write_final
from tests.report.conftest import FakeSearch

SECRET = "secret: 7c1f\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True))

FILES = ("config.yaml", "env.json", "journal.jsonl", "log.txt", "lock", "clips.csv", "final/network.yaml",
         "final/weights.pt", "final/outcome.json", "final/latency.json", "final/README.md", "report/expansion.png")
FOLDERS = ("candidates", "final", "report")
USED = {"status": ("journal.jsonl", "lock"), "plot": ("journal.jsonl", "lock", "report/expansion.png", "report"),
        "resume": ("config.yaml", "env.json", "journal.jsonl", "lock", "final/network.yaml",
                   "final/outcome.json", "final/latency.json", "final"),
        "complexity": ("final/network.yaml", "final"), "export": ("final/weights.pt", "final/network.yaml", "final")}
"""What each command must have, and so must refuse where it is not as it should be."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended, without its card, so that `resume` writes one out of all that is there."""
    fake = FakeSearch(tmp_path_factory.mktemp("runs") / "mine", target=0.25)
    fake.start(classes=list(CLASSES), config=dump_config(CONFIG))
    fake.basis().steps(("x_bottleneck",)).contract().end()
    write_final(fake.paths, RESULT)
    write_card(fake.paths)
    fake.paths.card.unlink()
    for name in ("report", "candidates/s00-basis"):
        (fake.paths.root / name).mkdir(parents=True)
    for file in (fake.paths.log, fake.paths.lock, fake.paths.plot_png):
        file.touch()
    return fake.paths.root


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, and a folder beside it that nothing may touch."""
    shutil.copytree(finished, tmp_path / "mine")
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "secret").write_text(SECRET)
    (outside / "folder" / ".tmp-00-theirs").write_text(SECRET)
    return tmp_path / "mine"


def _state(folder: Path) -> Iterator[tuple[str, int, str]]:
    for path in sorted(folder.rglob("*")):
        yield str(path), path.stat().st_mtime_ns, path.read_text() if path.is_file() else ""


def put(run: Path, name: str, kind: str) -> None:
    """An untrusted file of another kind in the place of `name`."""
    path, outside = run / name, run.parent / "outside"
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(outside / ("folder" if name in FOLDERS else "secret"))
    elif kind == "dangling":
        path.symlink_to(outside / "new")
    elif kind == "relative":
        path.symlink_to("../" * (2 if "/" in name else 1) + "outside/secret")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        path.touch()
        os.truncate(path, 1 << 30)
    elif kind == "bomb":
        path.write_text(BOMB)


def words(name: str, run: Path) -> list[Any]:
    return {"export": ["export", run, "--format", "safetensors"]}.get(name, [name, run])


KINDS = [(name, kind) for name in FILES for kind in ("link", "dangling", "relative", "pipe", "folder", "large", "bomb")]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("name", "kind"), [*KINDS, *((name, kind) for name in FOLDERS for kind in
                                                      ("link", "dangling", "pipe", "bomb"))])
def test_whatever_stands_in_a_files_place_the_commands_end_and_touch_nothing_outside(
        run: Path, command: Callable[..., tuple[int, str, str]], name: str, kind: str) -> None:  # noqa: F811
    put(run, name, kind)
    before = list(_state(run.parent / "outside"))
    harmless = kind in ("large", "bomb")
    for verb, used in USED.items():
        if name not in used and verb in ("plot", "export"):
            continue  # they look at nothing more than `status` and `complexity` do, and take their time
        code, out, err = command(*words(verb, run))
        assert "defect" not in err and "Traceback" not in err
        assert SECRET.strip() not in out + err
        if name in used and not (harmless and name in ("lock", "report/expansion.png")):
            assert code in (1, 2), (verb, out)
            assert name.rpartition("/")[2] in err and len(err) < 4000
        assert code in (0, 1, 2)
    assert list(_state(run.parent / "outside")) == before


def test_a_candidates_folder_that_leads_outside_is_neither_cleared_nor_written_to(run: Path) -> None:
    paths = RunPaths(run)
    (run / "candidates" / "s09-x_fast").symlink_to(run.parent / "outside" / "folder")
    with pytest.raises(RunError, match="is a link that leads out of the run"), RunLock(paths):
        pass
    with pytest.raises(RunError, match="s09-x_fast: is a link that leads out of the run, to .*outside/folder"):
        paths.candidate("s09-x_fast")
    assert (run.parent / "outside" / "folder" / ".tmp-00-theirs").exists()


def test_links_that_stay_inside_are_followed_and_so_is_one_to_the_run(run: Path) -> None:
    (run / "kept.jsonl").write_bytes((run / "journal.jsonl").read_bytes())
    (run / "journal.jsonl").unlink()
    (run / "journal.jsonl").symlink_to("kept.jsonl")
    (run.parent / "elsewhere").symlink_to(run)
    paths = RunPaths(run.parent / "elsewhere")
    assert paths.journal.read_bytes() == (run / "kept.jsonl").read_bytes()
    with RunLock(paths):
        assert paths.candidate("s00-basis").checkpoint.parent.is_dir()


def test_a_loop_of_links_is_refused(run: Path) -> None:
    (run / "env.json").unlink()
    (run / "env.json").symlink_to("env.json")
    with pytest.raises(RunError, match=r"env\.json: cannot be used: Too many levels of symbolic links"):
        assert RunPaths(run).env


def test_the_run_itself_is_as_good_as_any(run: Path, command: Callable[..., tuple[int, str, str]]) -> None:  # noqa: F811
    for verb in USED:
        code, _, err = command(*words(verb, run))
        assert code == 0, err
    assert (run / "final" / "README.md").is_file()
    assert parse_config((run / "config.yaml").read_text()) == CONFIG
