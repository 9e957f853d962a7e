"""What is written is what is loaded: YAML, flags and `--set`, there and back."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from expand.config import Config, config_diff, dump_config, flatten, load_config, parse_config, with_values
from expand.config.checks import conflicts
from expand.config.options import Option, options
from expand.config.values import checked
from expand.errors import ConfigError


def scalars(option: Option) -> st.SearchStrategy[Any]:
    """Every value that an option may take, extremes included."""
    low, high = option.ge if option.ge is not None else option.gt, option.le
    if option.choices:
        return st.sampled_from(option.choices)
    if option.kind is bool:
        return st.booleans()
    if option.kind is int:
        return st.integers(-2**63 + 1 if low is None else int(low) + (option.ge is None),
                           2**63 - 1 if high is None else int(high))
    if option.kind is float:
        return st.floats(low, high, exclude_min=option.ge is None and low is not None, allow_nan=False,
                         allow_infinity=False)
    return st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1)


def values(option: Option) -> st.SearchStrategy[Any]:
    one = scalars(option)
    if option.many:
        one = st.lists(one, min_size=1, unique=True).map(tuple)
    return st.none() | one if option.nullable else one


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """A random valid configuration: any option may take any value, as long as no rule across options is broken."""
    keys = draw(st.lists(st.sampled_from(list(options())), unique=True, max_size=12))
    config = Config()
    for key in keys:
        changed = with_values(config, {key: draw(values(options()[key]))})
        config = config if list(conflicts(changed)) else changed
    return config


@given(configs())
@example(with_values(Config(), {"data.path": "NAN", "data.root": ".inf", "run.runs_dir": "010"}))
@settings(max_examples=150)
def test_a_dumped_configuration_loads_as_the_same(config: Config) -> None:
    assert parse_config(dump_config(config)) == config


@given(configs())
@settings(max_examples=50)
def test_a_dump_means_the_same_to_any_yaml_reader(config: Config) -> None:
    def plain(tree: Any) -> Any:
        return {key: plain(value) for key, value in tree.items()} if isinstance(tree, dict) else (
            list(tree) if isinstance(tree, tuple) else tree)

    assert yaml.safe_load(dump_config(config)) == plain(dataclasses.asdict(config))


@given(st.text(alphabet=st.sampled_from("ab:{}[]-&*!|>'\"#%@`,?~0. \n\t\x00\ud800")) | st.text())
@settings(max_examples=300)
def test_no_text_gives_anything_but_a_configuration_or_its_mistakes(text: str) -> None:
    for read in (lambda: parse_config(text), lambda: load_config(None, [text]),
                 lambda: load_config(None, [f"data.path={text}"]), lambda: load_config(None, (), {"data.path": text})):
        try:
            assert isinstance(read(), Config)
        except ConfigError as error:
            assert str(error)


def test_every_option_is_written_in_schema_order() -> None:
    def keys(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for key, value in tree.items():
            yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]

    assert list(keys(yaml.safe_load(dump_config(Config())))) == list(options()) == list(flatten(Config()))


def test_every_default_lies_within_its_own_bounds() -> None:
    for key, value in flatten(Config()).items():
        assert checked(options()[key], value) == value


@pytest.mark.parametrize(("text", "expected"), [
    ("1e-3", 1e-3), ("1.e5", 1e5), ("1E-3", 1e-3), (".5", 0.5), ("5", 5.0), ("+5.25", 5.25), ("1_000", 1000.0),
])
def test_every_way_of_writing_a_number_is_one(text: str, expected: float) -> None:
    config = load_config(None, [f"candidate.lr={text}"])
    assert config.candidate.lr == expected
    assert type(config.candidate.lr) is float


@pytest.mark.parametrize(("text", "expected"), [("no", False), ("false", False), ("yes", True), ("True", True)])
def test_yes_and_no_are_true_and_false(text: str, expected: bool) -> None:
    assert load_config(None, [f"data.flip={text}"]).data.flip is expected


def test_null_unsets_an_option_that_may_be_unset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("candidate: {epochs: 3}\nsearch:\nrun: {name: 2024-01-01}\n")
    assert load_config(file).candidate.epochs == 3
    assert load_config(file).run.name == "2024-01-01"
    assert load_config(file, ["candidate.epochs=null"]).candidate.epochs is None


def test_flags_win_over_set_over_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("run: {seed: 1, threads: 1}\ncandidate: {epochs: 1, lr: 0.5}\n")
    config = load_config(str(file), ["run.seed=2", "run.threads=2", "candidate={epochs: 2}", "candidate.epochs=3"],
                         {"run.seed": 3, "run.threads": None, "search.axes": ["x_width"]})
    assert (config.run.seed, config.run.threads, config.candidate.epochs, config.candidate.lr) == (3, 2, 3, 0.5)
    assert config.search.axes == ("x_width",)


def test_a_few_aliases_may_share_a_recipe() -> None:
    config = parse_config("candidate: &recipe {lr: 0.3}\nfinal: *recipe\n")
    assert config.final == config.candidate != Config().candidate


def test_difference_names_each_option_with_both_values() -> None:
    changed = load_config(None, ["search.expansion_rate=1.5", "search.axes=[x_fast, x_width]", "data.path=clips"])
    assert config_diff(Config(), changed) == [
        "data.path: null -> 'clips'", "search.expansion_rate: 2.0 -> 1.5",
        "search.axes: [x_fast, x_temporal, x_spatial, x_depth, x_width, x_bottleneck] -> [x_fast, x_width]"]
    assert config_diff(changed, changed) == []


def test_unknown_key_of_with_values_is_a_key_error() -> None:
    for key in ("run", "run.sed", "seed", "run.seed.x"):
        with pytest.raises(KeyError):
            with_values(Config(), {key: 1})


def test_loading_needs_no_torch_and_no_pandas() -> None:
    code = ("import sys, expand.config; expand.config.load_config('quickstart'); "
            "sys.exit(bool({'torch', 'pandas', 'numpy'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
