"""What is written is what is loaded: YAML, flags and `--set`, there and back."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from expand.config import Config, config_diff, dump_config, flatten, load_config, parse_config, with_values
from expand.config.option_values import WrongValue, check_value
from expand.config.schema import option_annotations
from expand.errors import ConfigError


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Every value that an option may take, extremes included."""
    one_of = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return st.none() | values(one_of[0])
    kind = one_of[0] if typing.get_origin(annotation) is typing.Annotated else annotation
    if kind is str:
        return st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1)
    if typing.get_origin(kind) is tuple:
        items = st.lists(values(typing.get_args(kind)[0]), min_size=1, unique=True)
        return items.map(lambda found: tuple(found if isinstance(found[0], str) else sorted(found)))
    return st.from_type(annotation).filter(lambda value: not isinstance(value, float) or math.isfinite(value))


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """A random valid configuration: any option may take any value, as long as no rule across options is broken."""
    annotations = option_annotations()
    keys = draw(st.lists(st.sampled_from(list(annotations)), unique=True, max_size=12))
    config = Config()
    for key in keys:
        changed = with_values(config, {key: draw(values(annotations[key]))})
        config = config if list(changed.conflicts()) else changed
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

    assert list(keys(yaml.safe_load(dump_config(Config())))) == list(option_annotations()) == list(flatten(Config()))


def test_every_default_lies_within_its_own_bounds() -> None:
    for key, value in flatten(Config()).items():
        assert repr(check_value(key, value)) == repr(value)


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


def test_no_option_takes_a_number_that_is_not_finite_and_no_whole_number_exceeds_63_bits() -> None:
    for key in option_annotations():
        for number in (math.inf, -math.inf, math.nan, 10**399, -10**399):
            with pytest.raises(WrongValue):
                check_value(key, number)
        for number in (2**63, -2**63 - 1):
            with contextlib.suppress(WrongValue):
                assert type(check_value(key, number)) is float


@pytest.mark.parametrize("text", ["3", "true", "1.5", "[]", ""])
def test_text_in_quotes_is_no_number_and_no_truth_value(text: str) -> None:
    for key, value in flatten(Config()).items():
        if type(value) in (bool, int, float):
            with pytest.raises(WrongValue, match="must be "):
                check_value(key, text)


def test_the_options_can_be_named_without_pydantic_and_without_a_yaml_reader() -> None:
    code = ("import sys, expand.config.schema; from expand.config import Config, flatten; "
            "flatten(Config()); sys.exit(bool({'pydantic', 'pydantic_core', 'yaml'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_loading_needs_no_torch_and_no_pandas() -> None:
    code = ("import sys, expand.config; expand.config.load_config('quickstart'); "
            "sys.exit(bool({'torch', 'pandas', 'numpy'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
