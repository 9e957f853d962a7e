"""The expansion figure (paper, figure 2), accuracy against complexity: every candidate a point, the chosen path a line;
and the figure of a network's confusions, for five classes as for four hundred.

Each is drawn on a `Figure` of its own, so that nothing global is touched and no display is needed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from expand.errors import UsageError
from expand.expansion.text import axis_name, number, one_line, percent, value_text
from expand.report.summary import ENDED
from expand.rundir.files import atomic_path, jsonable

STYLES = {"basis": ("#222222", "h"), "x_fast": ("#D55E00", "^"), "x_temporal": ("#E0A000", "v"),
          "x_spatial": ("#0072B2", "s"), "x_depth": ("#009E73", "D"), "x_width": ("#B0529C", "P"),
          "x_bottleneck": ("#4AA8DC", "o")}
"""Colour (distinct for the colour-blind) and marker of an axis."""
INK, GREY, CONTRACTED, STAR = "#222222", "#777777", "#8B1A1A", "#F5C518"
SIZE_INCHES, DPI = (9.0, 5.6), 200
"""1,800 pixels wide: sharp at the 900 px of a README, where a font size of 10 is 14 px."""

MOST_LABELLED = 150
"""Up to so many candidates, those that were not chosen are labelled too, where there is room; of more there is none,
and to look for it would take minutes."""
FOOT_STEP = 0.036
"""Share of the axes' height for one candidate without accuracy."""

# Labels are placed by hand. adjustText was tried in its place: its labels crossed the path and one another, it took
# several times as long, and it imports pyplot and scipy.
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

COUNTED, NAMED = 20, 60
"""Up to so many classes, a matrix of confusions has counts in its cells; up to so many, names at its axes."""
LISTED = 40
"""Most frequent confusions that are written out beside a matrix without names."""
LONGEST_NAME = 26

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""


def plot_expansion(summary: Mapping[str, Any], out: Path | str) -> Path:
    """Draw the run of `summary` (`expand.report.summary.summarize`) into the .png or .svg file `out`; return it.

    A run without a finished candidate gives a figure too. Raises `UsageError` for another suffix, `RunError` where the
    file cannot be written.
    """
    out = Path(out)
    kind = out.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise UsageError(f"cannot draw a '{out.suffix or out.name}' file", where=str(out),
                         fix="Name a file that ends in .png or .svg.")
    figure = expansion_figure(summary)
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "x3d-expand"}), atomic_path(out) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
    return out


def expansion_figure(summary: Mapping[str, Any]) -> Figure:
    """Return the figure itself, for a notebook or another format."""
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _set_limits(axes, summary)
    networks = _networks(summary)
    for step in summary["steps"]:  # those without an accuracy stand at the foot of the axes, one above the other
        at_foot = 0
        for candidate in step["candidates"]:
            (face, edge, marker), chosen, point = _style(candidate), candidate["selected"], _point(candidate)
            if point is None:
                _draw_at_foot(axes, candidate, face, marker, FOOT_STEP * (at_foot + 0.9))
                at_foot += 1
                continue
            _draw_error_bar(axes, candidate, face if chosen else face + "88")
            if candidate["share"] is not None:  # measured before the end of its training
                axes.plot(*point, marker, markerfacecolor="none", markeredgecolor=face, markersize=7, zorder=4)
                continue
            axes.plot(*point, marker, color=face, markersize=10 if chosen else 7.5, alpha=1.0 if chosen else 0.85,
                      markeredgecolor=INK if chosen and not candidate["also"] else edge,
                      markeredgewidth=1.6 if candidate["also"] else 1.1 if chosen else 0.7, zorder=6 if chosen else 4)
    path = [point for step in summary["steps"] if step["axis"] is not None and (point := _point(step))]
    if path:
        axes.plot(*zip(*path, strict=True), "-", color=INK, linewidth=2.0, alpha=0.85, zorder=3.5)
    if path and (contraction := _contraction(summary)):
        if point := _point(contraction):  # a dashed arrow leads back to it from the last expansion
            axes.annotate("", point, path[-1], zorder=5, arrowprops={
                "arrowstyle": "-|>", "linestyle": (0, (3, 2)), "color": CONTRACTED, "linewidth": 1.8, "shrinkA": 6,
                "shrinkB": 6, "connectionstyle": "arc3,rad=-0.6"})
            _draw_error_bar(axes, contraction, CONTRACTED)
            axes.plot(*point, "<", color=CONTRACTED, markersize=9.5, markeredgecolor=INK, markeredgewidth=1.1,
                      zorder=6.5)
        else:
            _draw_at_foot(axes, contraction, CONTRACTED, "<", FOOT_STEP * 0.9)
    winner = summary["winner"]
    if winner and (point := _point(winner)):
        _draw_error_bar(axes, winner, INK)
        axes.plot(*point, "*", color=STAR, markersize=18, markeredgecolor=INK, markeredgewidth=1.2, zorder=7)
    _draw_surroundings(axes, summary, networks)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    _place_labels(axes, summary, networks, path)
    return figure


def _networks(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [candidate for step in summary["steps"] for candidate in step["candidates"]]


def _contraction(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the contraction, None where it is no network of its own."""
    entry = summary["contraction"]
    return entry if entry and entry["id"] else None


def _point(entry: Mapping[str, Any]) -> Point | None:
    """Return GFLOPs and per cent, or None where there is no accuracy."""
    return None if entry["accuracy"] is None else (entry["gflops"], 100 * entry["accuracy"])


def _set_limits(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Make room for points, error bars and labels: at least a factor of four in complexity, 20 % in accuracy."""
    winner, contraction = summary["winner"], _contraction(summary)
    drawn = [*_networks(summary), *([contraction] if contraction else [])]
    sizes = [entry["gflops"] for entry in drawn] + ([summary["target_gflops"]] if summary["target_gflops"] else [])
    low, high = (min(sizes), max(sizes)) if sizes else (0.01, 1.0)
    axes.set_xscale("log")
    decades = math.log10(high / low)
    margin = max(0.1, 0.08 * decades, (math.log10(4) - decades) / 2)
    axes.set_xlim(low / 10 ** margin, high * 10 ** (1.4 * margin))
    bars = [end for entry in [*drawn, *([winner] if winner else [])] if _point(entry) for _, end in _bar(entry)]
    bottom, top = (min(bars), max(bars)) if bars else (0.0, 100.0)
    room = max(3.0, 0.12 * (top - bottom), (20 - (top - bottom)) / 2)
    bottom, top = (max(-2.0, bottom - room), top + 1.2 * room) if bars else (bottom, top)

    # Below the scale is a foot for candidates without accuracy, as high as the highest pile of them needs.
    piles = [sum(_point(candidate) is None for candidate in step["candidates"]) for step in summary["steps"]]
    highest = max([*piles, int(contraction is not None and _point(contraction) is None)], default=0)
    foot = FOOT_STEP * (highest + 0.8) if highest else 0.0
    low = bottom - foot / (1 - foot) * (top - bottom)
    axes.set_ylim(low, top)
    axes.set_yticks([tick for tick in axes.get_yticks() if max(0.0, bottom) <= tick <= min(100.0, top)])
    axes.set_ylim(low, top)
    if foot:
        axes.add_patch(Rectangle((0, 0), 1, foot, transform=axes.transAxes, color="#F3F3F3", linewidth=0, zorder=0))
        axes.text(0.995, foot / 2, "no accuracy", transform=axes.transAxes, ha="right", va="center", color=GREY,
                  fontsize=8.5)


def _style(candidate: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return face colour, edge colour and marker; a merged candidate has its second axis's colour as its edge."""
    color, marker = STYLES.get(candidate["axis"], (GREY, "o"))
    also = candidate["also"]
    return (color, STYLES.get(also[0], (GREY, "o"))[0], ">") if also else (color, "white", marker)


def _draw_at_foot(axes: Axes, candidate: Mapping[str, Any], color: str, marker: str, height: float) -> None:
    """Draw a cross for a failed candidate, an empty marker for one that has not finished; `height`: a share of the
    axes."""
    failed = candidate["state"] == "failed"
    axes.plot(candidate["gflops"], height, "x" if failed else marker, markerfacecolor="none", markeredgecolor=color,
              markersize=7.5 if failed else 6, markeredgewidth=2.2 if failed else 1.2, zorder=4,
              transform=axes.get_xaxis_transform())


def _bar(entry: Mapping[str, Any]) -> list[Point]:
    """Return the ends of the error bar: one standard error each way, as far as there can be accuracies."""
    ends = (entry["accuracy"] + side * (entry["stderr"] or 0) for side in (-1, 1))
    return [(entry["gflops"], 100 * min(1.0, max(0.0, end))) for end in ends]


def _draw_error_bar(axes: Axes, entry: Mapping[str, Any], color: str) -> None:
    if entry["stderr"]:
        (x, low), (_, high) = _bar(entry)
        middle = 100 * entry["accuracy"]
        axes.errorbar(x, middle, yerr=[[middle - low], [high - middle]], ecolor=color, elinewidth=1.3, capsize=2.5,
                      fmt="none", zorder=3)


def _draw_surroundings(axes: Axes, summary: Mapping[str, Any], networks: Sequence[Mapping[str, Any]]) -> None:
    """Draw the target, the scales, the grid and the legend."""
    if target := summary["target_gflops"]:
        axes.axvline(target, linestyle=(0, (5, 4)), color=GREY, linewidth=1.4, zorder=2)
        axes.text(target, 1.012, f"target {number(target, 4)} GFLOPs", transform=axes.get_xaxis_transform(),
                  ha="center", va="bottom", color="#555555", fontsize=10)
    axes.set_xlabel("GFLOPs (10⁹ multiply-adds of one clip), log scale", fontsize=11)
    axes.set_ylabel("top-1 accuracy on val, %", fontsize=11)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 3)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=10)
    axes.grid(visible=True, which="major", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if not any(candidate["accuracy"] is not None for candidate in networks):
        axes.text(0.5, 0.5, "no candidate has finished yet", transform=axes.transAxes, ha="center", va="center",
                  color=GREY, fontsize=13)

    # The legend has an entry for everything that is in the figure, axes in their fixed order.
    order = list(STYLES)
    merged = {axis_name(candidate): candidate for candidate in networks}
    ordered = sorted(merged.items(), key=lambda item: (order.index(item[1]["axis"]) if item[1]["axis"] in order else 99,
                                                       len(item[1]["also"])))
    handles = [_handle(name, *_style(candidate)) for name, candidate in ordered]
    if any(step["axis"] for step in summary["steps"][1:]):
        handles.append(Line2D([], [], color=INK, linewidth=2, label="chosen path"))
    contraction = _contraction(summary)
    if contraction:
        handles.append(_handle("contraction", CONTRACTED, INK, "<"))
    shown = [*networks, *([contraction] if contraction else [])]
    if any(candidate["state"] == "failed" for candidate in shown):
        handles.append(Line2D([], [], linestyle="", marker="x", color=GREY, markersize=8, markeredgewidth=2,
                              label="failed"))
    if any(candidate["state"] == "stopped" for candidate in shown):
        handles.append(Line2D([], [], linestyle="", marker="D", color=GREY, markerfacecolor="none", markersize=6,
                              label="stopped early"))
    if any(candidate["state"] not in ENDED for candidate in shown):
        handles.append(Line2D([], [], linestyle="", marker="o", color=GREY, markerfacecolor="none", markersize=6,
                              label="not finished yet"))
    if summary["winner"] and summary["winner"]["accuracy"] is not None:
        handles.append(_handle("final training", STAR, INK, "*", size=14))
    if handles:
        axes.figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=9.5, frameon=False,
                           columnspacing=1.4, handletextpad=0.5)


def _handle(name: str, face: str, edge: str, marker: str, size: float = 8) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=face, markeredgecolor=edge, markersize=size, label=name,
                  markeredgewidth=1.5 if marker == ">" else 0.8)


def _place_labels(axes: Axes, summary: Mapping[str, Any], networks: Sequence[Mapping[str, Any]],
                  path: Sequence[Point]) -> None:
    """Label the chosen networks first, which must have a label; then the others, where there is room."""
    placer, contraction, winner = Placer(axes), _contraction(summary), summary["winner"]
    final = _point(winner) if winner else None
    measured = [entry for entry in [*networks, *([contraction] if contraction else [])] if _point(entry)]
    placer.keep_off_points([point for entry in measured if (point := _point(entry))])
    placer.keep_off_points([final] if final else [], radius=9)
    placer.keep_off_line(path)
    for entry in [*measured, *([winner] if final else [])]:
        placer.keep_off_line(_bar(entry))
        placer.keep_off_points(_bar(entry), radius=2.5)
    if summary["target_gflops"]:
        placer.keep_off_line([(summary["target_gflops"], limit) for limit in axes.get_ylim()])
    if winner and final:
        where = "on val, also selected on it" if winner["split"] == "val" else f"on {winner['split']}"
        text = f"final: {percent(winner['accuracy'], winner['stderr'])} %\n{where}"
        placer.place(text, final, must=True, gap=11, fontsize=10.5, color=INK, weight="bold")
    if contraction and (point := _point(contraction)):
        placer.place(f"contracted\n{value_text(contraction)}", point, must=True, fontsize=9.5, color=CONTRACTED,
                     weight="bold")
    for step in reversed(summary["steps"]):
        if step["axis"] is not None and (point := _point(step)):
            verdict = " (tied)" if step["decided"] is False else ""
            placer.place(f"{axis_name(step)}{verdict}\n{value_text(step)}", point, must=True, fontsize=9.5, color=INK,
                         weight="bold", linespacing=1.05)
    for candidate in networks if len(networks) <= MOST_LABELLED else ():
        if not candidate["selected"] and (point := _point(candidate)):
            placer.place(value_text(candidate), point, must=False, gap=5.5, fontsize=8, color=_style(candidate)[0])


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
        """Yield the ways to set `label`, the nearest first."""
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
        """Return the pixels in a point."""
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
    figure = Figure(figsize=(side + (0.9 if is_named else 4.6), side), dpi=150, layout="constrained")
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
                          color="white" if share > 0.3 else INK)
    with warnings.catch_warnings(), atomic_path(out) as temporary:
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box in its place will do
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})
