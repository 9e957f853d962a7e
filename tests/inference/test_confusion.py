"""Tables and picture of the confusions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from expand.report.plots import plot_confusion
from expand.report.tables import classes_frame, confusion_frame

CONFUSION_KK = np.array([[3, 1, 0], [0, 0, 0], [2, 2, 4]])


def test_a_class_is_told_with_its_most_frequent_mistake():
    rows = classes_frame(CONFUSION_KK, np.array([4, 0, 7]), ["a", "b", "c"]).to_dict("records")
    assert rows == [
        {"class": "a", "label": 0, "videos": 4, "accuracy": 0.75, "top5": 1.0, "confused_with": "b", "confused": 1},
        {"class": "c", "label": 2, "videos": 8, "accuracy": 0.5, "top5": 0.875, "confused_with": "a", "confused": 2}]


def test_the_matrix_has_the_classes_names_in_both_directions():
    frame = confusion_frame(CONFUSION_KK, ["a", "b,b", "c\udcff"])
    assert frame.loc["a", "b,b"] == 1 and frame.loc["c\\udcff", "a"] == 2
    assert frame.to_csv().encode().startswith(b'class,a,"b,b",c')


@pytest.mark.parametrize(("classes", "width"), [(5, (600, 1600)), (400, (1500, 3000))])
def test_the_picture_has_a_bearable_size_whatever_the_number_of_classes(tmp_path, classes, width):
    confusion_KK = np.eye(classes, dtype=int) * 5
    confusion_KK[0, 1] = 3
    plot_confusion(confusion_KK, [f"a class number {i}" for i in range(classes)], tmp_path / "c.png", "title")
    with Image.open(tmp_path / "c.png") as picture:
        assert width[0] < picture.width < width[1]
        blue = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert (blue == (8, 48, 107)).all(1).any()  # the diagonal's


def test_names_of_any_kind_are_drawn_without_a_word(tmp_path):
    names = ["$x^", "a\nb", "波", "\udcff", "n" * 500]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion(np.eye(5, dtype=int), names, tmp_path / "c.png", "$_{ 波")
    assert (tmp_path / "c.png").stat().st_size > 1000
