"""Plans and complexities as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expand.expansion.text import axis_name, number, one_line, value_text
from expand.streams import fit_to_encoding

ROW = "{:>4}  {:24}  {:26}  {:>12}  {:>6}  {:>12}"


def _line(encoding: str, step: Any, candidate: Mapping[str, Any], note: str = "") -> str:
    mark = " (one grid step exceeds the rate)" if candidate["overshoot"] else ""
    held = f" (held back: {candidate['note']})" if candidate["note"] else ""
    value = fit_to_encoding(value_text(candidate), encoding)
    return ROW.format(step, axis_name(candidate) + note, value, f"{candidate['gflops']:.9f}"[:12],
                      f"{candidate['ratio']:.3f}", f"{candidate['params']:,}") + mark + held


def plan_text(planned: Mapping[str, Any], encoding: str = "utf-8") -> str:
    """A plan (docs/json.md) as tables, with an ASCII form of what `encoding` lacks."""
    lines = [f"Target {number(planned['target_gflops'], 6)} GFLOPs; counted with {planned['classes']} classes", "",
             ROW.format("step", "axis", "value", "GFLOPs", "ratio", "parameters"), _line(encoding, 0, planned["basis"])]
    lines += [_line(encoding, step["step"], step) for step in planned["steps"]]
    if planned["contraction"]:
        lines.append(_line(encoding, "", planned["contraction"], note=", contracted"))
    if planned["candidates"] or planned["excluded"]:
        lines += ["", f"Candidates of step {len(planned['steps']) + 1}:"]
        lines += [_line(encoding, "", candidate) for candidate in planned["candidates"]]
        lines += [f"      {axis_name(e)}: {e['reason']}" for e in planned["excluded"]]
        to_come = planned["to_come"]
        cost = number(to_come["gflops"])
        rounds = f"about {to_come['candidates']} candidates in {to_come['steps']} rounds"
        lines += ["", f"To come: {rounds}, {cost} GFLOPs a clip in all"]
    if planned["notes"]:
        lines += ["", "The clips:", *(f"  {one_line(note)}" for note in planned["notes"])]
    return "\n".join(lines)


def complexity_text(counted: Mapping[str, Any]) -> str:
    """A network's costs (docs/json.md) as a table."""
    factors = ", ".join(f"{name} {number(value, 4)}" for name, value in counted["factors"].items())
    clip = value_text({**counted, "axis": "basis"})
    published = f"  {counted['gflops']:.9f} GFLOPs (10^9 multiply-adds of convolutions and linear layers, as published)"
    return "\n".join([
        f"{counted['network']}: {clip}, {counted['classes']} classes", f"  {factors}", published,
        f"  {counted['gflops_fvcore']:.9f} GFLOPs (fvcore's convention: batch norm too)",
        f"  {counted['params']:,} parameters, {counted['activations']:,} activations"])
