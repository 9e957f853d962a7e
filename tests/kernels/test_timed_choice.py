"""Which implementation is chosen, with a clock of the test's own."""

from __future__ import annotations

import json

import pytest
import torch

from expand.kernels import timed_choice as choice
from expand.kernels.timed_choice import Choices, disagreement


class Clock:
    """Takes the seconds of a rival from `seconds`, by its name; a rival is a function with one."""

    def __init__(self, **seconds):
        self.seconds, self.asked = seconds, []

    def __call__(self, rival):
        self.asked.append(rival.__name__)
        return self.seconds[rival.__name__]


def rival(name, *results, error=None):
    def work():
        if error:
            raise error
        return list(results)

    work.__name__ = name
    return work


def rivals(**changed):
    made = {name: rival(name, torch.ones(3)) for name in ("native", "triton")}
    return {**made, **changed}


@pytest.mark.parametrize("native, triton, chosen", [(2.0, 1.0, "triton"), (1.0, 2.0, "native")])
def test_the_faster_one_is_chosen_once_and_kept(tmp_path, native, triton, chosen):
    clock = Clock(native=native, triton=triton)
    choices = Choices(tmp_path / "kept.json", clock)
    assert choices.pick("shape", rivals()) == chosen
    asked = len(clock.asked)
    assert choices.pick("shape", rivals()) == chosen
    assert Choices(tmp_path / "kept.json", clock).pick("shape", rivals()) == chosen
    assert len(clock.asked) == asked > 0
    assert json.loads((tmp_path / "kept.json").read_text()) == {"shape": chosen}


def test_every_shape_is_measured_by_itself(tmp_path):
    choices = Choices(tmp_path / "kept.json", Clock(native=2.0, triton=1.0))
    choices.pick("one", rivals())
    choices.seconds = Clock(native=1.0, triton=2.0)
    assert choices.pick("other", rivals()) == "native" and choices.pick("one", rivals()) == "triton"


@pytest.mark.parametrize("wrong, word", [
    (rival("triton", torch.ones(3) * 1.1), "off by 0.1"), (rival("triton", torch.full((3,), torch.nan)), "off by nan"),
    (rival("triton", torch.ones(2)), "of shape"), (rival("triton", torch.ones(3).bfloat16()), "bfloat16"),
    (rival("triton"), "0 results of 1"), (rival("triton", error=ValueError("cannot compile")), "cannot compile")])
def test_one_that_fails_or_differs_is_left_out_with_a_warning(wrong, word):
    choices = Choices(None, Clock(native=2.0, triton=1.0))
    with pytest.warns(RuntimeWarning, match=word):
        assert choices.pick("shape", rivals(triton=wrong)) == "native"
    assert choices.pick("shape", rivals(triton=wrong)) == "native"  # without another word


def test_what_was_not_measured_is_not_kept(tmp_path):
    """A compiler or Python.h that is missing today may be there tomorrow."""
    path = tmp_path / "kept.json"
    choices = Choices(path, Clock(native=2.0, triton=1.0))
    with pytest.warns(RuntimeWarning, match="Failed to find C compiler"):
        choices.pick("shape", rivals(triton=rival("triton", error=RuntimeError("Failed to find C compiler"))))
    assert choices.pick("other", rivals()) == "triton"
    assert json.loads(path.read_text()) == {"other": "triton"}
    assert choices.pick("shape", rivals()) == "native"  # in this process, which has warned
    assert Choices(path, Clock(native=2.0, triton=1.0)).pick("shape", rivals()) == "triton"


def test_a_kernel_that_ends_the_use_of_the_gpu_is_not_tried_by_the_next_process(tmp_path):
    path = tmp_path / "kept.json"
    fatal = rivals(triton=rival("triton", error=torch.AcceleratorError("CUDA error: an illegal memory access")))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        Choices(path, Clock(native=2.0, triton=1.0)).pick("shape", fatal)
    assert Choices(path, Clock(native=2.0, triton=1.0)).pick("shape", fatal) == "native"


def test_without_memory_the_standard_is_used_and_nothing_is_remembered():
    choices = Choices(None, Clock(native=2.0, triton=1.0))
    for which in ("native", "triton"):
        full = rivals(**{which: rival(which, error=torch.OutOfMemoryError("full"))})
        assert choices.pick("shape", full) == "native"
    assert choices.known == {} and choices.pick("shape", rivals()) == "triton"


def test_results_that_are_not_finite_decide_nothing():
    choices = Choices(None, Clock(native=2.0, triton=1.0))
    broken = rival("native", torch.tensor([1.0, torch.inf]))
    assert choices.pick("shape", rivals(native=broken)) == "native" and choices.known == {}


def test_nothing_is_measured_while_a_graph_is_captured(monkeypatch):
    choices = Choices(None, Clock(native=2.0, triton=1.0), {"known": "triton"})
    monkeypatch.setattr(choice, "is_capturing", lambda: True)
    assert choices.pick("shape", rivals()) == "native" and choices.pick("known", rivals()) == "triton"
    assert not choices.seconds.asked


def test_what_another_process_chose_meanwhile_counts(tmp_path):
    path = tmp_path / "kept.json"
    mine, theirs = Choices(path, Clock(native=2.0, triton=1.0)), Choices(path, Clock(native=1.0, triton=2.0))
    assert theirs.pick("shape", rivals()) == "native"
    assert mine.pick("shape", rivals()) == "native"


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"shape": 3}', '{"shape": "gone"}'])
def test_a_damaged_file_or_an_unknown_name_is_measured_anew(tmp_path, text):
    path = tmp_path / "kept.json"
    path.write_text(text)
    assert Choices(path, Clock(native=2.0, triton=1.0)).pick("shape", rivals()) == "triton"
    assert json.loads(path.read_text())["shape"] == "triton"


def test_a_disk_that_refuses_costs_nothing_but_the_next_measurement(tmp_path):
    (tmp_path / "file").write_text("")
    choices = Choices(tmp_path / "file" / "kept.json", Clock(native=2.0, triton=1.0))
    assert choices.pick("shape", rivals()) == "triton" and choices.known == {"shape": "triton"}


def test_the_coarsest_type_of_the_results_says_what_rounding_is():
    fine, coarse = torch.ones(3), torch.ones(3).bfloat16()
    assert disagreement([fine, coarse], [fine * 1.01, coarse]) is None  # a weight's gradient, of bfloat16 products
    assert disagreement([fine], [fine * 1.01]) is not None
    assert disagreement([fine], [fine * 1.0001]) is None
