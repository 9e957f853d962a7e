"""Uneven classes are said before an accuracy is believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from expand.api import plan
from expand.data.sources.clip import Clip, ClipList
from expand.data.sources.splits import balance, balance_notes
from expand.report.plan_text import plan_text


def clips(**counts: tuple[int, int]) -> ClipList:
    """A list of {class: (clips in train, clips in val)}."""
    return ClipList(tuple(counts), tuple(
        Clip(Path(f"{name}{split}{n}"), label, split) for split, place in (("train", 0), ("val", 1))
        for label, (name, each) in enumerate(counts.items()) for n in range(each[place])))


def test_a_set_of_60_to_2_is_said_with_what_a_constant_guess_reaches():
    figures = balance(clips(run=(48, 12), jump=(2, 1)))
    assert figures == {"split": "train", "largest": {"class": "run", "clips": 48}, "ratio": 24.0,
                       "smallest": {"class": "jump", "clips": 2}, "constant_accuracy": round(12 / 13, 6),
                       "few_in_val": {"jump": 1}}
    uneven, few = balance_notes(figures)
    assert "48 clips of 'run', 2 of 'jump' (24 to 1)" in uneven and "right for 92.3% of val" in uneven
    assert few.startswith("1 class has fewer than 5 clips in val ('jump' 1)")


@pytest.mark.parametrize(("sizes", "said"), [((49, 10), False), ((50, 10), True), ((10, 10), False)])
def test_five_to_one_is_the_limit(sizes, said):
    notes = balance_notes(balance(clips(run=(sizes[0], 9), jump=(sizes[1], 9))))
    assert bool(notes) is said


def test_classes_without_a_clip_in_val_or_left_in_train_are_counted():
    listed = clips(run=(9, 9), jump=(9, 0), fly=(1, 9))
    assert balance(listed)["few_in_val"] == {"jump": 0}
    figures = balance(listed, [clip.label != 2 for clip in listed.clips])
    assert figures["ratio"] is None and "0 of 'fly'" in balance_notes(figures)[0]
    assert balance_notes(balance(ClipList((), ()))) == []


def test_a_plan_says_how_the_clips_were_read_and_that_they_are_uneven(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"r{n}.mp4,run\n" for n in range(60))
                                       + "j0.mp4,jump\nj1.mp4,jump\n")
    planned = plan(values={"data.path": str(tmp_path / "list.csv"), "search.target_gflops": 0.5})
    assert any("classes are uneven in train" in note for note in planned["notes"])
    assert "classes are uneven in train" in plan_text(planned) and "read as a list" in plan_text(planned)
    assert plan(values={"search.target_gflops": 0.5})["notes"] == []
