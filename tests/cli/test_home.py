"""The home folder, and what takes its place where there is none."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
import warnings
from pathlib import Path

import pytest

from expand import health as checks
from expand import home
from expand.config.schema import DataConfig
from expand.data.sources import list_clips
from expand.errors import UsageError

NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A process without HOME, of a user that the system does not know, in a folder of its own."""
    def unknown(key):
        raise KeyError(key)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_HOME"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever is set meanwhile
        monkeypatch.delenv(name)
    monkeypatch.setattr(home, "_substitute", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def private(folder: Path) -> bool:
    found = os.lstat(folder)
    return stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid == os.geteuid()


def test_without_a_home_the_cache_is_a_private_folder_and_that_is_said_once(nowhere):
    with pytest.warns(UserWarning, match="no home folder.* are kept in .*set XDG_CACHE_HOME"):
        place = home.user_cache()
    assert place == nowhere / f"x3d-expand-{os.geteuid()}" / "x3d-expand" and private(place.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert home.user_cache() == place
    check = checks.cache()
    assert check.state == "note" and "no home folder" in check.text and str(place) in check.text
    assert check.facts["no_home"] and "XDG_CACHE_HOME" in check.fix


def test_libraries_and_children_are_sent_to_the_same_folder(nowhere):
    home.provide_caches()
    folder = os.environ["XDG_CACHE_HOME"]
    assert private(Path(folder))
    assert os.environ["MPLCONFIGDIR"] == f"{folder}/matplotlib" and os.environ["TRITON_HOME"] == f"{folder}/triton"


def test_a_folder_that_others_may_have_filled_is_never_used(nowhere):
    (nowhere / f"x3d-expand-{os.geteuid()}").mkdir(mode=0o777)
    (nowhere / f"x3d-expand-{os.geteuid()}").chmod(0o777)
    with pytest.warns(UserWarning, match="are kept in"):
        place = home.user_cache().parent
    assert place != nowhere / f"x3d-expand-{os.geteuid()}" and private(place)


def test_a_link_in_the_folders_place_is_never_followed(nowhere):
    (nowhere / "elsewhere").mkdir(mode=0o700)
    (nowhere / f"x3d-expand-{os.geteuid()}").symlink_to(nowhere / "elsewhere")
    home.provide_caches()
    assert not os.path.samefile(os.environ["XDG_CACHE_HOME"], nowhere / "elsewhere")


def test_an_explicit_cache_folder_is_taken_without_a_word(nowhere, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere / "mine"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert home.user_cache() == nowhere / "mine" / "x3d-expand"
    assert os.environ["MPLCONFIGDIR"] == str(nowhere / "mine" / "matplotlib")


@pytest.mark.parametrize("value", ["", "relative", "/no/such/home", "/dev/null"])
def test_a_home_that_cannot_be_one_counts_as_none(nowhere, monkeypatch, value):
    monkeypatch.setenv("HOME", value)
    with pytest.warns(UserWarning, match="are kept in"):
        assert private(home.user_cache().parent)
    assert not Path("relative").exists()


def test_a_home_that_is_one_is_used(nowhere, monkeypatch):
    monkeypatch.setenv("HOME", str(nowhere))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert home.user_cache() == nowhere / ".cache" / "x3d-expand"
    assert "MPLCONFIGDIR" not in os.environ


@NOT_ROOT
def test_a_home_that_cannot_be_written_to_is_not_used(nowhere, monkeypatch):
    (nowhere / "home").mkdir(mode=0o500)
    monkeypatch.setenv("HOME", str(nowhere / "home"))
    with pytest.warns(UserWarning, match="cannot be written to"):
        assert private(home.user_cache().parent)


def test_a_tilde_is_the_home_and_a_users_name_after_it_that_users(nowhere, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert home.expand_home("~/clips", "--data") == Path("/home/me/clips")
    assert home.expand_home("~", "x") == Path("/home/me")
    assert home.expand_home("~root/x", "--data") == Path(pwd.getpwnam("root").pw_dir, "x")
    assert home.expand_home("a/~/b", "--data") == Path("a/~/b")


def test_a_home_that_there_is_not_is_said_with_the_way_out(nowhere):
    with pytest.raises(UsageError) as raised:
        home.expand_home("~nobodyhere/clips", "--data")
    assert str(raised.value).startswith("--data ~nobodyhere/clips: there is no user 'nobodyhere' here")
    assert "./~nobodyhere/clips" in str(raised.value)
    with pytest.raises(UsageError, match="HOME is not set"):
        home.expand_home("~/clips", "--data")


def test_a_folder_of_that_very_name_is_taken_as_it_stands(nowhere):
    (nowhere / "~nobodyhere").mkdir()
    assert home.expand_home("~nobodyhere", "--data") == nowhere / "~nobodyhere"


@pytest.mark.parametrize("key", ["path", "train", "root", "class_names", "quarantine"])
def test_every_path_of_the_configuration_is_explained(nowhere, key):
    for number, name in enumerate("abcdefghijkl"):
        (nowhere / f"{name}.mp4").write_bytes(b"a clip")
        with open(nowhere / "list.txt", "a", encoding="utf-8") as lines:
            lines.write(f"{name}.mp4 {number % 2}\n")
    other = {} if key in ("path", "train") else {"train": "list.txt"}
    with pytest.raises(UsageError, match=f"data.{key} ~nobodyhere: there is no user"):
        list_clips(DataConfig(**other, **{key: "~nobodyhere"}))


@pytest.mark.parametrize("words", [
    ("search", "--data=~nobodyhere", "--target-gflops", "6"),
    ("search", "--run-dir=~nobodyhere", "--target-gflops", "6"), ("train", "xs", "--init=~nobodyhere"),
    ("train", "~nobodyhere"), ("status", "~nobodyhere"), ("resume", "~nobodyhere"),
    ("plot", "runs/x", "--out=~nobodyhere"), ("complexity", "~nobodyhere"), ("data", "check", "~nobodyhere"),
    ("data", "synth", "~nobodyhere"), ("test", "~nobodyhere"), ("predict", "xs", "~nobodyhere"),
    ("export", "xs", "--format", "onnx", "--out=~nobodyhere"), ("search", "~nobodyhere"),
    ("search", "--set", "run.runs_dir=~nobodyhere", "--target-gflops", "0.05"),
    ("search", "--set", "data.cache_dir=~nobodyhere", "--target-gflops", "0.05")])
def test_every_path_of_a_command_is_explained(words, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*words)
    assert (code, out) == (2, "") and "there is no user 'nobodyhere' here" in err
    assert list(tmp_path.iterdir()) == []
