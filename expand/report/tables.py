"""Tables: a run's status and a network's confusions as data frames, a run's status, plans and complexities as text;
and the layout of tables and text for a terminal of any width and encoding."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console
from rich.table import Table

from expand.expansion.text import AXIS_NAMES, axis_name, cell, duration, number, one_line, percent, value_text
from expand.report.summary import ENDED
from expand.rundir.files import jsonable
from expand.streams import fit_to_encoding, is_unicode

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FACTORS = ("gamma_tau", "gamma_t", "gamma_s", "gamma_w", "gamma_b", "gamma_d")
COLUMNS = ("step", "kind", "id", "axis", "also", "value", "gflops", "params", "ratio", "overshoot", *FACTORS, "frames",
           "resolution", "stride", "state", "reason", "accuracy", "stderr", "top5", "loss", "score", "selected",
           "wall_s", "peak_memory_mb", "clips_per_s", "share")
STATES = {"finished": "", "failed": "failed", "running": "in training", "waiting": "waiting",
          "interrupted": "interrupted", "paused": "paused", "stopped": "stopped"}
PLAN_ROW = "{:>4}  {:24}  {:26}  {:>12}  {:>6}  {:>12}"
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


def confusion_frame(confusion_KK: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Return the videos of each class (a row) by the class that they were taken for (a column)."""
    import pandas as pd

    headers = [cell(jsonable(name)) for name in names]
    return pd.DataFrame(confusion_KK, index=pd.Index(headers, name="class"), columns=headers)


def classes_frame(confusion_KK: np.ndarray, top5_K: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Return a row for each class that has videos: class, label, videos, accuracy and top5 (0..1), and the class that
    it was most often mistaken for (None for none) with its count. `top5_K`: videos whose class is among the five
    best."""
    import numpy as np
    import pandas as pd

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
    reason = f" ({one_line(summary['reason'])})" if summary["reason"] else ""
    parts: list[str | Table] = [f"Run {one_line(summary['name'])}: {summary['state']}{reason}",
                                f"  in       {one_line(summary['run'])}"]
    if summary["target_gflops"] is not None:
        parts.append(f"  target   {number(summary['target_gflops'], 6)} GFLOPs, chosen by {summary['criterion']}")
    if summary["classes"] is not None:
        clips = ", ".join(f"{count} {split}" for split, count in (summary["splits"] or {}).items() if count)
        parts.append(f"  data     {summary['classes']} classes; clips: {clips}")
    time = duration(summary["elapsed_s"])
    if summary["state"] != "finished":
        left = ("time left not known before the first candidate has finished" if summary["remaining_s"] is None else
                f"about {duration(summary['remaining_s'])} left")
        time = f"{time} so far; {left}"
    parts.append(f"  time     {time}")

    if summary["steps"]:
        path = _table(encoding, [("step", "right"), ("axis", "left"), ("value", "left"), ("GFLOPs", "right"),
                                 ("ratio", "right"), ("top-1 % (val)", "right"), ("choice", "left")])
        for step in summary["steps"]:
            if step["axis"] is None:
                open_count = sum(candidate["state"] not in ENDED for candidate in step["candidates"])
                path.add_texts(str(step["step"]), f"not chosen yet: {open_count} of {len(step['candidates'])} to train")
                continue
            choice = "decided" if step["decided"] else ""
            if step["decided"] is False:  # the winner is not ahead of these rivals beyond the noise
                rivals = len(step["candidates"]) - 1
                tied = [axis_name(candidate) for candidate in step["candidates"] if candidate["id"] in step["tied"]]
                choice = "tied with " + (", ".join(tied) if len(tied) < min(3, rivals) else
                                         f"{len(tied)} of {rivals} rivals")
            if stopped := sum(candidate["state"] == "stopped" for candidate in step["candidates"]):
                choice += f"{', ' if choice else ''}{stopped} stopped early"
            path.add_texts(str(step["step"]), axis_name(step), value_text(step), number(step["gflops"], 4),
                           number(step["ratio"]), percent(step["accuracy"], step["stderr"]), choice)
        parts += ["\nPath", path, "\nCandidates (> chosen)", _candidates_table(summary, encoding)]

    # Axes that were not tried; an axis that stays out for the same reason stands there once, with its steps.
    excluded: dict[tuple[str, str], list[int]] = {}
    for step in summary["steps"]:
        for item in step["excluded"]:
            excluded.setdefault((item["axis"], one_line(item.get("reason"))), []).append(step["step"])
    if excluded:
        parts += ["\nNot tried", *(f"  {AXIS_NAMES.get(axis, axis)}, step {', '.join(map(str, numbers))}: {reason}"
                                   for (axis, reason), numbers in excluded.items())]

    if entry := summary["contraction"]:
        why = f": {one_line(entry['why'])}" if entry["why"] else ""
        parts.append(f"\nContraction of {AXIS_NAMES.get(entry['axis'], entry['axis'])}{why}")
        if entry["id"] is not None:
            accuracy = (f", top-1 {percent(entry['accuracy'], entry['stderr'])} % on val"
                        if entry["accuracy"] is not None else "")
            parts.append(f"  to {value_text(entry)}, {number(entry['gflops'], 4)} GFLOPs{accuracy}")
            if state := _state_text(entry):
                parts.append(f"  {state}")
    parts += _winner_lines(summary)
    return lay_out(parts, max(60, width), encoding)


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


def _state_text(candidate: Mapping[str, Any]) -> str:
    state, reason = STATES.get(candidate["state"], candidate["state"]), candidate["reason"]
    overshoot = "one grid step, over the rate" if candidate["overshoot"] else ""
    text = f"{state}: {one_line(reason)}" if reason else state
    if candidate["share"] is not None:
        text += f" at {number(100 * candidate['share'])} %"
    seeds = f"mean of {len(candidate['accuracies'])} seeds" if len(candidate["accuracies"]) > 1 else ""
    held = f"held back: {one_line(candidate['note'])}" if candidate["note"] else ""
    return "; ".join(part for part in (text, seeds, overshoot, held, *map(one_line, candidate["notes"])) if part)


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


def plan_text(planned: Mapping[str, Any], encoding: str = "utf-8") -> str:
    """Return a plan (docs/json.md) as tables, with an ASCII form of what `encoding` lacks."""

    def row(step: Any, candidate: Mapping[str, Any], note: str = "") -> str:
        mark = " (one grid step exceeds the rate)" if candidate["overshoot"] else ""
        held = f" (held back: {candidate['note']})" if candidate["note"] else ""
        value = fit_to_encoding(value_text(candidate), encoding)
        return PLAN_ROW.format(step, axis_name(candidate) + note, value, f"{candidate['gflops']:.9f}"[:12],
                               f"{candidate['ratio']:.3f}", f"{candidate['params']:,}") + mark + held

    lines = [f"Target {number(planned['target_gflops'], 6)} GFLOPs; counted with {planned['classes']} classes", "",
             PLAN_ROW.format("step", "axis", "value", "GFLOPs", "ratio", "parameters"), row(0, planned["basis"])]
    lines += [row(step["step"], step) for step in planned["steps"]]
    if planned["contraction"]:
        lines.append(row("", planned["contraction"], note=", contracted"))
    if planned["candidates"] or planned["excluded"]:
        lines += ["", f"Candidates of step {len(planned['steps']) + 1}:"]
        lines += [row("", candidate) for candidate in planned["candidates"]]
        lines += [f"      {axis_name(e)}: {e['reason']}" for e in planned["excluded"]]
        to_come = planned["to_come"]
        cost = number(to_come["gflops"])
        rounds = f"about {to_come['candidates']} candidates in {to_come['steps']} rounds"
        lines += ["", f"To come: {rounds}, {cost} GFLOPs a clip in all"]
    if planned["notes"]:
        lines += ["", "The clips:", *(f"  {one_line(note)}" for note in planned["notes"])]
    return "\n".join(lines)


def complexity_text(counted: Mapping[str, Any]) -> str:
    """Return a network's costs (docs/json.md) as a table."""
    factors = ", ".join(f"{name} {number(value, 4)}" for name, value in counted["factors"].items())
    clip = value_text({**counted, "axis": "basis"})
    published = f"  {counted['gflops']:.9f} GFLOPs (10^9 multiply-adds of convolutions and linear layers, as published)"
    return "\n".join([
        f"{counted['network']}: {clip}, {counted['classes']} classes", f"  {factors}", published,
        f"  {counted['gflops_fvcore']:.9f} GFLOPs (fvcore's convention: batch norm too)",
        f"  {counted['params']:,} parameters, {counted['activations']:,} activations"])


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
