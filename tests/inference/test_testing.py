"""The published protocol: which clips, which classes, which figures, and what is written about them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import expand
from expand.config import dump_config
from expand.config.schema import Config, DataConfig
from expand.data.sources import list_clips
from expand.data.sources.run_list import write_run_list
from expand.errors import DataError, ExpandError, UsageError
from expand.model.load import load_model
from expand.rundir.files import read_json
from expand.rundir.paths import RunPaths
from expand.space.factors import PRESETS
from expand.space.network import dump_network
from expand.training.evaluate import wilson_interval
from tests.data.clips import steady, write_clip, write_folder
from tests.inference.networks import save_network

FILES = {"result.json", "classes.csv", "confusion.csv", "confusion.png", "scores.csv"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("clips") / "set", clips=3, splits=("train", "val", "test"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("network") / "tiny.pt", ("walk", "run", "jump"))


@pytest.fixture
def judge(weights, clips, tmp_path):
    def run(source=weights, data=clips, **options):
        return expand.test(source, **{"data": data, "out": tmp_path / "out", "threads": 1, **options})

    return run


def test_the_figures_agree_with_the_scores_that_are_written(judge, tmp_path):
    result = judge()
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    assert read_json(tmp_path / "out" / "result.json") == result
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    confusion = pd.read_csv(tmp_path / "out" / "confusion.csv", index_col="class")
    per_class = pd.read_csv(tmp_path / "out" / "classes.csv", index_col="class")
    assert (result["videos"], result["views"], result["split"], result["left_out"]) == (6, 10, "test", 0)
    assert result["accuracy"] == pytest.approx((scores["class"] == scores["guess"]).mean())
    assert result["accuracy_interval"] == list(wilson_interval(result["accuracy"], 6))
    assert list(confusion.columns) == list(confusion.index) == ["walk", "run", "jump"]
    for (true, guess), rows in scores.groupby(["class", "guess"]):
        assert confusion.loc[true, guess] == len(rows)
    assert confusion.to_numpy().sum() == 6 and set(per_class.index) == {"run", "jump"}  # no video of walk
    assert (per_class["videos"] == 3).all()
    assert per_class["accuracy"].mean() == pytest.approx(result["accuracy"])


def test_labels_are_matched_by_name_whatever_their_order(judge, tmp_path):
    judge(split="val")
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert set(zip(scores["class"], scores["label"])) == {("run", 1), ("jump", 2)}
    assert all(path.split("/")[-2] == name for path, name in zip(scores["path"], scores["class"]))


def test_classes_that_the_network_does_not_know_are_listed(judge, tmp_path):
    strange = save_network(tmp_path / "strange.pt", ("jumps", "run", "sit"))
    with pytest.raises(DataError) as raised:
        judge(strange)
    assert "'jump'; did you mean 'jumps'?" in str(raised.value) and "'run'" not in raised.value.what


def test_a_split_alone_is_enough(judge, weights, tmp_path):
    alone = write_folder(tmp_path / "alone", clips=2, splits=("val",))
    assert (judge(weights, alone)["split"], judge(weights, alone)["videos"]) == ("val", 4)


def test_nameless_classes_are_taken_in_order_and_that_is_said(judge, tmp_path, lines):
    result = judge(save_network(tmp_path / "two.pt", 2))
    assert [row["class"] for row in result["per_class"]] == ["jump", "run"]
    assert any("does not know its classes' names" in line and "'jump'" in line for line in lines)
    with pytest.raises(DataError, match="has 3 classes without names, the clips have 2"):
        judge(save_network(tmp_path / "three.pt", 3))


def test_thirty_views_of_square_frames_say_what_ten_say(judge, tmp_path):
    for split in ("train", "val"):
        for label in ("run", "jump"):
            write_clip(tmp_path / "square" / split / label / "a.mp4", steady(10, 1), height=40, width=40)
    ten, thirty = (judge(data=tmp_path / "square", views=views) for views in (10, 30))
    assert thirty["loss"] == pytest.approx(ten["loss"], rel=1e-6) and thirty["split"] == "val"
    assert thirty["accuracy"] == ten["accuracy"]


def make_run(root, weights, data):
    """What a run leaves that a test needs."""
    paths = RunPaths(root)
    paths.final.mkdir(parents=True)
    paths.weights.write_bytes(weights.read_bytes())
    paths.config.write_text(dump_config(Config(data=DataConfig(path=str(data)))))
    paths.journal.touch()
    return root


def test_a_run_is_tested_on_its_own_clips_and_keeps_the_result(weights, clips, tmp_path):
    run = make_run(tmp_path / "run", weights, clips)
    result = expand.test(run, threads=1)
    assert (result["data"], result["split"]) == (str(clips), "test") and "no part in the selection" in result["note"]
    assert {file.name for file in (run / "test" / "test-10views").iterdir()} == FILES
    on_val = expand.test(run, split="val", views=30, threads=1)
    assert "also selected on it" in on_val["note"] and on_val["out"] == str(run / "test" / "val-30views")


def test_other_clips_do_not_overwrite_a_runs_result(weights, clips, tmp_path):
    run = make_run(tmp_path / "run", weights, tmp_path / "gone")
    result = expand.test(run, data=clips, threads=1)
    assert Path(result["out"]).parent == run / "test" and result["note"] is None
    other = write_folder(tmp_path / "set", clips=1, splits=("test",))
    assert other.name == clips.name and expand.test(run, data=other, threads=1)["out"] != result["out"]


def test_lists_can_take_the_place_of_a_runs_folder(weights, clips, tmp_path):
    run = make_run(tmp_path / "run", weights, clips)
    listed = sorted((clips / "val").glob("*/*"))
    (tmp_path / "some.csv").write_text("".join(f"{clip} {clip.parent.name}\n" for clip in listed[::2]))
    lists = [f"data.{split}={tmp_path / 'some.csv'}" for split in ("train", "val")]
    result = expand.test(run, overrides=lists, split="val", threads=1)
    assert (result["split"], result["videos"], result["note"]) == ("val", 3, None)
    assert Path(result["out"]).name.startswith("some.csv-")


def test_a_run_without_its_list_is_not_tested_on_what_it_was_trained_on(weights, clips, tmp_path):
    """Whose val split was made from train."""
    run = make_run(tmp_path / "run", weights, clips / "train")
    result = expand.test(run, threads=1)
    assert (result["split"], result["videos"]) == ("val", 2)


def test_where_a_runs_clips_lie_may_be_said_but_not_how_they_were_parted(weights, clips, tmp_path):
    run = make_run(tmp_path / "run", weights, clips)
    write_run_list(RunPaths(run).clips, DataConfig(path=str(clips)), list_clips(DataConfig(path=str(clips))))
    (tmp_path / "q.csv").write_text(f"path\n{next((clips / 'test').glob('*/*'))}\n")
    assert expand.test(run, threads=1)["videos"] == 6
    assert expand.test(run, overrides=[f"data.quarantine={tmp_path / 'q.csv'}"], threads=1)["videos"] == 5
    with pytest.raises(UsageError, match="data.val_share: would split the run's clips anew"):
        expand.test(run, overrides=["data.val_share=0.5"], threads=1)


def test_the_built_in_clips_are_tested_only_where_they_are_named(weights):
    with pytest.raises(UsageError, match="which clips"):
        expand.test(weights, overrides=["data.timeout_s=5"])


def test_other_weights_in_a_runs_network_are_not_the_runs_result(weights, clips, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", weights, clips)
    RunPaths(run).network.write_text(dump_network(load_model(weights).network))
    monkeypatch.chdir(tmp_path)
    result = expand.test(run, weights=weights, threads=1)
    assert not Path(result["out"]).is_relative_to(run) and not (run / "test").exists()
    assert (result["weights"], result["note"]) == (str(weights), None)


def test_what_is_no_run_leaves_its_result_here(weights, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expand.test(weights, data=clips, split="val", threads=1)["out"] == "test-tiny-val-10views"
    assert (tmp_path / "test-tiny-val-10views" / "result.json").is_file()


def test_progress_counts_every_view(judge):
    steps = []
    judge(views=30, batch_size=19, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 180) for done in range(18, 181, 18)]


@pytest.mark.parametrize(("options", "message"), [
    ({"views": 20}, "choose 10 or 30"), ({"batch_size": 0}, "a batch of 0 clips"), ({"data": None}, "add --data"),
    ({"batch_size": 10 ** 9}, "1 to 100,000"),
    ({"overrides": ["run.seed=1"]}, "data.* only"), ({"overrides": ["data.mean=0.5"]}, "own description"),
    ({"overrides": ["data.cache=x"]}, "data.cache"), ({"device": "gpu"}, "run.device"), ({"threads": 0}, "run.threads"),
    ({"data": "nowhere"}, "no such folder")])
def test_options_that_cannot_be_meant_are_refused(judge, options, message):
    with pytest.raises(ExpandError) as raised:
        judge(**options)
    assert message in str(raised.value)


def test_a_split_that_is_not_there_is_refused_with_those_that_are(judge, tmp_path):
    with pytest.raises(UsageError) as raised:
        judge(data=write_folder(tmp_path / "few", clips=1), split="test")
    assert "no test split" in str(raised.value) and "train, val" in str(raised.value)


def test_weights_and_a_preset_make_a_network(judge, tmp_path):
    file = save_network(tmp_path / "x2d.pt", ("jump", "run"), PRESETS["x2d"])
    result = judge("x2d", weights=file)
    assert (result["network"], result["videos"]) == ("x2d", 6)
    with pytest.raises(UsageError):
        judge("xs", weights=file)


@pytest.mark.parametrize(("right", "count", "low", "high"), [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_wilsons_interval_is_the_published_one(right, count, low, high):
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert wilson_interval(right / count, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(1 - right / count, count) == pytest.approx((1 - high, 1 - low), abs=5e-5)
