"""`x3d-expand doctor`, as a person types it."""

from __future__ import annotations

import json

import pytest

import expand
from expand import health
from expand.health import Check
from expand.kernels import library


@pytest.fixture
def found(monkeypatch):
    """Sets what the checks find."""
    def put(*checks):
        monkeypatch.setattr(health, "CHECKS", {check.name: lambda check=check: check for check in checks})

    return put


def test_each_line_says_ok_or_what_to_do(command, found):
    found(Check("memory", "ok", "64 GB"), Check("kernels", "note", "none in use", "build them"))
    code, out, err = command("doctor")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "ok       memory     64 GB", "note     kernels    none in use", "                    -> build them"]


def test_a_problem_ends_with_1_and_a_note_with_0(command, found):
    for state, code in (("ok", 0), ("note", 0), ("problem", 1)):
        found(Check("runs", state, "words", "fix"))
        assert command("doctor")[0] == command("doctor", "--json")[0] == code


def test_no_control_character_reaches_the_terminal(command, found):
    found(Check("runs", "problem", "a\x1b[2J\nb", "c\rd"))
    out = command("doctor")[1]
    assert "\x1b" not in out and "\r" not in out and len(out.splitlines()) == 2


def test_json_is_what_the_function_returns(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("doctor", "--json")
    printed, returned = json.loads(out), expand.doctor()
    assert err == "" and code == (printed["state"] == "problem")
    assert {name: set(check) for name, check in printed["checks"].items()} == {
        name: set(check) for name, check in returned["checks"].items()}
    assert printed["checks"]["packages"] == returned["checks"]["packages"]


def test_a_wrong_choice_of_kernels_is_a_line_here_and_an_error_elsewhere(command, monkeypatch, tmp_path):
    monkeypatch.setenv(library.VARIABLE, "mmx")
    code, out, err = command("doctor")
    assert (code, err) == (1, "") and "problem  kernels    X3D_EXPAND_KERNELS: 'mmx' is no choice" in out
    code, out, err = command("search", "quickstart", "--run-dir", tmp_path / "run")
    assert code == 2 and err.startswith("Error: X3D_EXPAND_KERNELS: 'mmx' is no choice of CPU kernels\n  set it to off")
    assert not (tmp_path / "run").exists()
