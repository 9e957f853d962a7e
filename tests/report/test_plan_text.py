"""Plans and complexities as text: the figures are those of the JSON."""

from __future__ import annotations

import pytest

from expand import api
from expand.report.tables import complexity_text, plan_text
from expand.space.factors import PRESETS
from tests.expansion.simulated import PAPER_PATH


def plan(target: float, path: tuple[str, ...] = (), *overrides: str) -> dict:
    return api.plan(values={"search.target_gflops": target}, path=path, overrides=overrides)


def line_with(text: str, *words: str) -> str:
    (line,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return line


def test_a_plan_shows_every_step_to_the_last_digit() -> None:
    planned = plan(36.0, PAPER_PATH)
    text = plan_text(planned)
    assert text.startswith("Target 36 GFLOPs; counted with 400 classes\n")
    rows = text.splitlines()[4:]
    assert len(rows) == 11 and "Candidates" not in text and "contracted" not in text
    for step, row in zip(planned["steps"], rows, strict=True):
        assert row.split()[0] == str(step["step"])
        for figure in (f"{step['gflops']:.9f}", f"{step['ratio']:.3f}", f"{step['params']:,}"):
            assert figure in row, figure
    assert "X-Fast = X-Temporal" in rows[1] and "16 frames × 5" in rows[6] and "γw 1.45" in rows[10]


def test_a_plan_shows_the_contraction() -> None:
    row = line_with(plan_text(plan(2.0, PAPER_PATH)), "contracted")
    for figure in ("X-Temporal, contracted", "13 frames × 6", "1.962892112", "3,794,322"):
        assert figure in row


def test_a_plan_without_a_path_shows_the_candidates_the_exclusions_and_what_is_to_come() -> None:
    planned = plan(2.0, (), "search.limits.resolution=112")
    text = plan_text(planned)
    assert "Candidates of step 1:" in text
    for candidate in planned["candidates"]:
        assert f"{candidate['gflops']:.9f}" in text
    assert "X-Spatial: 160 px would pass the limit of 112 px (search.limits.resolution)" in text
    to_come = planned["to_come"]
    assert f"about {to_come['candidates']} candidates in {to_come['steps']} rounds" in text


def test_a_plan_marks_a_step_that_is_held_back_or_exceeds_the_rate() -> None:
    text = plan_text(plan(2.0, (), "search.limits.width=1.2", "search.grid.resolution=112"))
    assert "(held back: γw 1.45 would pass the limit of 1.2 (search.limits.width))" in line_with(text, "X-Width")
    assert "(one grid step exceeds the rate)" in line_with(text, "X-Spatial")


@pytest.mark.parametrize("name", PRESETS)
def test_a_complexity_shows_both_conventions_and_the_counts(name: str) -> None:
    counted, factors = api.complexity(name), PRESETS[name]
    text = complexity_text(counted)
    clip = "1 frame" if factors.frames == 1 else f"{factors.frames} frames × {factors.stride}"
    for figure in (f"{name}: {clip}, {factors.resolution} px, 400 classes",
                   f"{counted['gflops']:.9f} GFLOPs (10^9 multiply-adds",
                   f"{counted['gflops_fvcore']:.9f} GFLOPs (fvcore",
                   f"{counted['params']:,} parameters, {counted['activations']:,} activations",
                   f"gamma_w {factors.gamma_w:g}"):
        assert figure in text, figure
