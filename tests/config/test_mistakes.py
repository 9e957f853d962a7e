"""Every kind of mistake has its exact text, with the place and, where there is one, a suggestion."""

from __future__ import annotations

from pathlib import Path

import pytest

from expand.config import load_config, parse_config
from expand.errors import ConfigError, UsageError

CRITERIA = "gain_per_gflop, gain_per_doubling, accuracy"
AXES = "x_fast, x_temporal, x_spatial, x_depth, x_width, x_bottleneck"


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "mine.yaml")
    return [str(problem) for problem in caught.value.problems]


def set_mistakes(*overrides: str, **values: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides, {key.replace("__", "."): value for key, value in values.items()})
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(("text", "expected"), [
    ("search:\n  target_gflop: 6\n", "mine.yaml:2: unknown key 'target_gflop'; did you mean 'target_gflops'?"),
    ("serach:\n  target_gflops: 6\n", "mine.yaml:1: unknown section 'serach'; did you mean 'search'?"),
    ("\nexpansion_rate: 6\n", "mine.yaml:2: unknown key 'expansion_rate'; did you mean 'search.expansion_rate'?"),
    ("run: {lr: 6}\n", "mine.yaml:1: unknown key 'lr'; did you mean 'candidate.lr' or 'final.lr'?"),
    ("run: {expansionrate: 6}\n",
     "mine.yaml:1: unknown key 'expansionrate'; did you mean 'search.expansion_rate'?"),
    ("search: {depth: 6}\n",
     ("mine.yaml:1: unknown key 'depth'; "
      "did you mean 'search.basis.depth', 'search.grid.depth' or 'search.limits.depth'?")),
    ("search:\n  grid: {zzz: 6}\n",
     "mine.yaml:2: unknown key 'zzz'; known here: frames, resolution, width, bottleneck, depth"),
    ("search: {grid: {? [a] : 6}}\n",
     "mine.yaml:1: unknown key '?'; known here: frames, resolution, width, bottleneck, depth"),
], ids=str)
def test_unknown_key_names_its_line_and_what_was_meant(text: str, expected: str) -> None:
    assert mistakes(text) == [expected]


@pytest.mark.parametrize(("text", "expected"), [
    ("search: {target_gflops: six}", "search.target_gflops must be a number or null, got 'six'"),
    ("search: {target_gflops: '6'}",
     "search.target_gflops must be a number or null, got '6'; write it without quotes"),
    ("search: {expansion_rate: true}", "search.expansion_rate must be a number, got true"),
    ("search: {expansion_rate: [2]}", "search.expansion_rate must be a number, got [2]"),
    ("search: {basis: {frames: true}}", "search.basis.frames must be a whole number, got true"),
    ("search: {basis: {frames: 2.5}}", "search.basis.frames must be a whole number, got 2.5"),
    ("search: {basis: {frames: null}}",
     "search.basis.frames must be a whole number, got null; leave the line out for the default"),
    ("search: {basis: {frames: {a: 1}}}", "search.basis.frames must be a whole number, got a mapping"),
    ("search: {basis: {frames: 010}}", "search.basis.frames must be a whole number, got 10.0"),
    ("data: {flip: maybe}", "data.flip must be true or false, got 'maybe'"),
    ("data: {flip: 1}", "data.flip must be true or false, got 1"),
    ("data: {path: 2024}", "data.path must be text or null, got 2024; put it in quotes if text is meant"),
    ("data: {path: no}", "data.path must be text or null, got false; put it in quotes if text is meant"),
    ("data: {path: ''}", "data.path must not be empty; null stands for none"),
    ("run: {runs_dir: ''}", "run.runs_dir must not be empty"),
    ('data: {path: "a\\0b"}', 'data.path holds a control character or is not UTF-8: "a\\u0000b"'),
    ("data: /clips", "data is a mapping, got '/clips'; its keys are path, train, "),
    ("search: {axes: x_fast, }", "search.axes must be a list of texts, got 'x_fast'; write [x_fast]"),
    ("search: {axes: [1]}", "search.axes must be a list of texts, got 1"),
], ids=str)
def test_wrong_type_says_what_was_expected_and_found(text: str, expected: str) -> None:
    (found,) = mistakes(text)
    assert found.startswith(f"mine.yaml:1: {expected}")
    assert found.endswith(expected) or expected.endswith(", ")


@pytest.mark.parametrize(("text", "expected"), [
    ("search: {expansion_rate: 1}", "search.expansion_rate must be above 1 and at most 16, got 1.0"),
    ("search: {expansion_rate: 16.5}", "search.expansion_rate must be above 1 and at most 16, got 16.5"),
    ("data: {jitter_min: 0.5}", "data.jitter_min must be at least 1 and at most 4, got 0.5"),
    ("candidate: {epochs: 0}", "candidate.epochs must be at least 1 and at most 100000, got 0"),
    ("candidate: {lr: .inf}", "candidate.lr must be a finite number, got inf"),
    ("candidate: {lr: 1e999}", "candidate.lr must be a finite number, got inf"),
    ("candidate: {lr: .nan}", "candidate.lr must be a finite number, got nan"),
    (f"run: {{seed: {2**63}}}", f"run.seed must be below 2^63, got {2**63}"),
    (f"run: {{seed: {'9' * 399}}}", f"run.seed must be below 2^63, got {'9' * 76} ..."),
    (f"candidate: {{lr: {'9' * 399}}}", "candidate.lr must be a finite number, got inf"),
    ("search: {criterion: acuracy}",
     f"search.criterion must be one of {CRITERIA}, got 'acuracy'; did you mean 'accuracy'?"),
    ("search: {criterion: 3}", f"search.criterion must be one of {CRITERIA}, got 3"),
    ("search: {axes: [x_fats]}", f"search.axes may name {AXES}, got 'x_fats'; did you mean 'x_fast'?"),
    ("search: {rungs: [0.5, 0.3]}", "search.rungs must increase from item to item, got [0.5, 0.3]"),
    ("search: {rungs: [1.0]}", "search.rungs must be above 0 and below 1, got 1.0"),
    ("search: {rungs: 0.5}", "search.rungs must be a list of numbers, got 0.5"),
    ("search: {axes: []}", f"search.axes must name at least one of {AXES}, got []"),
    ("search: {axes: [x_fast, x_fast]}", "search.axes names 'x_fast' twice"),
], ids=str)
def test_value_out_of_bounds_says_the_bounds(text: str, expected: str) -> None:
    (found,) = mistakes(text)
    assert found == f"mine.yaml:1: {expected}"


@pytest.mark.parametrize(("text", "expected"), [
    ("run: {seed: 1}\nrun: {seed: 2}\n", "mine.yaml:2: duplicate key 'run'; it stands on line 1 already"),
    ("search:\n  basis:\n    frames: 1\n    frames: 2\n",
     "mine.yaml:4: duplicate key 'frames'; it stands on line 3 already"),
    ("run:\n  seed: 1\n  'seed': 1\n", "mine.yaml:3: duplicate key 'seed'; it stands on line 2 already"),
])
def test_duplicate_key_is_refused_at_every_level(text: str, expected: str) -> None:
    assert mistakes(text) == [expected]


@pytest.mark.parametrize(("text", "expected"), [
    ("data:\n  jitter_min: 2\n",
     "mine.yaml:2: data.jitter_min must be at most data.jitter_max, got 2 > 1.25"),
    ("data:\n  path: a\n  val: b\n  train: c\n",
     ("mine.yaml:2: data.path and data.train and data.val name different clips; "
      "keep either the folder or the lists")),
    ("data:\n  val_share: 0.5\n  test_share: 0.5\n",
     "mine.yaml:2: data.val_share and data.test_share leave nothing to train on: 0.5 + 0.5; make them smaller"),
    ("data:\n  group: _(g\n",
     "mine.yaml:2: data.group is no regular expression: missing ), unterminated subpattern at position 1, in '_(g'"),
    ("data:\n  group: _g1\n",
     "mine.yaml:2: data.group needs one pair of parentheses around the group, got '_g1'; for instance '_(g[0-9]+)_'"),
    ("search:\n  limits:\n    resolution: 64\n",
     "mine.yaml:3: search.limits.resolution must be at least search.basis.resolution, got 64 < 112"),
    ("search:\n  basis:\n    width: 1.5\n  limits: {width: 1.25}\n",
     "mine.yaml:4: search.limits.width must be at least search.basis.width, got 1.25 < 1.5"),
    ("run:\n  name: ../x\n",
     ("mine.yaml:2: run.name must be letters, digits, '.', '_' and '-', at most 100, got '../x'; "
      "the folder around it is run.runs_dir")),
])
def test_options_that_contradict_each_other_are_refused(text: str, expected: str) -> None:
    assert mistakes(text) == [expected]


def test_a_mistaken_value_causes_no_second_complaint_about_a_rule() -> None:
    assert len(mistakes("data:\n  jitter_min: 3\n  jitter_max: high\n")) == 1


def test_all_mistakes_are_reported_at_once_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("search:\n  target_gflop: 6\n  expansion_rate: 0.5\nrun:\n  seed: x\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["data.flpi=no"], {"search.target_gflops": -6.0})
    assert str(caught.value) == "\n".join([
        "5 mistakes in the configuration:",
        f"  {file}:2: unknown key 'target_gflop'; did you mean 'target_gflops'?",
        f"  {file}:3: search.expansion_rate must be above 1 and at most 16, got 0.5",
        f"  {file}:5: run.seed must be a whole number, got 'x'",
        "  --set data.flpi=no: unknown key 'flpi'; did you mean 'data.flip'?",
        "  search.target_gflops=-6.0: " + str(caught.value.problems[-1].what),
    ])
    assert "got -6.0" in caught.value.problems[-1].what
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("override", "expected"), [
    ("seed", "must be section.key=value; for instance --set candidate.epochs=20"),
    ("=3", "must be section.key=value; for instance --set candidate.epochs=20"),
    ("search.target_gflop=6", "unknown key 'target_gflop'; did you mean 'search.target_gflops'?"),
    ("epochs=6", "unknown key 'epochs'; did you mean 'candidate.epochs' or 'final.epochs'?"),
    ("run.seed.x=6", "unknown key 'x'"),
    ("run.seed=1e3", "run.seed must be a whole number, got 1000.0"),
    ("run.seed=", "run.seed must be a whole number, got null; leave the line out for the default"),
    ("search.axes=x_fast,x_width",
     "search.axes must be a list of texts, got 'x_fast,x_width'; write [x_fast, x_width]"),
    ("search.basis={frames: 0}", "search.basis.frames must be at least 1 and at most 10000, got 0"),
    ("search.grid=3",
     "search.grid is a mapping, got 3; its keys are frames, resolution, width, bottleneck, depth"),
])
def test_mistaken_set_is_named_as_it_was_typed(override: str, expected: str) -> None:
    assert set_mistakes(override) == [f"--set {override}: {expected}"]


def test_set_that_is_not_yaml_is_named() -> None:
    (found,) = set_mistakes("data.path=[")
    assert found.startswith("--set data.path=[: not valid YAML: ")


def test_mistaken_flag_names_the_option() -> None:
    assert set_mistakes(run__seed="x") == ["run.seed='x': run.seed must be a whole number, got 'x'"]
    assert set_mistakes(run__sed=1) == ["run.sed=1: unknown key 'sed'; did you mean 'run.seed'?"]
    assert set_mistakes(run=1) == ["run=1: run is a section, not a key"]
    assert set_mistakes(data__path="a\udcff") == [
        "data.path='a\udcff': data.path holds a control character or is not UTF-8: \"a\\udcff\""]


@pytest.mark.parametrize(("text", "line"), [
    ("a: b: c\n", 1), ("run:\n\tseed: 1\n", 2), ("run: [\n", 2), ("run: {}\n---\nrun: {}\n", 2), ("x: *nobody\n", 1),
    ("run: \x01\n", 0),
])
def test_text_that_is_not_yaml_is_refused_with_its_line(text: str, line: int) -> None:
    (found,) = mistakes(text)
    assert found.startswith(f"mine.yaml:{line}: not valid YAML: " if line else "mine.yaml: not valid YAML: ")


def test_a_tab_is_named_as_the_cause() -> None:
    assert mistakes("run:\n\tseed: 1\n")[0].endswith("; indent with spaces, not with tabs")


def test_a_list_or_a_word_is_no_configuration() -> None:
    keys = "data, search, candidate, final, run"
    assert mistakes("- 1\n- 2\n") == [f"mine.yaml:1: a configuration is a mapping, got [1, 2]; its keys are {keys}"]
    assert mistakes("\n\nhello\n") == [f"mine.yaml:3: a configuration is a mapping, got 'hello'; its keys are {keys}"]


def test_tags_are_refused() -> None:
    (found,) = mistakes("run:\n  name: !!python/object/apply:os.system [ls]\n")
    assert found == ("mine.yaml:2: tags such as 'tag:yaml.org,2002:python/object/apply:os' are not understood; "
                     "take the tag away")


BOMB = "a: &a [x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
                               for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(("text", "expected"), [
    (BOMB, "more than 32 aliases (*name)"),
    ("[" * 900_000, "nested more than 16 levels deep"),
    ("a: " + "{a: " * 20, "nested more than 16 levels deep"),
    ("run: {name: " + "x" * 1_000_001 + "}", "larger than 1 MB, which no configuration is"),
    ("run: {seed: " + "9" * 5000 + "}", "run.seed must be a whole number, got '9999"),
    ("search: {axes: &a [*a]}", "search.axes must be a list of texts, got []"),
], ids=["bomb", "brackets", "braces", "large", "digits", "loop"])
@pytest.mark.timeout(60)
def test_hostile_text_is_refused_in_bounded_time(text: str, expected: str) -> None:
    (found,) = mistakes(text)
    assert expected in found
    assert len(found) < 500


def test_a_file_of_another_kind_is_not_answered_line_by_line() -> None:
    found = mistakes("".join(f"word{number}: 1\n" for number in range(5000)))
    assert len(found) == 101
    assert found[-1] == "mine.yaml:101: reading stops here after 100 mistakes; is it the right file?"


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"run:\n  name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: not UTF-8 text; save the file as UTF-8"):
        load_config(latin)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="large.yaml: larger than 1 MB, which no configuration is"):
        load_config(large)


def test_unknown_source_suggests_and_lists_the_ready_ones(tmp_path: Path) -> None:
    ready = "ready by name: default, folder, kinetics, quickstart; or give the path of a YAML file"
    cases = {
        "quikstart": f"there is no configuration 'quikstart'\n  did you mean 'quickstart'? {ready}",
        "zzz": f"there is no configuration 'zzz'\n  {ready}",
        "conf/kinetic.yaml": f"there is no file 'conf/kinetic.yaml'\n  did you mean 'kinetics'? {ready}",
        "x" * 5000: f"there is no configuration '{'x' * 5000}'\n  {ready}",
        str(tmp_path): f"'{tmp_path}' is a folder, not a configuration\n  name a folder of clips with --data",
    }
    for source, expected in cases.items():
        with pytest.raises(UsageError) as caught:
            load_config(source)
        assert str(caught.value) == expected
