"""`x3d-expand export`, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from expand.cli.networks import export
from expand.errors import UsageError
from expand.exports import FORMATS
from tests.exports.networks import write_final


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_final(tmp_path_factory.mktemp("trained"))


def call(*arguments: str | Path) -> tuple[str, str]:
    """Standard output and standard error."""
    done = CliRunner().invoke(export, [str(argument) for argument in arguments])
    if done.exception:
        raise done.exception
    return done.stdout, done.stderr


def test_the_files_are_printed_one_a_line(run, tmp_path):
    out, err = call(run, "--format", "slowfast", "--out", tmp_path)
    assert out.splitlines() == [str(tmp_path / "mine.slowfast.pyth"), str(tmp_path / "mine.slowfast.yaml")]
    assert err == "" and all(Path(line).stat().st_size for line in out.splitlines())


def test_json_says_format_files_and_how_far_the_graph_is_from_the_network(run):
    printed = json.loads(call(run, "--format", "torch-export", "--json")[0])
    assert 0 <= printed.pop("largest_difference") < 1e-3
    assert printed == {"format": "torch-export", "files": [str(run / "final" / "mine.pt2")]}
    printed = json.loads(call(run, "--format", "safetensors", "--json")[0])
    assert printed == {"format": "safetensors", "files": [str(run / "final" / "mine.safetensors")]}


def test_help_shows_every_format_with_the_name_of_its_file():
    out, _ = call("--help")
    for name, format in FORMATS.items():
        assert any(line.split()[:2] == [name, format.suffix] for line in out.splitlines() if line.strip())


def test_weights_belong_to_a_description(run, tmp_path):
    description = run / "final" / "network.yaml"
    out, _ = call(description, "--weights", run / "final" / "weights.pt", "--format", "safetensors", "--out", tmp_path)
    assert out == f"{tmp_path / 'mine.safetensors'}\n"
    with pytest.raises(UsageError, match="is a network without weights"):
        call(description, "--format", "safetensors")
