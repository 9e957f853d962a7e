"""Tables: a run's status as a data frame for the report and as text for a terminal; tables and text laid out for a
terminal of whatever width and encoding."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console
from rich.table import Table

from expand.expansion.text import AXIS_NAMES, axis_name, cell, duration, number, one_line, percent, value_text
from expand.streams import fit_to_encoding, is_unicode

if TYPE_CHECKING:
    import pandas as pd

FACTORS = ("gamma_tau", "gamma_t", "gamma_s", "gamma_w", "gamma_b", "gamma_d")
COLUMNS = ("step", "kind", "id", "axis", "also", "value", "gflops", "params", "ratio", "overshoot", *FACTORS, "frames",
           "resolution", "stride", "state", "reason", "accuracy", "stderr", "top5", "loss", "score", "selected",
           "wall_s", "peak_memory_mb", "clips_per_s")
STATES = {"finished": "", "failed": "failed", "running": "in training", "waiting": "waiting",
          "interrupted": "interrupted"}
ASCII_HEAD = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)
"""`SIMPLE_HEAD` for streams without characters to draw with."""


def steps_frame(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each trained or proposed network: the basis, every step's candidates, the contraction (`kind`
    tells which).

    Columns are `COLUMNS`; gflops in 10^9 multiply-adds, accuracies 0..1 on val. No rows before the basis is proposed.
    """
    import pandas as pd

    rows = []
    for step, kind, candidate in _networks(summary):
        factors = candidate["factors"] or {}
        own = {"step": step, "kind": kind, "value": value_text(candidate), "also": " ".join(candidate["also"]),
               "reason": cell(candidate["reason"]), **{key: factors.get(key) for key in FACTORS}}
        rows.append({key: own[key] if key in own else candidate.get(key) for key in COLUMNS})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _networks(summary: Mapping[str, Any]) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    step = 0
    for entry in summary["steps"]:
        step = entry["step"]
        for candidate in entry["candidates"]:
            yield step, "basis" if step == 0 else "expansion", candidate
    contraction = summary["contraction"]
    if contraction and contraction["id"]:
        yield step + 1, "contraction", contraction


def status_text(summary: Mapping[str, Any], width: int = 100, encoding: str = "utf-8") -> str:
    """Return the whole status as plain text, lines at most `width` (at least 60) characters; ends with a line end. It
    has an ASCII form of what `encoding` lacks."""
    parts: list[str | Table] = ["\n".join(_header(summary))]
    if summary["steps"]:
        path = _table(encoding, [("step", "right"), ("axis", "left"), ("value", "left"), ("GFLOPs", "right"),
                                 ("ratio", "right"), ("top-1 % (val)", "right"), ("choice", "left")])
        for step in summary["steps"]:
            if step["axis"] is None:
                open_count = sum(candidate["state"] not in ("finished", "failed") for candidate in step["candidates"])
                path.add_texts(str(step["step"]), f"not chosen yet: {open_count} of {len(step['candidates'])} to train")
            else:
                path.add_texts(str(step["step"]), axis_name(step), value_text(step), number(step["gflops"], 4),
                               number(step["ratio"]), percent(step["accuracy"], step["stderr"]), _verdict(step))
        parts += ["\nPath", path, "\nCandidates (> chosen)", _candidates_table(summary, encoding)]
    # Axes that were not tried; an axis that stays out for the same reason stands there once, with its steps.
    excluded: dict[tuple[str, str], list[int]] = {}
    for step in summary["steps"]:
        for item in step["excluded"]:
            excluded.setdefault((item["axis"], one_line(item.get("reason"))), []).append(step["step"])
    if excluded:
        parts += ["\nNot tried", *(f"  {AXIS_NAMES.get(axis, axis)}, step {', '.join(map(str, numbers))}: {reason}"
                                   for (axis, reason), numbers in excluded.items())]
    parts += [*_contraction_lines(summary), *_winner_lines(summary)]
    return lay_out(parts, max(60, width), encoding)


def _header(summary: Mapping[str, Any]) -> list[str]:
    reason = f" ({one_line(summary['reason'])})" if summary["reason"] else ""
    lines = [f"Run {one_line(summary['name'])}: {summary['state']}{reason}", f"  in       {one_line(summary['run'])}"]
    if summary["target_gflops"] is not None:
        lines.append(f"  target   {number(summary['target_gflops'], 6)} GFLOPs, chosen by {summary['criterion']}")
    if summary["classes"] is not None:
        clips = ", ".join(f"{count} {split}" for split, count in (summary["splits"] or {}).items() if count)
        lines.append(f"  data     {summary['classes']} classes; clips: {clips}")
    time = duration(summary["elapsed_s"])
    if summary["state"] != "finished":
        left = ("time left not known before the first candidate has finished" if summary["remaining_s"] is None else
                f"about {duration(summary['remaining_s'])} left")
        time = f"{time} so far; {left}"
    return [*lines, f"  time     {time}"]


def _table(encoding: str, columns: Sequence[tuple[str, str]]) -> SimpleTable:
    table = SimpleTable(1, encoding)
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=justify == "right", overflow="fold")  # type: ignore[arg-type]
    return table


def _candidates_table(summary: Mapping[str, Any], encoding: str) -> SimpleTable:
    table = _table(encoding, [("step", "right"), ("", "right"), ("axis", "left"), ("value", "left"),
                              ("GFLOPs", "right"), ("top-1 % (val)", "right"), ("state", "left")])
    before = None
    for step, kind, candidate in _networks(summary):
        if before not in (None, step):
            table.add_section()
        name = "contraction" if kind == "contraction" else axis_name(candidate)
        table.add_texts(str(step) if step != before else "", ">" if candidate.get("selected") else "", name,
                      value_text(candidate), number(candidate["gflops"], 4),
                      percent(candidate["accuracy"], candidate["stderr"]), _state_text(candidate))
        before = step
    return table


def _verdict(step: Mapping[str, Any]) -> str:
    """Return whether the step's winner is ahead of its rivals beyond the noise."""
    if step["decided"] is None:
        return ""
    if step["decided"]:
        return "decided"
    tied = [axis_name(candidate) for candidate in step["candidates"] if candidate["id"] in step["tied"]]
    return "tied with " + (", ".join(tied) if len(tied) < min(3, len(step["candidates"]) - 1) else
                           f"{len(tied)} of {len(step['candidates']) - 1} rivals")


def _state_text(candidate: Mapping[str, Any]) -> str:
    state, reason = STATES.get(candidate["state"], candidate["state"]), candidate["reason"]
    overshoot = "one grid step, over the rate" if candidate["overshoot"] else ""
    text = f"{state}: {one_line(reason)}" if reason else state
    seeds = f"mean of {len(candidate['accuracies'])} seeds" if len(candidate["accuracies"]) > 1 else ""
    held = f"held back: {one_line(candidate['note'])}" if candidate["note"] else ""
    return "; ".join(part for part in (text, seeds, overshoot, held, *map(one_line, candidate["notes"])) if part)


def _contraction_lines(summary: Mapping[str, Any]) -> list[str]:
    entry = summary["contraction"]
    if entry is None:
        return []
    why = f": {one_line(entry['why'])}" if entry["why"] else ""
    axis = AXIS_NAMES.get(entry["axis"], entry["axis"])
    if entry["id"] is None:
        return [f"\nContraction of {axis}{why}"]
    state = _state_text(entry)
    lines = [f"\nContraction of {axis}{why}",
             f"  to {value_text(entry)}, {number(entry['gflops'], 4)} GFLOPs, top-1 "
             f"{percent(entry['accuracy'], entry['stderr'])} % on val"
             if entry["accuracy"] is not None else f"  to {value_text(entry)}, {number(entry['gflops'], 4)} GFLOPs"]
    return [*lines, f"  {state}"] if state else lines


def _winner_lines(summary: Mapping[str, Any]) -> list[str]:
    winner = summary["winner"]
    if winner is None:
        return []
    factors = winner["factors"] or {}
    network = (f"  {value_text({**winner, 'axis': 'basis'})}, "
               + ", ".join(f"γ{name} {number(factors.get(f'gamma_{name}'), 4)}" for name in "wbd"))
    size = f"  {number(winner['gflops'], 4)} GFLOPs"
    if winner["params"] is not None:
        size += f", {winner['params']:,} parameters"
    lines = ["\nWinner" + (f": {one_line(winner['why'])}" if winner["why"] else ""), network, size]
    if winner["accuracy"] is None:
        state = "in the final training" if winner["final_started"] else "before the final training"
        return [*lines, f"  {state}"]
    lines.append(f"  top-1 {percent(winner['accuracy'], winner['stderr'])} % {winner['note']}")
    if winner["split"] == "test" and winner["val_accuracy"] is not None:
        lines.append(f"  on val, where it was selected: {percent(winner['val_accuracy'], winner['val_stderr'])} %")
    return lines


class SimpleTable(Table):
    """A table with nothing but a line below its head, its columns `gap` characters apart. Of what `encoding` lacks, the
    ASCII form is put in before the columns are measured, so that they stay columns."""

    def __init__(self, gap: int, encoding: str) -> None:
        super().__init__(box=SIMPLE_HEAD if is_unicode(encoding) else ASCII_HEAD, pad_edge=False,
                         padding=(0, gap, 0, 0), show_edge=False)
        self._encoding = encoding

    def add_texts(self, *cells: str) -> None:
        """Add a row of texts."""
        self.add_row(*(fit_to_encoding(cell, self._encoding) for cell in cells))


def lay_out(parts: Iterable[str | Table], width: int, encoding: str, *, wrap: bool = True) -> str:
    """Return all `parts`, one below the other, as plain text for a stream of `encoding`; ends with a line end. Tables
    take `width` characters at most, and so does text where it may `wrap`."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, color_system=None, force_terminal=False, markup=False, emoji=False,
                      highlight=False, legacy_windows=False)
    for part in parts:
        if isinstance(part, str):
            console.print(fit_to_encoding(part, encoding), soft_wrap=not wrap)
        else:
            console.print(part)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
