"""The ready configurations load, and are found wherever the package is installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from expand.config import Config, config_names, dump_config, load_config, parse_config
from expand.config.load import ready_folder

ROOT = Path(__file__).resolve().parents[2]


def test_the_ready_configurations_are_those_in_the_folder() -> None:
    assert ready_folder() == ROOT / "search_configs"
    assert config_names() == ["default", "folder", "kinetics", "quickstart"]


@pytest.mark.parametrize("name", config_names())
def test_ready_configuration_loads_by_name_and_by_path_and_resolves(name: str) -> None:
    config = load_config(name)
    assert config == load_config(ROOT / "search_configs" / f"{name}.yaml") == parse_config(dump_config(config))


def test_default_is_the_schema_and_what_holds_where_nothing_is_named() -> None:
    assert load_config() == load_config(None) == load_config("default") == Config()


def test_kinetics_is_the_papers_recipe_and_grids() -> None:
    config = load_config("kinetics")
    assert (config.search.basis, config.search.grid, config.search.axes) == (
        Config().search.basis, Config().search.grid, Config().search.axes)
    assert (config.candidate.epochs, config.candidate.batch_size, config.candidate.lr) == (256, 128, 0.1)
    assert config.candidate.warmup_share * 256 == 35
    assert config.final == config.candidate
    assert (config.data.jitter_min, config.data.jitter_max) == (8 / 7, 10 / 7)


def test_quickstart_needs_no_clips_and_says_its_budget() -> None:
    config = load_config("quickstart")
    assert config.data.path is None and config.data.train is None
    assert config.search.target_gflops is not None


def test_folder_shows_where_the_clips_are_named() -> None:
    assert load_config("folder").data.path == "clips"


def test_a_ready_name_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quickstart").write_text("run: {seed: 99}")
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart").run.seed == 0
    assert load_config("./quickstart").run.seed == 99


@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed")
def test_a_wheel_finds_its_configurations_away_from_the_checkout(tmp_path: Path) -> None:
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "expand", source / "expand", symlinks=True, ignore=skip)
    shutil.copytree(ROOT / "search_configs", source / "search_configs")
    build = "import setuptools.build_meta as b; print(b.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        names = archive.namelist()
    packed = sorted(name for name in names if name.endswith(".yaml"))
    assert packed == [f"expand/search_configs/{name}.yaml" for name in config_names()]
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"expand"}

    code = "import expand.config as c; print(c.__file__); print(c.dump_config(c.load_config('kinetics')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=installed, capture_output=True, text=True, check=True)
    where, text = done.stdout.split("\n", 1)
    assert Path(where).is_relative_to(installed)
    assert yaml.safe_load(text) == yaml.safe_load(dump_config(load_config("kinetics")))
