"""Files of any kind are answered or explained, in order, and as the test protocol would."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
import torch

import expand
from expand.data.frames.decode import ClipReader
from expand.data.loading.sampling import window_starts_s
from expand.data.loading.transforms import normalise, resize
from expand.errors import RunError, UsageError
from expand.inference import predicting
from expand.inference.predicting import centre_clips, frame_times
from expand.model.load import load_model
from tests.data.clips import steady, write_clip, write_folder, write_stamped
from tests.inference.networks import FACTORS, save_network

NAMES = ("jump", "run", "walk")
SIDE = 36  # of the evaluation crop for 32 px


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("network") / "tiny.pt", NAMES)


def predict(*arguments, **options):
    return expand.predict(*arguments, threads=1, **options)


def probabilities(file):
    return {guess["class"]: guess["probability"] for guess in file["predictions"]}


def test_a_clip_gets_the_probability_that_the_test_protocol_gives_it(weights, tmp_path):
    folder = write_folder(tmp_path / "set", clips=2)
    expand.test(weights, data=folder, overrides=[f"data.cache_dir={tmp_path / 'cache'}"], out=tmp_path / "out",
                 threads=1)
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    files = predict(weights, scores["path"])["files"]
    for file, (_, row) in zip(files, scores.iterrows(), strict=True):
        best = file["predictions"][0]
        assert (best["class"], best["label"]) == (row["guess"], row["guess_label"])
        assert best["probability"] == pytest.approx(row["probability"], abs=1e-6)
    assert len({file["predictions"][0]["probability"] for file in files}) == len(files)


def test_the_best_classes_come_first_and_no_more_than_asked(weights, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", steady(12, 1))
    whole = predict(weights, [clip])
    assert (whole["network"], whole["classes"]) == ("tiny", 3)
    guesses = whole["files"][0]["predictions"]
    assert [guess["probability"] for guess in guesses] == sorted((g["probability"] for g in guesses), reverse=True)
    assert sum(guess["probability"] for guess in guesses) == pytest.approx(1)
    assert all(NAMES[guess["label"]] == guess["class"] for guess in guesses)
    assert predict(weights, [clip], top=2)["files"][0]["predictions"] == guesses[:2]


def test_classes_without_names_are_told_by_number(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", steady(12, 1))
    file, = predict(save_network(tmp_path / "n.pt", 3), [clip])["files"]
    assert {guess["class"] for guess in file["predictions"]} == {"0", "1", "2"}


def test_what_cannot_be_read_is_explained_and_the_others_are_answered(weights, tmp_path):
    good = write_clip(tmp_path / "good.mp4", steady(12, 1))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(good.read_bytes()[:400])
    empty = tmp_path / "empty.webm"
    empty.touch()
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    folder = tmp_path / "folder"
    folder.mkdir()
    asked = [cut, good, tmp_path / "none.mp4", empty, folder, pipe, good]
    told = []
    files = predict(weights, asked, report=told.append)["files"]
    assert files == told and [file["path"] for file in files] == [str(path) for path in asked]
    assert [file.get("error") for file in files] == [
        "Invalid data found when processing input", None, "no such file", "is empty: 0 bytes",
        "is a folder without a JPEG or PNG picture", "is not a regular file", None]
    assert files[1] == files[6] and len(files[1]["predictions"]) == 3 and files[0]["predictions"] == []


def test_a_timeline_covers_the_file_to_its_end(weights, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", steady(10, 3.5))
    file, = predict(weights, [clip], timeline=True)["files"]
    assert file["length_s"] == pytest.approx(3.4)
    spans = [(window["start_s"], window["end_s"]) for window in file["timeline"]]
    assert spans == [pytest.approx(span) for span in [(0, 1), (0.5, 1.5), (1, 2), (1.5, 2.5), (2, 3), (2.4, 3.4)]]
    longer = predict(weights, [clip], timeline=True, window_s=10, hop_s=2)["files"][0]["timeline"]
    assert [(window["start_s"], window["end_s"]) for window in longer] == [(0, pytest.approx(3.4))]


def test_a_window_is_judged_by_the_clip_in_its_middle(weights, tmp_path):
    path = write_clip(tmp_path / "a.mp4", steady(10, 3), height=40, width=40)
    file, = predict(weights, [path], timeline=True, window_s=0.96, hop_s=0.73)["files"]  # no two frames equally near
    frames = [frame for _, frame in ClipReader(path, SIDE)]
    model = load_model(weights)
    assert len(file["timeline"]) == 4
    for window in file["timeline"]:
        first_s = (window["start_s"] + window["end_s"] - FACTORS.span_s) / 2
        nearest = [round(10 * (first_s + number * 0.1)) for number in range(2)]
        clip_THWC = resize(torch.from_numpy(np.stack([frames[index] for index in nearest])), SIDE)
        with torch.inference_mode():
            expected = model.probabilities(normalise(clip_THWC[None], 0.45, 0.225))[0].tolist()
        assert {g["label"]: g["probability"] for g in window["predictions"]} == pytest.approx(
            dict(enumerate(expected)), abs=1e-5)


def test_a_longer_window_is_the_mean_of_more_clips(weights, tmp_path):
    """A window over the whole file, of as many clips as `views`, says what the file's own predictions say."""
    path = write_clip(tmp_path / "a.mp4", steady(10, 3.1))
    file, = predict(weights, [path], views=3, timeline=True, window_s=3)["files"]
    assert len(file["timeline"]) == 1
    assert probabilities(file["timeline"][0]) == pytest.approx(probabilities(file))


@pytest.mark.parametrize(("length_s", "window_s", "hop_s", "starts_s"), [
    (3, 1, 1, [0, 1, 2]), (3.2, 1, 1, [0, 1, 2, 2.2]), (0.5, 1, 1, [0]), (0, 1, 0.5, [0]),
    (0.9, 0.3, 0.3, [0, 0.3, 0.6])])
def test_windows_are_a_hop_apart_and_the_last_ends_with_the_file(length_s, window_s, hop_s, starts_s):
    assert window_starts_s(length_s, window_s, hop_s) == pytest.approx(starts_s)


def test_clips_come_before_the_frames_after_them_are_read_and_share_frames(tmp_path):
    path = write_clip(tmp_path / "a.mp4", steady(10, 3))
    times_s, stamps, damaged, jumps = frame_times(path)
    assert times_s == pytest.approx(steady(10, 3)) and (damaged, jumps) == (0, 0)
    index_NT = np.array([[0, 0, 4], [2, 4, 6], [29, 29, 29]])
    greys = [clip_THWC[:, 0, 0, 0].astype(float) for clip_THWC in centre_clips(path, 32, index_NT, stamps)]
    assert np.stack(greys) == pytest.approx(20 + 6 * index_NT, abs=4)


@pytest.mark.parametrize(("options", "message"), [
    ({"top": 0}, "at least 1"), ({"views": 0}, "at least 1"), ({"hop_s": 1.0}, "belong to a timeline"),
    ({"timeline": True, "window_s": 0.05}, "span of the network's clip"),
    *(({"timeline": True, "window_s": window_s}, f"a window of {window_s:g} s")
      for window_s in (1e308, 86_401, float("inf"), float("nan"), 0.0, -1.0, 1e-300)),
    *(({"timeline": True, "hop_s": hop_s}, f"a hop of {hop_s:g} s")
      for hop_s in (1e308, float("inf"), float("nan"), -1.0, 1e-300, 0.01)),
    ({"views": 10 ** 9}, "1,000,000,000 views"),
    ({"timeline": True, "hop_s": 0.0}, "at least 1/30 s"), ({"timeline": True, "hop_s": 1.5}, "at most the window")])
def test_options_that_cannot_be_meant_are_refused(weights, options, message):
    with pytest.raises(UsageError) as raised:
        predict(weights, ["a.mp4"], **options)
    assert message in str(raised.value)


@pytest.mark.parametrize("options", [{"views": 1001}, {"timeline": True, "window_s": 1e308},
                                     {"timeline": True, "hop_s": float("nan")}])
def test_options_that_no_network_could_mean_are_refused_before_it_is_loaded(tmp_path, options):
    with pytest.raises(UsageError, match="views|--window|--hop"):
        predict(tmp_path / "no-network.pt", ["a.mp4"], **options)


def test_a_window_longer_than_the_file_takes_no_more_clips_than_the_file_has(weights, tmp_path):
    path, done = write_clip(tmp_path / "a.mp4", steady(10, 3.1)), []
    file, = predict(weights, [path], views=3, timeline=True, window_s=86_400,
                    progress=lambda clips, total: done.append(total))["files"]
    assert len(file["timeline"]) == 1 and set(done) == {6}
    assert probabilities(file["timeline"][0]) == pytest.approx(probabilities(file))


def test_a_timeline_that_would_never_end_is_refused_before_the_work(weights, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", steady(10, 3))
    monkeypatch.setattr(predicting, "MOST_CLIPS", 50)
    file, = predict(weights, [path], timeline=True, hop_s=1 / 30)["files"]
    assert "more than 50" in file["error"] and "--hop" in file["error"] and "timeline" not in file


def test_a_clock_that_jumps_makes_no_windows(weights, tmp_path):
    path = write_stamped(tmp_path / "a.mkv", [number / 30 + 3600 * (number > 29) for number in range(60)])
    file, = predict(weights, [path], timeline=True)["files"]
    assert file["length_s"] < 2.1 and file["clock_jumps"] == 1 and len(file["timeline"]) <= 4


def test_a_network_without_weights_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(UsageError) as raised:
        predict("xs", ["a.mp4"])
    assert "without weights" in str(raised.value) and "--weights" in str(raised.value)


def test_scores_that_are_not_finite_are_an_error_of_the_network(weights, tmp_path):
    content = torch.load(weights, weights_only=True)
    content["model"]["head.classifier.weight"].fill_(3e38)  # finite, but not what comes out
    torch.save(content, tmp_path / "nan.pt")
    with pytest.raises(RunError, match="not finite"):
        predict(tmp_path / "nan.pt", [write_clip(tmp_path / "a.mp4", steady(12, 1))])
