"""What is shown on terminals of any encoding, and on standard outputs that are closed, full or no longer read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from expand.report.clips import check_text
from expand.streams import fit_to_encoding
from tests.report.conftest import FakeSearch

PLAN = ("plan", "--target-gflops", "0.05")
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NARROW = {"cp1252": {"PYTHONIOENCODING": "cp1252"}, "latin-1": {"PYTHONIOENCODING": "latin-1"},
          "ascii": {"PYTHONIOENCODING": "ascii:strict"}, "ascii, by the locale": C_LOCALE}
"""Variables of the environment that make a stream's encoding."""


def shell(line: str, *words: str | Path, **variables: str) -> subprocess.CompletedProcess:
    """What a shell makes of `line`, in which "$@" is the command with `words`."""
    command = [sys.executable, "-m", "expand", *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(["bash", "-c", line, "bash", *command], capture_output=True, check=False,
                          env=environment | variables)


@pytest.fixture
def odd_run(tmp_path):
    """A run whose name and a candidate's reason have what few encodings have."""
    run = tmp_path / "γ 😀 tênis"
    search = FakeSearch(run).start().basis()
    search.event("run_failed", reason="no picture in /clips/βeta 😀/\udce9.mp4 │ ±")
    return run


def test_symbols_have_ascii_names_and_other_characters_can_be_told_apart():
    assert fit_to_encoding("γd 2.2, 4 × 12, 33.3 ± 1, γτ", "ascii") == "gamma_d 2.2, 4 x 12, 33.3 +/- 1, gamma_tau"
    assert fit_to_encoding("γd 2.2, 4 × 12 ± 1", "latin-1") == "gamma_d 2.2, 4 × 12 ± 1"
    assert fit_to_encoding("tênis 😀 τένις", "ascii") == r"t\xeanis \U0001f600 \u03c4\u03ad\u03bd\u03b9\u03c2"
    assert fit_to_encoding("──┼━│…→", "ascii") == "--+-|...->"
    assert fit_to_encoding("γ \udce9", "utf-8") == r"γ \udce9"


def test_columns_stay_columns_where_a_class_has_an_ascii_form():
    spread = {"min": 1.0, "median": 1.0, "max": 1.0}
    of = {"clips": 3, "unreadable": 0, "length_s": spread, "fps": spread, "short_side": spread}
    checked = {"data": "clips", "notes": [], "splits": {"train": of}, "problems": [], "limits": {"clip_s": None},
               "classes": {name: {"train": of} for name in ("run", "γ😀")}}
    lines = check_text(checked, encoding="ascii").splitlines()
    head, rule, *rows = lines[next(n for n, line in enumerate(lines) if line.startswith("class ")):][:4]
    assert set(rule) == {"-"} and len(rule) == len(head.rstrip())
    assert [row.index("train") for row in rows] == [head.index("split")] * 2
    assert rows[1].startswith(r"\u03b3\U0001f600 ") or rows[1].startswith(r"gamma")


@pytest.mark.parametrize("encoding", NARROW)
def test_a_plan_and_a_status_are_shown_in_any_encoding(odd_run, encoding):
    for words in (PLAN, ("status", odd_run)):
        done = shell('"$@"', *words, **NARROW[encoding])
        assert (done.returncode, done.stderr) == (0, b"")
        codec = encoding.partition(",")[0]
        shown = done.stdout.decode(codec)
        assert "gamma_" in shown or words is not PLAN
        assert "γ" not in shown and "\N{BOX DRAWINGS LIGHT HORIZONTAL}" not in shown
        assert shown.isascii() == (codec == "ascii")


def test_a_failure_is_told_in_any_encoding(tmp_path):
    done = shell('"$@"', "status", tmp_path / "γ 😀", **NARROW["ascii"])
    assert done.returncode == 1 and rb"gamma \U0001f600" in done.stderr
    done = shell('"$@"', "status", "--γ", **NARROW["ascii"])
    assert done.returncode == 2 and b"No such option" in done.stderr and done.stderr.isascii()


@pytest.mark.parametrize("encoding", NARROW)
def test_json_stays_json_in_any_encoding(odd_run, encoding):
    done = shell('"$@"', "status", "--json", odd_run, **NARROW[encoding])
    assert done.returncode == 0 and done.stdout.isascii()
    assert json.loads(done.stdout)["run"] == str(odd_run)


def test_json_is_readable_where_the_stream_is_utf8(odd_run):
    done = shell('"$@"', "status", "--json", odd_run, PYTHONIOENCODING="utf-8")
    assert "γ 😀 tênis" in done.stdout.decode("utf-8")


@pytest.mark.parametrize(("line", "words"), [
    ('"$@" > /dev/full', PLAN), ('"$@" >&-', PLAN), ('"$@" > /dev/full', ("complexity", "xs", "--json")),
    ('"$@" > /dev/full', ("--help",)), ('"$@" >&- 0<&-', ("search", "--help"))])
def test_a_command_that_only_prints_says_that_it_could_not(line, words):
    done = shell(line, *words)
    why = "No space left on device" if "full" in line else "it is closed"
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"Error: standard output: cannot be written: {why}")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("line", ['"$@" 2>&-', '"$@" 2> /dev/full', '"$@" 0<&-', '"$@" 0<&- 2>&-'])
def test_what_is_closed_but_not_needed_hinders_nothing(line):
    done = shell(line, *PLAN)
    assert (done.returncode, done.stderr) == (0, b"") and b"Candidates of step 1" in done.stdout
    assert shell(line, "status", "/no/such/run").returncode == 1


def test_all_streams_closed_leave_the_exit_code():
    assert shell('"$@" 0<&- >&- 2>&-', *PLAN).returncode == 1
    assert shell('"$@" 0<&- >&- 2>&-', "plan", "--target-gflops", "nan").returncode == 2


def test_a_reader_that_has_gone_ends_a_command_that_only_prints_without_a_word():
    done = shell('set -o pipefail; "$@" | exec true', *PLAN)
    assert done.returncode in (0, 1) and done.stderr == b""


def test_a_plot_is_drawn_though_its_name_cannot_be_printed(odd_run):
    done = shell('"$@" > /dev/full', "plot", odd_run)
    assert done.returncode == 0 and (odd_run / "report" / "expansion.png").stat().st_size > 1000
    assert done.stderr.decode().startswith("Warning: standard output cannot be written (No space left on device)")


@pytest.mark.parametrize("columns", ["0", "1", "-5", "many", "²", "99999999999999999999"])
def test_the_width_of_a_terminal_may_be_anything(command, monkeypatch, tmp_path, columns):
    FakeSearch(tmp_path / "run").start().basis()
    monkeypatch.setenv("COLUMNS", columns)
    code, out, err = command("status", tmp_path / "run")
    assert (code, err) == (0, "") and max(map(len, out.splitlines())) <= 120


def test_a_closed_handle_is_no_place_for_a_runs_files(tmp_path):
    """A journal that is opened as number 1 or 2 would take what libraries print."""
    code = ("import os, sys; from expand import streams; streams.prepare(); "
            "opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT); sys.exit(opened)")
    line = f"\"{sys.executable}\" -c '{code}' \"{tmp_path / 'journal'}\" 0<&- >&- 2>&-"
    assert shell(line).returncode > 2
