"""Configurations, networks, lists of clips and the small files of a run, from an untrusted source."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.config import dump_config, parse_config
from expand.config.schema import Config
from expand.config.yaml_document import NotYaml, parse_values
from expand.data.sources.run_list import read_clips
from expand.errors import ExpandError, RunError
from expand.exports.card import ENV, LATENCY
from expand.rundir.contents import check_outcome, read_training
from expand.rundir.files import read_json
from expand.rundir.lock import RunLock, holder
from expand.rundir.paths import RunPaths
from expand.space.complexity import complexity_of
from expand.space.factors import PRESETS
from expand.space.network import Network, dump_network, load_network
from expand.untrusted_input import read_bounded
from tests.exports.test_card import CONFIG, RESULT
from tests.hostile.mutations import changed, mangled

NETWORK = Network("mine", PRESETS["s"], 3, ("walk", "run, fast", "Sprünge"), 0.4, 0.3)
CLIPS = (b"path,label,split,group,number\n/a/b.mp4,walk,train,g1,0\n/a/c.mp4,run,train,,1\n/a/d.mp4,walk,val,,0\n"
         b"# class 2 has no clip: jump\n")
ENVIRONMENT = {"x3d_expand": "0.1.0", "git": None, "cores": 2, "packages": {"torch": "2.14.1"}}
MEASURED = {"latency_ms": 3.2, "passes": 30, "batch": 1, "crop": 182, "device": "x86", "threads": 1,
            "precision": "fp32"}
ENDED = {"identity": "it", "result": RESULT, "classes": ["a", "b"], "confusion": {"val": [[1, 0], [0, 1]],
                                                                              "test": [[1, 0], [0, 1]]}}
TRAINING = {"network": NETWORK.as_dict(), "init": None, "config": dump_config(CONFIG), "fingerprint": "f00d",
            "splits": {"train": 3, "val": 1, "test": 0}}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-10**18, 10**18) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12)


def only_our_errors(read: Any, content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            read(path)
        except ExpandError as error:
            str(error).encode("utf-8", "surrogateescape")


@given(mangled(dump_config(Config()).encode()))
@settings(max_examples=60, derandomize=True)
def test_a_changed_configuration_is_read_or_refused(content: bytes) -> None:
    only_our_errors(lambda path: parse_config(content.decode("utf-8", "replace")), content, "config.yaml")


@given(mangled(dump_network(NETWORK).encode()) | changed(NETWORK.as_dict()).map(
    lambda value: yaml.safe_dump(value).encode("utf-8", "backslashreplace")))
@settings(max_examples=150, derandomize=True)
def test_of_a_changed_network_that_is_read_the_costs_can_be_counted(content: bytes) -> None:
    def read(path: Path) -> None:
        network = load_network(path)
        assert complexity_of(network.factors, network.classes).params < 10**10

    only_our_errors(read, content, "network.yaml")


@given(mangled(CLIPS) | st.binary(max_size=60).map(lambda tail: CLIPS + tail))
@settings(max_examples=100, derandomize=True)
def test_a_changed_list_of_clips_is_read_or_refused(content: bytes) -> None:
    def read(path: Path) -> None:
        listed = read_clips(path)
        assert all(0 <= clip.label < len(listed.classes) and not clip.path.exists() for clip in listed.clips)

    only_our_errors(read, content, "clips.csv")


@given(st.sampled_from([(ENVIRONMENT, ENV), (MEASURED, LATENCY), (ENDED, check_outcome)]), st.data())
@settings(max_examples=100, derandomize=True)
def test_the_small_files_of_a_run_are_as_they_were_written_or_refused(pair: tuple, data: st.DataObject) -> None:
    value, check = pair
    content = json.dumps(data.draw(changed(value))).encode()
    content = data.draw(mangled(content)) if data.draw(st.booleans()) else content
    only_our_errors(lambda path: read_json(path, check), content, "it.json")
    only_our_errors(lambda path: read_json(path, check), json.dumps(value).encode(), "it.json")


@given(changed(TRAINING))
@settings(max_examples=60, derandomize=True)
def test_the_beginning_of_a_training_is_as_it_was_written_or_refused(value: Any) -> None:
    text = yaml.safe_dump(value).encode("utf-8", "backslashreplace")
    only_our_errors(lambda path: read_training(RunPaths(path.parent)), text, "training.yaml")


@given(st.binary(max_size=50) | changed({"pid": 17, "host": "here", "started": 1.7e9}).map(
    lambda value: json.dumps(value).encode()))
@settings(max_examples=60, derandomize=True)
def test_what_a_lock_says_is_said_or_passed_over(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = RunPaths(Path(folder))
        with RunLock(paths):
            paths.lock.write_bytes(content)
            found = holder(paths)
            assert found is not None and str(found).isprintable()
            with pytest.raises(RunError, match="works on this run") as caught:
                raise_held(paths)
        assert all(line.isprintable() for line in str(caught.value).splitlines())


def raise_held(paths: RunPaths) -> None:
    """What a second process would be told, without its wait."""
    from expand.rundir.lock import _held_error

    raise _held_error(paths, holder(paths))


@given(json_values)
@settings(max_examples=100, derandomize=True)
def test_what_yaml_wrote_is_read_as_it_was(value: Any) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    assert parse_values(text) == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["1e3", "0777", "yes", "2020-01-01", "1:30", "~", "<<", "=", "0x1F", "1_000", ".5",
                                  "nan"])
def test_a_class_may_be_called_what_yaml_takes_for_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "network.yaml"
    path.write_text(dump_network(Network("mine", PRESETS["s"], 1, (text,))))
    assert load_network(path).class_names == (text,)


LAUGHS = "a: &a [x, x]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip(
    "abcdefghijklmno", "bcdefghijklmnop", strict=True))


@pytest.mark.parametrize(("text", "words"), [
    (LAUGHS, "stand for too much|nested more|aliases"), ("[" * 100_000, "nested more than 16"),
    ("a: &a [*a]", "stand for too much"), ("&a {b: *a}", "stand for too much"),
    ("x" * 1_000_001, "larger than 1 MB"), ("? [a]\n: b", "a key is a list"),
    ("!!python/object/apply:os.system [true]", "are not understood"),
    ("{<<: [&a {x: 1}, *a]}: 1", "a key is a list")])
@pytest.mark.timeout(30)
def test_yaml_that_stands_for_more_than_it_is_is_refused(text: str, words: str) -> None:
    with pytest.raises(NotYaml, match=words):
        parse_values(text)


def test_numbers_of_many_digits_cost_nothing() -> None:
    assert parse_values("9" * 900_000) == "9" * 900_000
    assert parse_values("1" + ":59" * 300_000) == "1" + ":59" * 300_000


def test_a_file_that_is_none_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bounded(tmp_path / "file", 5) == b"12345"
    for path, most, what in ((tmp_path / "file", 4, "larger than 4 bytes"), (tmp_path, 4, "it is a folder"),
                             (Path("/dev/zero"), 4, "it is a device"), (tmp_path / "none", 4, "No such file")):
        with pytest.raises(OSError, match=what):
            read_bounded(path, most)


def test_names_without_a_number_of_classes_are_counted_and_other_things_are_told(tmp_path: Path) -> None:
    """Found by the fuzzer."""
    content = NETWORK.as_dict()
    del content["classes"]
    (tmp_path / "network.yaml").write_text(yaml.safe_dump(content))
    assert load_network(tmp_path / "network.yaml") == NETWORK
    for names in (None, [], 7, "ab", {"a": 0}):
        (tmp_path / "network.yaml").write_text(yaml.safe_dump({**content, "class_names": names}))
        with pytest.raises(ExpandError, match="'classes'"):
            load_network(tmp_path / "network.yaml")
