"""The confusions of a network's classes: tables, and a picture for five classes as for four hundred."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from expand.expansion.text import cell, one_line
from expand.rundir.files import atomic_path, jsonable

DPI = 150
COUNTED, NAMED = 20, 60
"""Up to so many classes, counts stand in the cells; up to so many, names at the axes."""
LISTED = 40
"""Most frequent confusions that are written out beside a matrix without names."""
LONGEST_NAME = 26
INK, PALE = "#222222", "#FFFFFF"


def confusion_frame(confusion_KK: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Return the videos of each class (a row) by the class that they were taken for (a column)."""
    headers = [cell(jsonable(name)) for name in names]
    return pd.DataFrame(confusion_KK, index=pd.Index(headers, name="class"), columns=headers)


def classes_frame(confusion_KK: np.ndarray, top5_K: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Return a row for each class that has videos: class, label, videos, accuracy and top5 (0..1), and the class that
    it was most often mistaken for (None for none) with its count. `top5_K`: videos whose class is among the five
    best."""
    rows = []
    for label in np.flatnonzero(confusion_KK.sum(1)).tolist():
        row_K = confusion_KK[label]
        mistaken_K = np.where(np.arange(len(row_K)) == label, 0, row_K)
        other, videos = int(mistaken_K.argmax()), int(row_K.sum())
        times = int(mistaken_K[other])
        rows.append({"class": jsonable(names[label]), "label": label, "videos": videos,
                     "accuracy": row_K[label] / videos, "top5": top5_K[label] / videos,
                     "confused_with": jsonable(names[other]) if times else None, "confused": times})
    return pd.DataFrame(rows)


def plot_confusion(confusion_KK: np.ndarray, names: Sequence[str], out: Path, title: str) -> None:
    """Draw the shares of each class's videos into the .png file `out`.

    Few classes have their counts in the cells, more their names at the axes, without those that do not occur; many have
    their numbers, and beside the matrix a list of the most frequent confusions. Raises `RunError` where the file cannot
    be written.
    """
    occur = np.flatnonzero(confusion_KK.sum(0) + confusion_KK.sum(1))
    if len(occur) > NAMED:
        occur = np.arange(len(names))
    confusion_KK = confusion_KK[np.ix_(occur, occur)]
    texts = [one_line(jsonable(names[label])) for label in occur.tolist()]
    labels = [text if len(text) <= LONGEST_NAME else text[:LONGEST_NAME - 1] + "…" for text in texts]
    is_named = len(labels) <= NAMED
    side = min(16.0, max(5.5, 3.5 + 0.2 * len(labels))) if is_named else 9.0
    figure = Figure(figsize=(side + (0.9 if is_named else 4.6), side), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    shares_KK = confusion_KK / np.maximum(confusion_KK.sum(1, keepdims=True), 1)  # without videos: zeros
    if is_named:
        axes = figure.add_subplot()
    else:
        axes, beside = figure.subplots(1, 2, width_ratios=(9, 5))
        mistaken_KK = shares_KK * (1 - np.eye(len(labels)))
        worst = np.argsort(-mistaken_KK, axis=None, kind="stable")[:LISTED]
        lines = [f"{mistaken_KK.flat[place]:4.0%}  {row} {labels[row]} → {column} {labels[column]}"
                 for place in worst.tolist() if mistaken_KK.flat[place]
                 for row, column in [divmod(place, len(labels))]]
        beside.set_axis_off()
        beside.set_title("most frequent confusions", fontsize=10, loc="left")
        beside.text(0, 0.99, "\n".join(lines) or "none", transform=beside.transAxes, va="top", fontsize=7.5,
                    linespacing=1.7, parse_math=False)
    power = 0.5 if is_named else 0.3  # one mistake in fifty must be seen, in small cells too
    image = axes.imshow(shares_KK, cmap="Blues", norm=PowerNorm(power, 0, 1), interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the class's videos", fraction=0.04, pad=0.02)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title(title, parse_math=False, fontsize=11)
    if is_named:
        look: dict[str, Any] = {"fontsize": 10 if len(labels) <= COUNTED else 7, "parse_math": False}
        axes.set_xticks(range(len(labels)), labels, rotation=90, **look)
        axes.set_yticks(range(len(labels)), labels, **look)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(10, integer=True))
    if len(labels) <= COUNTED:
        for (row, column), share in np.ndenumerate(shares_KK):
            if count := confusion_KK[row, column]:
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8,
                          color=PALE if share > 0.3 else INK)
    with warnings.catch_warnings(), atomic_path(out) as temporary:
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box in its place will do
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})
