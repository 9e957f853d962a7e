"""Every second of a training belongs to exactly one phase."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expand.training.progress import CLIPS, OTHER, STEP, Stopwatch


class Clock:
    """Stands still until it is told to go on."""

    now = 100.0

    def __call__(self):
        return self.now


@given(st.recursive(st.tuples(st.sampled_from("abc"), st.integers(0, 9)),
                    lambda inner: st.tuples(st.sampled_from("abc"), st.lists(inner, max_size=4)), max_leaves=20))
def test_nested_phases_share_the_wall_time_with_nothing_lost_or_counted_twice(tree):
    clock, expected = Clock(), {}
    watch = Stopwatch({}, clock)

    def live(node):
        name, content = node
        with watch.phase(name):
            for inner in content if isinstance(content, list) else ():
                live(inner)
            own = 1 if isinstance(content, list) else content
            clock.now += own
            expected[name] = expected.get(name, 0) + own

    live(tree)
    clock.now += 3
    watch.update()
    expected[OTHER] = 3
    assert {name: value for name, value in watch.seconds.items() if value} == {k: v for k, v in expected.items() if v}
    assert sum(watch.seconds.values()) == clock.now - 100


def test_waiting_for_items_and_working_on_them_are_told_apart():
    clock = Clock()
    watch = Stopwatch({}, clock)

    def slow():
        for item in range(3):
            clock.now += 10
            yield item
        clock.now += 5  # finding out that there are no more

    for _ in watch.each(CLIPS, slow()):
        with watch.phase(STEP):
            clock.now += 1
    assert watch.seconds == {OTHER: 0, CLIPS: 35, STEP: 3}


def test_a_phase_that_fails_is_counted_and_left():
    clock = Clock()
    watch = Stopwatch({}, clock)
    with pytest.raises(ValueError, match="so"), watch.phase("a"):
        clock.now += 2
        raise ValueError("so")
    clock.now += 1
    watch.update()
    assert watch.seconds == {"a": 2, OTHER: 1}


def test_a_later_start_adds_to_what_an_earlier_one_spent():
    ticks = count()
    watch = Stopwatch({}, lambda: float(next(ticks)))
    with watch.phase("a"):
        pass
    earlier = {"a": 10.0, "b": 1.0}
    watch.resume(earlier)
    assert earlier["a"] == 11 and earlier["b"] == 1 and watch.seconds is earlier
