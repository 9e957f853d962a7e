"""`test` and `predict` from the command line."""

from __future__ import annotations

import json
import signal
import time
from itertools import pairwise

import pytest
import torch

import expand
from expand.errors import UsageError
from expand.space.factors import Factors
from expand.space.network import dump_network
from tests.data.clips import steady, write_clip, write_folder
from tests.e2e.runs import start
from tests.inference.networks import save_network


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("network") / "tiny.pt", ("jump", "run"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("clips") / "set", clips=2)


@pytest.fixture
def command(command):
    """With one thread."""
    return lambda *words: command(*words, "--threads", "1")


def test_a_test_prints_its_figures_and_where_the_rest_is(command, weights, clips, tmp_path):
    code, out, err = command("test", weights, "--data", clips, "--out", tmp_path / "out", "--views", "30")
    assert (code, err) == (0, "")
    lines = out[out.index("tiny:"):].splitlines()  # what is decoded is said before
    assert lines[0] == f"tiny: 4 videos of val in {clips}, 30 views each"
    assert "top-1" in lines[1] and "95 % interval" in lines[1] and "top-5  100.0 %" in lines[2]
    assert [line.split()[:2] for line in lines if line.startswith(("jump", "run"))] == [["jump", "2"], ["run", "2"]]
    assert lines[-1].endswith(f"Written to {tmp_path / 'out'}")


def test_the_json_of_a_test_is_what_the_function_returns(command, weights, clips, tmp_path):
    code, out, err = command("test", weights, "--data", clips, "--out", tmp_path, "--json")
    assert (code, err) == (0, "")
    found, expected = json.loads(out), expand.test(weights, data=clips, out=tmp_path, threads=1)
    for result in (found, expected):
        assert result.pop("wall_s") > 0 and result.pop("clips_per_s") > 0
    assert found == expected


def test_predictions_come_in_order_with_what_could_not_be_read(command, weights, tmp_path):
    good = write_clip(tmp_path / "good.mp4", steady(12, 1.5))
    none = tmp_path / "none.mp4"
    code, out, err = command("predict", weights, none, good, "--top", 1)
    first, second, guess = out.splitlines()
    assert (code, err) == (1, "Error: 1 of 2 files could not be read\n")
    assert first == f"{none}: cannot be read: no such file" and second == f"{good} (1.4 s)"
    assert guess.split()[2] in ("jump", "run")
    code, out, err = command("predict", weights, good, "--json")
    assert (code, err) == (0, "") and json.loads(out) == expand.predict(weights, [str(good)], threads=1)


def test_a_timeline_is_merged_where_the_class_stays(command, weights, tmp_path):
    good = write_clip(tmp_path / "good.mp4", steady(12, 4))
    _, out, _ = command("predict", weights, good, "--timeline", "--json")
    windows = json.loads(out)["files"][0]["timeline"]
    seen = [window["predictions"][0]["class"] for window in windows]
    changes = 1 + sum(before != after for before, after in pairwise(seen))
    _, out, _ = command("predict", weights, good, "--timeline")
    spans = [line.split() for line in out.splitlines() if " to " in line]
    assert len(windows) > len(spans) == changes
    assert (spans[0][0], spans[-1][2]) == ("0.0", f"{windows[-1]['end_s']:.1f}")


@pytest.mark.parametrize(("words", "message"), [
    (("test", "xs"), "--weights CHECKPOINT"), (("test", "WEIGHTS"), "add --data"), (("predict", "WEIGHTS"), "VIDEO"),
    (("test", "WEIGHTS", "--views", "20"), "'20' is not one of"),
    (("predict", "WEIGHTS", "a.mp4", "--hop", "1"), "add --timeline")])
def test_a_command_that_cannot_be_meant_is_told_why(command, weights, words, message):
    code, out, err = command(*(weights if word == "WEIGHTS" else word for word in words))
    assert (code, out) == (2, "") and message in err


def test_an_interrupted_test_leaves_no_half_result(clips, tmp_path):
    slow = save_network(tmp_path / "slow.pt", ("jump", "run"), Factors.of(frames=16, stride=1, resolution=160, depth=4))
    process = start("test", slow, "--data", clips, "--out", tmp_path / "out", "--views", "30", "--threads", "1")
    while process.poll() is None and not (tmp_path / "out").exists():  # made before the clips are scored
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_that_do_not_tell_their_network_are_explained_in_the_words_of_the_command_line(command, tmp_path):
    factors = Factors.of(frames=2, stride=4, resolution=32, width=1.0, bottleneck=1.05, depth=0.4)
    whole = save_network(tmp_path / "whole.pt", ("jump", "run"), factors)
    bare = tmp_path / "bare.pt"
    torch.save({"model": torch.load(whole, weights_only=True)["model"]}, bare)
    with pytest.raises(UsageError, match=r"network=\.\.\."):
        expand.load(bare)
    code, out, err = command("predict", bare, "a.mp4")
    assert (code, out) == (2, "") and f"as NETWORK, with --weights {bare}" in err and "network=" not in err
    with pytest.raises(UsageError, match=r"network=\.\.\."):  # and in Python's again after that
        expand.load(bare)


def test_a_description_with_weights_need_not_say_how_many_classes(command, weights, tmp_path):
    said = [line for line in dump_network(expand.load(weights).network).splitlines() if not line.startswith("class")]
    description = tmp_path / "tiny.yaml"
    description.write_text("\n".join(line for line in said if not line.startswith("- ")))
    assert expand.load(weights, description).network.classes == 2


def test_a_network_to_be_trained_need_not_say_how_many_classes(command, tmp_path):
    """The next mistake is told: there are no such clips."""
    description = tmp_path / "net.yaml"
    description.write_text(f"factors: {Factors.of(frames=2, stride=4, resolution=32, depth=0.4).as_dict()}\n")
    code, _, err = command("train", description, "--data", tmp_path / "none", "--run-dir", tmp_path / "run")
    assert code == 1 and f"{tmp_path / 'none'}: no such folder or file" in err
