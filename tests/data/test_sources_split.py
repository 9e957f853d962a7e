"""Splits are made class by class and keep groups whole; uneven classes are said before an accuracy is believed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expand.api import plan
from expand.config.schema import DataConfig
from expand.data.sources import list_clips
from expand.data.sources.clip import Clip, ClipList
from expand.data.sources.splits import assign, balance, balance_notes
from expand.errors import DataError
from expand.report.tables import plan_text

CLASSES = st.sampled_from(["run", "jump", "fly"])
ALONE = st.dictionaries(CLASSES, st.integers(1, 40), min_size=1).map(
    lambda counts: [(name, f"{name}/{number}") for name, count in counts.items() for number in range(count)])
GROUPED = st.lists(st.tuples(CLASSES, st.integers(0, 9)), min_size=1, max_size=80).map(
    lambda pairs: [(name, f"{name} {number}") for name, number in pairs])
SPANNING = st.lists(st.tuples(CLASSES, st.integers(0, 9).map(str)), min_size=1, max_size=80)
UNITS = st.one_of(ALONE, GROUPED, SPANNING)
SHARES = st.tuples(st.floats(0.01, 0.9), st.floats(0, 0.9)).filter(lambda shares: sum(shares) < 0.95).map(
    lambda shares: {"val": shares[0], "test": shares[1]})


@given(UNITS, SHARES, st.integers(0, 5))
def test_groups_stay_whole_and_every_class_stays_in_train(units, shares, seed):
    splits = assign(units, shares, seed)
    where: dict[str, set[str]] = {}
    for (_, group), split in zip(units, splits):
        where.setdefault(group, set()).add(split)
    assert all(len(found) == 1 for found in where.values())
    assert {name for (name, _), split in zip(units, splits) if split == "train"} == {name for name, _ in units}


@given(st.one_of(ALONE, GROUPED), st.floats(0.01, 0.9), st.integers(0, 5))
def test_each_class_gives_val_its_share_within_a_group(units, share, seed):
    counts = Counter((name, split) for (name, _), split in zip(units, assign(units, {"val": share}, seed)))
    for name in {name for name, _ in units}:
        sizes = Counter(group for own, group in units if own == name)
        total = sum(sizes.values())
        assert abs(counts[name, "val"] - share * total) <= max(sizes.values())
        assert (counts[name, "val"] > 0) == (len(sizes) > 1)


@given(ALONE, SHARES, st.integers(0, 5))
def test_both_splits_have_their_shares_within_a_clip_or_two(units, shares, seed):
    counts = Counter((name, split) for (name, _), split in zip(units, assign(units, shares, seed)))
    for name, total in Counter(name for name, _ in units).items():
        assert abs(counts[name, "val"] - shares["val"] * total) <= 1
        assert abs(counts[name, "test"] - shares["test"] * total) < 2


@given(UNITS, SHARES, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_of_the_clips_does_not_matter(units, shares, seed, random):
    splits = dict(zip(units, assign(units, shares, seed)))
    shuffled = random.sample(units, len(units))
    assert dict(zip(shuffled, assign(shuffled, shares, seed))) == splits


@given(ALONE, SHARES, st.integers(0, 5))
def test_a_clip_of_another_class_moves_nothing(units, shares, seed):
    more = [*units, ("new", "new/1"), ("new", "new/2"), ("new", "new/3")]
    assert assign(more, shares, seed)[:len(units)] == assign(units, shares, seed)


@given(ALONE, st.floats(0.1, 0.5), st.integers(0, 5))
def test_a_clip_more_in_a_class_moves_one_clip_at_most(units, share, seed):
    name = units[0][0]
    before = assign(units, {"val": share}, seed)
    after = assign([*units, (name, f"{name}/new")], {"val": share}, seed)
    assert sum(first != second for first, second in zip(before, after)) <= 1


def test_another_seed_gives_another_split():
    units = [("run", str(number)) for number in range(100)]
    assert len({tuple(assign(units, {"val": 0.2}, seed)) for seed in range(20)}) == 20


def people(root: Path) -> DataConfig:
    """Two classes, ten people, who do both."""
    for name in ("run", "jump"):
        for person in range(10):
            for take in range(3):
                path = root / name / f"s{person}_{name}_{take}.mp4"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"")
    return DataConfig(path=str(root), group=r"(s\d+)_")


def test_people_stay_together_across_classes(tmp_path):
    listed = list_clips(people(tmp_path))
    val = {clip.group for clip in listed.clips if clip.split == "val"}
    assert len(val) == 2 and not val & {clip.group for clip in listed.clips if clip.split == "train"}
    assert Counter(clip.split for clip in listed.clips) == {"train": 48, "val": 12}
    assert "10 groups kept whole" in listed.notes[-1]


def test_the_split_is_the_same_wherever_the_clips_lie(tmp_path):
    found = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        config = people(tmp_path / place)
        found.append([(clip.path.name, clip.split) for clip in list_clips(config).clips])
    assert found[0] == found[1]


def test_clips_without_a_group_are_named(tmp_path):
    config = people(tmp_path)
    (tmp_path / "run" / "stray.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"data.group '\(s\\d\+\)_' matches nothing in 1 clip:\n  run/stray.mp4"):
        list_clips(config)


def test_classes_that_cannot_be_split_are_named_with_the_way_out(tmp_path):
    (tmp_path / "list.txt").write_text("s1_a.mp4 run\ns2_a.mp4 run\ns1_b.mp4 jump\ns1_c.mp4 jump\ns3_a.mp4 fly\n")
    with pytest.raises(DataError) as raised:
        list_clips(DataConfig(path=str(tmp_path / "list.txt"), group="(s[0-9])"))
    assert "these classes cannot be split" in str(raised.value)
    assert "'jump': all clips are of one group, 's1'" in str(raised.value)
    with pytest.raises(DataError, match="this class cannot be split") as raised:
        list_clips(DataConfig(path=str(tmp_path / "list.txt")))
    assert "'fly': a single clip, s3_a.mp4" in str(raised.value) and "give a val split" in str(raised.value)


def test_a_small_class_still_has_a_clip_in_val_and_a_note_says_where_test_has_none(tmp_path):
    lines = [f"run{number}.mp4 run" for number in range(50)] + ["a.mp4 fly", "b.mp4 fly"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    listed = list_clips(DataConfig(path=str(tmp_path / "list.txt"), test_share=0.1))
    counts = Counter((listed.classes[clip.label], clip.split) for clip in listed.clips)
    assert counts["fly", "val"] == counts["fly", "train"] == 1 and counts["run", "val"] == 10
    assert listed.notes[-1] == "1 class without a clip in test, too few to divide: fly"


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
