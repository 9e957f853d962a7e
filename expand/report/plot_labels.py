"""Texts beside the points of a figure, placed so that none covers another, a point or a line.

adjustText was tried in its place: its labels crossed the path and one another, it took several times as long, and
it imports pyplot and scipy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""

DIRECTIONS = (135, -45, 112, -68, 158, -22, 90, -90, 180, 0, 45, -135, 68, -112, 22, -158)
"""The directions, in degrees, in which a label is tried around its point: above left and below right first, away from
a rising path."""
NEAR, FAR = (1.0, 1.5, 2.2, 3.2, 4.5), (1.0, 1.5, 2.2, 3.2, 4.5, 6.0, 8.0, 10.0)
"""Distances that are tried, as multiples of the gap, for a label that may be left out and for one that must stand."""
LEADER_FROM = 2.0
"""Multiple of the gap beyond which a thin line ties a label to its point."""
DISTANCE_COST = 3.0
"""The cost of a point of distance, in the measure of what a label covers."""
LINE_HALF_WIDTH = 3.0
"""Half the width that a line is taken to have, pixels."""


@dataclass(frozen=True)
class _Place:
    """One way to set a label: how much it would cover, and where it would stand."""

    cost: float
    covered: float
    align: tuple[str, str]
    offset: tuple[float, float]
    distance: float
    box: Box


@dataclass
class Placer:
    """Place texts in axes whose layout is final. Distances in points; obstacles in pixels, with their weight."""

    axes: Axes
    obstacles: list[tuple[Box, float]] = field(default_factory=list)

    def keep_off_points(self, points: Sequence[tuple[float, float]], radius: float = 4.5) -> None:
        """Keep labels off the markers at `points` (data coordinates)."""
        pixels = radius * self._scale()
        for x, y in self.axes.transData.transform(points) if points else ():
            self.obstacles.append((_around(x, y, pixels), 3.0))

    def keep_off_line(self, points: Sequence[tuple[float, float]]) -> None:
        """Keep labels off the straight lines through `points` (data coordinates)."""
        corners = self.axes.transData.transform(points) if points else ()
        for (x0, y0), (x1, y1) in pairwise(corners):
            count = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / (2 * LINE_HALF_WIDTH)))
            for index in range(count + 1):
                x, y = x0 + index / count * (x1 - x0), y0 + index / count * (y1 - y0)
                self.obstacles.append((_around(x, y, LINE_HALF_WIDTH), 2.0))

    def place(self, text: str, point: tuple[float, float], *, must: bool, gap: float = 7.0, **style: Any) -> bool:
        """Put `text` beside `point` (data coordinates) where it covers least. Where it would cover something it is
        left out, unless it `must` be there. Return True if it is there."""
        label = self.axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", annotation_clip=False,
                                   ha="left", va="bottom", zorder=8, **style)
        label.set_in_layout(False)
        places = self._list_places(label, gap, must)
        best = next(places)
        for place in places:
            if DISTANCE_COST * place.distance >= best.cost:
                break  # the nearest come first: those that follow cost more by their distance alone
            if place.cost < best.cost:
                best = place
        if best.covered > 0.5 and not must:
            label.remove()
            return False
        label.set(ha=best.align[0], va=best.align[1])
        label.xyann = best.offset
        if best.distance > LEADER_FROM * gap:
            leader = self.axes.annotate("", point, xytext=best.offset, textcoords="offset points", zorder=3.2,
                                        arrowprops={"arrowstyle": "-", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4,
                                                    "color": style.get("color", "black"), "alpha": 0.6})
            leader.set_in_layout(False)
        self.obstacles.append((best.box, 3.0))
        return True

    def _list_places(self, label: Annotation, gap: float, must: bool) -> Iterator[_Place]:
        """The ways to set `label`, the nearest first."""
        size, frame = label.get_window_extent(), np.array([self.axes.get_window_extent().extents])
        anchor_x, anchor_y = self.axes.transData.transform(label.xy)
        boxes = np.array([box for box, _ in self.obstacles]).reshape(-1, 4)
        weights = np.array([weight for _, weight in self.obstacles])
        for multiple in FAR if must else NEAR:
            for order, direction in enumerate(DIRECTIONS):
                distance = gap * multiple
                right, up = math.cos(math.radians(direction)), math.sin(math.radians(direction))
                x = anchor_x + right * distance * self._scale() - size.width * _share(right)
                y = anchor_y + up * distance * self._scale() - size.height * _share(up)
                box = (x - 2.0, y - 2.0, x + size.width + 2.0, y + size.height + 2.0)
                outside = (box[2] - box[0]) * (box[3] - box[1]) - float(_overlaps(box, frame)[0])
                covered = float(weights @ _overlaps(box, boxes)) + 2.0 * outside
                if multiple > LEADER_FROM:  # the leader's far half: near its point it may cross what is crowded there
                    for share in np.linspace(0.5, 1.0, 6) * distance * self._scale():
                        spot = _around(anchor_x + share * right, anchor_y + share * up, 2.0)
                        covered += float(weights @ _overlaps(spot, boxes))
                yield _Place(covered + DISTANCE_COST * distance + 0.8 * order, covered,
                             (_side(right, "left", "right"), _side(up, "bottom", "top")),
                             (distance * right, distance * up), distance, box)

    def _scale(self) -> float:
        """Pixels in a point."""
        return self.axes.figure.dpi / 72


def _side(part: float, positive: str, negative: str) -> str:
    return positive if part > 0.3 else negative if part < -0.3 else "center"


def _share(part: float) -> float:
    """Return the share of a label's size that lies before its anchor, for the alignment that `_side` gives."""
    return {"positive": 0.0, "negative": 1.0, "center": 0.5}[_side(part, "positive", "negative")]


def _around(x: float, y: float, half: float) -> Box:
    return x - half, y - half, x + half, y + half


def _overlaps(box: Box, boxes: np.ndarray) -> np.ndarray:
    """Return the pixels that `box` shares with each of `boxes` (N×4)."""
    width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    height = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    return np.maximum(width, 0.0) * np.maximum(height, 0.0)
