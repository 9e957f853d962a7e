from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expand.errors import RunError
from expand.rundir.paths import RunPaths


def test_every_file_is_where_the_design_says() -> None:
    paths = RunPaths(Path("runs/mine"))
    candidate = paths.candidate("s03-x_spatial")
    names = [paths.config, paths.env, paths.journal, paths.log, paths.lock, paths.network, paths.steps_csv,
             paths.plot_png, paths.plot_svg, candidate.spec, candidate.metrics, candidate.checkpoint, candidate.outcome,
             paths.final_candidate.checkpoint]
    assert [str(name.relative_to("runs/mine")) for name in names] == [
        "config.yaml", "env.json", "journal.jsonl", "log.txt", "lock", "final/network.yaml", "report/steps.csv",
        "report/expansion.png", "report/expansion.svg", "candidates/s03-x_spatial/spec.yaml",
        "candidates/s03-x_spatial/metrics.csv", "candidates/s03-x_spatial/checkpoint.pt",
        "candidates/s03-x_spatial/outcome.json", "final/checkpoint.pt"]


@given(st.one_of(st.text(max_size=30), st.sampled_from(["..", "../x", "/etc/passwd", "a/../../b", "a\n", "x\0y", "."])))
def test_no_candidate_name_leads_outside_its_folder(name: str) -> None:
    paths = RunPaths(Path("/runs/mine"))
    try:
        folder = paths.candidate(name).dir
    except RunError as error:
        assert repr(name) in str(error)
    else:
        assert os.path.normpath(folder) == f"/runs/mine/candidates/{name}"
        assert name.isascii()


@pytest.mark.parametrize("name", ["", ".", "..", "../final", "a/b", "A", "s00-basis\n", "é", "x" * 101, None, 3])
def test_a_name_that_is_no_candidate_is_refused_with_the_rule(name: object) -> None:
    with pytest.raises(RunError, match="cannot be the name of a candidate") as caught:
        RunPaths(Path("runs/mine")).candidate(name)  # type: ignore[arg-type]
    assert "a-z, 0-9" in str(caught.value)


def test_the_root_may_be_text() -> None:
    assert RunPaths("runs/mine").config == Path("runs/mine/config.yaml")  # type: ignore[arg-type]
