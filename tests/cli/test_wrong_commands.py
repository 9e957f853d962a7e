"""A wrong command is answered before anything heavy is imported, whatever is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "matplotlib", "pandas", "av", "numpy", "rich", "ray", "scipy")
BUDGET = ("--target-gflops", "1")
WRONG = {
    "search without a target": (["search"], 2, "no compute target is set"),
    "search with an unknown configuration": (["search", "nosuch", *BUDGET], 2, "nosuch"),
    "search with an unknown key": (["search", *BUDGET, "--set", "search.axis=1"], 2, "did you mean"),
    "search with a mistyped --set": (["search", *BUDGET, "--set", "candidate.lr"], 2, "candidate.lr"),
    "search with a missing data folder": (["search", *BUDGET, "--data", "missing"], 1, "no such folder or file"),
    "search with a target below the basis": (["search", "--target-gflops", "0.001"], 2, "is below the basis"),
    "search with a seed that is none": (["search", *BUDGET, "--seed", "-1"], 2, "run.seed"),
    "search with batches too small": (["search", *BUDGET, "--set", "candidate.batch_size=0"], 2, "batch_size"),
    "search with a run name that is taken": (["search", *BUDGET, "--run-dir", "run"], 1, "a run is kept here"),
    "search with a name that is none": (["search", *BUDGET, "--name", "a/b"], 2, "name"),
    "resume of a folder that is no run": (["resume", "."], 1, "so it is no run"),
    "resume of a missing folder": (["resume", "missing"], 1, "missing"),
    "resume of a damaged run": (["resume", "run"], 2, "run/config.yaml:2: not valid YAML"),
    "resume of a damaged training": (["resume", "training"], 1, "training.yaml"),
    "train of an unknown network": (["train", "nosuch"], 2, "no network, file or run is called 'nosuch'"),
    "train of a missing YAML": (["train", "missing.yaml"], 2, "missing.yaml"),
    "train of a wrong YAML": (["train", "wrong.yaml"], 2, "wrong.yaml"),
    "train with missing clips": (["train", "xs", "--data", "missing"], 1, "no such folder or file"),
    "train with an unknown key": (["train", "xs", "--set", "final.epoch=1"], 2, "did you mean"),
    "train with missing initial weights": (["train", "xs", "--init", "missing.pt"], 2, "missing.pt"),
    "train into a folder that is taken": (["train", "xs", "--run-dir", "run"], 1, "a run is kept here"),
    "test of an unknown network": (["test", "nosuch"], 2, "there is no such file or directory"),
    "test of a description": (["test", "wrong.yaml"], 2, "is a network without weights"),
    "test with missing weights": (["test", "xs", "--weights", "missing.pt"], 2, "missing.pt"),
    "test of a wrong description": (["test", "wrong.yaml", "--weights", "weights.pt"], 2, "wrong.yaml"),
    "test with missing clips": (["test", "weights.pt", "--data", "missing"], 1, "no such folder or file"),
    "test without clips": (["test", "weights.pt"], 2, "which clips?"),
    "test with a mistyped --set": (["test", "weights.pt", "--data", ".", "--set", "data.fli=1"], 2, "did you mean"),
    "test with an option of no clips": (["test", "weights.pt", "--set", "run.seed=1"], 2, "is no option of the clips"),
    "predict of an unknown network": (["predict", "nosuch", "a.mp4"], 2, "there is no such file or directory"),
    "predict of a run without a winner": (["predict", "run", "a.mp4"], 1, "no trained winner"),
    "predict with a window and no timeline": (["predict", "weights.pt", "a.mp4", "--window", "2"], 2, "--timeline"),
    "predict with a window that is none": (["predict", "weights.pt", "a.mp4", "--timeline", "--window", "0"], 2, "0 s"),
    "export of an unknown network": (["export", "nosuch", "--format", "onnx"], 2, "there is no such file or directory"),
    "export in an unknown format": (["export", "weights.pt", "--format", "onxx"], 2, "did you mean 'onnx'"),
    "export to a wrong ending": (["export", "weights.pt", "--format", "onnx", "--out", "x.pt"], 2, ".onnx"),
    "plot of a folder that is no run": (["plot", "."], 1, "is not a run directory"),
    "status of a folder that is no run": (["status", "."], 1, "is not a run directory"),
    "plan without a target": (["plan"], 2, "no compute target is set"),
    "complexity of an unknown network": (["complexity", "nosuch"], 2, "nosuch"),
    "data check with an unknown key": (["data", "check", "--set", "data.pat=x"], 2, "did you mean"),
    "data cache with an unknown key": (["data", "cache", "--size", "64", "--set", "data.pat=x"], 2, "did you mean"),
    "data synth with a size that is none": (["data", "synth", "out", "--size", "-1"], 2, "size"),
}
PROGRAM = """
import contextlib, io, json, sys
from expand.cli import main
answers = {}
for name, words in json.load(sys.stdin).items():
    said = io.StringIO()
    sys.argv = ["x3d-expand", *words]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
    answers[name] = code, said.getvalue(), [module for module in HEAVY if module in sys.modules]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    """Exit code, standard error and heavy imports so far for every wrong command, one after another in one process."""
    folder: Path = tmp_path_factory.mktemp("wrong")
    for name, file, text in (("run", "journal.jsonl", ""), ("run", "config.yaml", "search: [\n"),
                             ("training", "training.yaml", "network: 1\n")):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / file).write_text(text)
    (folder / "wrong.yaml").write_text("name: wrong\nfactors: {gamma_q: 1}\n")
    (folder / "weights.pt").write_bytes(b"not looked at")
    commands = json.dumps({name: words for name, (words, _, _) in WRONG.items()})
    done = subprocess.run([sys.executable, "-c", f"HEAVY = {HEAVY!r}{PROGRAM}"], input=commands, cwd=folder, text=True,
                          capture_output=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_is_answered_before_anything_heavy_is_imported(answers, name: str) -> None:
    _, expected_code, expected = WRONG[name]
    code, said, heavy = answers[name]
    assert expected in said and code == expected_code, said
    assert heavy == []
