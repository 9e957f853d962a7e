"""`complexity`, `plan`, `status` and `plot` from the command line, and what a wrong command is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from expand import api
from expand.expansion.forecast import forecast
from expand.space.factors import PRESETS
from expand.space.network import Network, dump_network
from tests.expansion.simulated import PAPER_PATH, paper_space

# FACTS: the published family. multiply-adds, parameters, frames, stride, training crop
PUBLISHED = {
    "x2d": (20_662_304, 1_633_560, 1, 28, 112), "xs": (605_256_512, 3_794_322, 4, 12, 160),
    "s": (1_962_892_112, 3_794_322, 13, 6, 160), "m": (4_732_468_736, 3_794_322, 16, 5, 224),
    "l": (18_367_710_176, 6_153_432, 16, 5, 312), "xl": (35_837_627_616, 11_095_904, 16, 5, 312),
}
GAMMAS = {"gamma_tau", "gamma_t", "gamma_s", "gamma_w", "gamma_b", "gamma_d"}
COMPLEXITY_KEYS = {"network", "gflops", "params", "gflops_fvcore", "activations", "factors", "frames", "resolution"}
PLAN_KEYS = {"target_gflops", "steps", "contraction", "candidates"}
STEP_KEYS = {"step", "axis", "gflops", "ratio", "params", "factors", "frames", "resolution", "stride"}
PAPER_MADDS = (40_996_040, 80_209_520, 153_402_560, 303_559_712, 605_256_512, 1_208_650_112, 2_415_437_312,
               4_732_468_736, 9_451_559_360, 18_367_710_176, 35_837_627_616)


@pytest.fixture
def answer(command):
    """The JSON of a command that must succeed; nothing else may stand on standard output."""
    def run(*words):
        code, out, err = command(*words, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


@pytest.mark.parametrize("name", PUBLISHED)
def test_complexity_gives_the_published_figures_to_the_digit(answer, name):
    counted = answer("complexity", name)
    madds, params, frames, stride, side = PUBLISHED[name]
    assert (counted["gflops"], counted["params"]) == (madds / 1e9, params)
    assert (counted["frames"], counted["stride"], counted["resolution"]) == (frames, stride, side)
    assert COMPLEXITY_KEYS <= set(counted) and set(counted["factors"]) == GAMMAS
    assert counted["factors"] == PRESETS[name].as_dict() and counted["network"] == name
    assert counted["gflops"] < counted["gflops_fvcore"] < 1.1 * counted["gflops"]
    assert counted == api.complexity(name)


def test_complexity_reads_a_networks_file(answer, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(dump_network(Network("mine", PRESETS["s"], 400)))
    assert answer("complexity", file) == {**answer("complexity", "s"), "network": "mine"}


def test_complexity_says_with_how_many_classes_it_counts_where_the_file_does_not_say(command, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"factors: {PRESETS['s'].as_dict()}\n")
    code, out, err = command("complexity", file, "--json")
    assert code == 0 and json.loads(out)["classes"] == 400
    assert "does not say how many classes" in err and "`classes: N`" in err


def test_plan_gives_the_papers_eleven_steps(answer):
    planned = answer("plan", "--target-gflops", 36, "--path", ",".join(PAPER_PATH))
    assert PLAN_KEYS <= set(planned) and planned["target_gflops"] == 36
    assert [step["axis"] for step in planned["steps"]] == list(PAPER_PATH)
    assert [step["gflops"] for step in planned["steps"]] == [madds / 1e9 for madds in PAPER_MADDS]
    assert [step["step"] for step in planned["steps"]] == list(range(1, 12))
    assert all(STEP_KEYS <= set(step) and set(step["factors"]) == GAMMAS for step in planned["steps"])
    assert planned["steps"][4]["factors"] == PRESETS["xs"].as_dict()
    assert planned["steps"][7]["factors"] == PRESETS["m"].as_dict()
    assert planned["steps"][9]["factors"] == PRESETS["l"].as_dict()
    assert planned["steps"][10]["factors"] == PRESETS["xl"].as_dict()
    assert planned["contraction"] is None and planned["candidates"] == []
    assert planned["to_come"] == {"steps": 0, "candidates": 0, "gflops": 0}


def test_plan_contracts_the_first_seven_steps_to_x3d_s(answer):
    planned = answer("plan", "--target-gflops", 2.0, "--path", ",".join(PAPER_PATH[:7]))
    contraction = planned["contraction"]
    assert len(planned["steps"]) == 7 and planned["candidates"] == []
    assert STEP_KEYS <= set(contraction) and contraction["axis"] == "x_temporal"
    assert (contraction["frames"], contraction["gflops"]) == (13, 1.962892112)
    assert contraction["factors"] == PRESETS["s"].as_dict()


def test_plan_without_a_path_gives_the_next_candidates_and_what_is_to_come(answer):
    planned = answer("plan", "--target-gflops", 0.05)
    axes = [axis for c in planned["candidates"] for axis in (c["axis"], *c["also"])]
    assert sorted(axes) == sorted(set(PAPER_PATH)) and planned["steps"] == [] and planned["excluded"] == []
    rounds = forecast(paper_space(0.05))
    assert len(rounds) >= 3 and [len(candidates) for candidates in rounds[:2]] == [1, 5]
    assert planned["to_come"] == {"steps": len(rounds), "candidates": sum(map(len, rounds)),
                                  "gflops": pytest.approx(sum(c.gflops for candidates in rounds for c in candidates))}


def test_plan_after_a_path_counts_only_what_is_still_to_come(answer):
    planned = answer("plan", "--target-gflops", 2.0, "--path", ",".join(PAPER_PATH[:6]))
    assert planned["to_come"]["steps"] == 2  # a last expansion and its contraction
    assert planned["to_come"]["candidates"] == len(planned["candidates"]) + 1
    assert all(c["step"] == 7 for c in planned["candidates"])


def test_plan_counts_with_the_classes_that_it_is_given(answer):
    few, many = (answer("plan", "--target-gflops", 6, "--classes", count)["basis"] for count in (2, 400))
    assert many["params"] - few["params"] == 398 * 2049


def test_help_imports_neither_torch_nor_anything_else_heavy():
    heavy = "torch numpy pandas matplotlib av yaml rich pydantic"
    code = ("import sys; from expand.cli import cli; cli.main(['--help'], standalone_mode=False); "
            f"print('loaded:', *(m for m in '{heavy}'.split() if m in sys.modules))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("Usage: ") and out.splitlines()[-1].strip() == "loaded:"
    for name in ("complexity", "plan", "plot", "resume", "search", "status"):
        assert f"\n  {name} " in out


def test_complexity_and_plan_import_no_torch():
    code = ("import sys; from expand.cli import cli; cli.main(['complexity', 'xs'], standalone_mode=False); "
            "cli.main(['plan', '--target-gflops', '6'], standalone_mode=False); print('torch' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"


@pytest.mark.parametrize(("words", "parts"), [
    (["plan", "--target-gflops", "36", "--path", "x_fast,x_widht"],
     ["--path, step 2: no axis is called 'x_widht'", "did you mean 'x_width'?"]),
    (["plan", "--target-gflops", "36", "--path", "x_fast", "--set", "search.axes=[x_depth]"],
     ["x_fast cannot grow: it is not among search.axes"]),
    (["plan"], ["search.target_gflops: no compute target is set", "give --target-gflops G"]),
    (["plan", "--target-gflops", "0.01"], ["is below the basis, which costs 0.02066", "search.basis.resolution"]),
    (["plan", "--target-gflops", "0.021"], ["the basis already meets the target", "above 0.02175"]),
    (["plan", "--target-gflops", "nan"], ["search.target_gflops must be a finite number"]),
    (["plan", "--target-gflops", "much"], ["'much' is not a valid float"]),
    (["plan", "--target-gflops", "6", "--set", "search.expansion_rat=3"], ["did you mean 'search.expansion_rate'?"]),
    (["plan", "quikstart"], ["there is no configuration 'quikstart'", "did you mean 'quickstart'?"]),
    (["plan", "--taget-gflops", "6"], ["No such option", "--target-gflops"]),
    (["complexity", "xss"], ["no network, file or run is called 'xss'", "did you mean 'xs'?"]),
    (["complexity", "no-such"], ["give one of x2d, xs, s, m, l, xl"]),
    (["complexity", "x" * 5000], ["no network, file or run is called"]),
    (["complexity", "missing.yaml"], ["missing.yaml: cannot be read"]),
    (["complexity"], ["Missing argument 'NETWORK'"]),
    (["complexty", "xs"], ["No such command 'complexty'"]),
    (["status", "--jsno", "runs/mine"], ["No such option", "--json"]),
])
def test_a_wrong_command_is_explained_and_ends_with_2(command, words, parts):
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert "Traceback" not in err and "a defect" not in err
    for part in parts:
        assert part in err, part


@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["plot"], ["complexity"]])
def test_a_directory_that_is_no_run_is_said_so(command, tmp_path, words):
    code, out, err = command(words[0], tmp_path, *words[1:])
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: {tmp_path}: is not a run directory\n") and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["status", "plot", "resume"])
def test_a_run_that_does_not_exist_is_said_so_and_not_made(command, tmp_path, name):
    code, out, err = command(name, tmp_path / "none")
    assert (code, out) == (1, "") and str(tmp_path / "none") in err and "Traceback" not in err
    assert not (tmp_path / "none").exists()


def test_the_shell_gets_the_same(tmp_path):
    ended = subprocess.run([Path(sys.executable).with_name("x3d-expand"), "plan", "--path", "x_fast"], cwd=tmp_path,
                           capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "") and ended.stderr.startswith("Error: search.target_gflops: no ")
