"""Axes, values, numbers and times as texts for people; one definition for the log, the tables and the figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expand.expansion.state import BASIS_AXIS
from expand.space.axes import AXES

AXIS_NAMES = {BASIS_AXIS: "basis", **{name: axis.title for name, axis in AXES.items()}}


def axis_name(candidate: Mapping[str, Any]) -> str:
    """Return the axes that a candidate stands for, as in `X-Fast = X-Temporal` where two give the same network."""
    axes = [candidate.get("axis"), *(candidate.get("also") or [])]
    return " = ".join(AXIS_NAMES.get(axis, str(axis)) for axis in axes if axis)


def value_text(candidate: Mapping[str, Any]) -> str:
    """Return the value that the candidate's axis was taken to: `160 px`, `4 frames × 12` (frames × temporal stride),
    `γd 2.2`."""
    axis, factors = candidate.get("axis"), candidate.get("factors") or {}
    frames, resolution = candidate.get("frames"), candidate.get("resolution")
    if axis in ("x_fast", "x_temporal"):
        return _frames_text(frames, candidate.get("stride"))
    if axis == "x_spatial":
        return f"{resolution} px"
    if axis in ("x_depth", "x_width", "x_bottleneck"):
        symbol = axis[2]
        return f"γ{symbol} {number(factors.get(f'gamma_{symbol}'), digits=4)}"
    return f"{_frames_text(frames, candidate.get('stride'))}, {resolution} px"


def _frames_text(frames: int | None, stride: int | None) -> str:
    """One frame has no stride."""
    if frames is None:
        return "?"
    return "1 frame" if frames == 1 else f"{frames} frames × {stride}"


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits in plain notation, never an exponent; `-` where there is none."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    text = f"{float(f'{value:.{digits - 1}e}'):.12f}"
    return text.rstrip("0").rstrip(".") or "0"


def percent(accuracy: float | None, stderr: float | None = None) -> str:
    """Return an accuracy in 0..1 as per cent with one decimal, and its standard error."""
    if accuracy is None:
        return "-"
    return f"{100 * accuracy:.1f}" + (f" ± {100 * stderr:.1f}" if stderr is not None else "")


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    whole = max(0, round(seconds))
    for unit, name, lower, lower_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            count, rest = whole // unit, whole % unit // lower
            return f"{count} {name} {rest} {lower_name}" if rest else f"{count} {name}"
    return f"{whole} s"


def split_note(split: str | None, selected_on_val: bool) -> str:
    """Return the clips that the winner's accuracy stands on, and if the winner was also selected on them."""
    if split == "test":
        return "on test, which played no part in the selection"
    if selected_on_val:
        return "on val, and also selected on it: too high by an unknown amount"
    return "not measured yet"


FORMULA = ("=", "+", "-", "@")
"""The first characters of a cell that a spreadsheet takes for a formula, which can open a program or send data away."""


def cell(text: str | None) -> str | None:
    """Return text from a file as a cell of a table that people open in a spreadsheet: one printable line, with an
    apostrophe before what would be taken for a formula."""
    if text is None:
        return None
    line = one_line(text)
    return f"'{line}" if line.startswith(FORMULA) else line


def one_line(text: object) -> str:
    """Return text from a file as one printable line: control characters could move the cursor of a terminal.
    Undecodable bytes of a file name (lone surrogates) are written out as `\\udcXX`."""
    readable = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter.isprintable() else " " for letter in readable).strip()
