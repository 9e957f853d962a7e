"""The GPU benchmark without a GPU: every stage runs on the CPU, and what it measured survives whatever ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
STAGES = ("setup", "triton", "training", "faults", "steps", "bandwidth", "sharing")
ON_GPUS_ALONE = {"losses in fp32, Triton", "losses in tf32", "too little memory", "an error of the GPU is no outcome",
                 "processes with MPS"}


def call(script, *arguments, **environment):
    """The command, to its end."""
    return subprocess.run([sys.executable, SCRIPTS / script, *map(str, arguments)], text=True, capture_output=True,
                          check=False, env={**os.environ, **environment})


def test_every_stage_runs_through_the_command_and_nothing_is_wrong_on_a_cpu(tmp_path):
    pytest.importorskip("pytorchvideo")
    done = call("bench_gpu", "--device", "cpu", "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert tuple(found["stages"]) == STAGES
    checks = {name: check for stage in found["stages"].values() for name, check in stage["checks"].items()}
    assert {name: check["line"] for name, check in checks.items() if check["state"] not in ("ok", "skipped")} == {}
    assert {name for name, check in checks.items() if check["state"] == "skipped"} <= {
        *ON_GPUS_ALONE, *found["stages"]["triton"]["checks"]}  # without Triton
    assert {stage["state"] for stage in found["stages"].values()} == {"ok"}
    assert done.returncode == 0, done.stderr
    assert all(f"| {stage}: {check} " in done.stdout for stage, of in found["stages"].items() for check in of["checks"])
    assert min(map(min, checks["steps of tiny"]["clips_per_s"].values())) > 0
    assert checks["losses in fp32, native"]["apart"] > 0  # at 0, it is one form of the layers twice
    assert checks["search"]["steps"][0]["axis"] == "basis"


def test_without_a_gpu_it_says_so_in_a_line():
    done = call("bench_gpu", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and done.stdout == "", done.stderr
    assert done.stderr.startswith("bench_gpu: there is no GPU here") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["bench_gpu", "bench_gpu_full"])
def test_both_scripts_have_the_same_stages(script):
    told = call(script, "--help").stdout
    assert ", ".join(STAGES) in " ".join(told.split()) and "--budget-s" in told


# --- stages of the test's own

@pytest.fixture
def running(monkeypatch):
    """The module that runs stages."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from gpu_bench import running
    return running


@pytest.fixture
def run(running, monkeypatch, tmp_path):
    """Runs a stage of checks that the test gives; what is on disk of it in the end."""
    def run(limit_s, checks):
        monkeypatch.setitem(sys.modules, "gpu_bench.made", SimpleNamespace(checks=checks))
        setting = running.Setting("cpu", True, tmp_path, ("tiny",), 1, 0.0)
        record = running.Record(tmp_path / "found.json", {})
        running.run_stage(running.Stage("made", "made", limit_s), setting, limit_s, record)
        assert record.stages == json.loads((tmp_path / "found.json").read_text())["stages"]
        return record

    return run


def test_a_stage_that_is_stopped_at_its_limit_leaves_what_it_measured(running, run):
    def slow(note):
        note({"rounds": [1.5]})
        time.sleep(60)

    began = time.monotonic()
    record = run(1.0, lambda setting, note: {"quick": lambda: running.Result("done", {"x": 1}),
                                             "slow": lambda: slow(note), "never": lambda: running.Result("done")})
    stage = record.stages["made"]
    assert time.monotonic() - began < 30 and stage["state"] == "killed" and not record.is_good()
    assert stage["checks"]["quick"] == {"state": "ok", "line": "done", "x": 1}
    assert stage["checks"]["slow"]["state"] == "killed" and stage["checks"]["slow"]["rounds"] == [1.5]
    assert "never" not in stage["checks"]


def test_a_check_that_ends_its_process_or_breaks_the_gpu_costs_the_others_nothing(running, run):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    record = run(60.0, lambda setting, note: {
        "first": lambda: running.Result(str(os.getpid())), "dies": lambda: os._exit(9), "broken": broken,
        "raises": lambda: 1 / 0, "last": lambda: running.Result(str(os.getpid()), is_right=False)})
    stage = record.stages["made"]
    assert {name: check["state"] for name, check in stage["checks"].items()} == {
        "first": "ok", "dies": "failed", "broken": "failed", "raises": "failed", "last": "WRONG"}
    assert "exit code 9" in stage["checks"]["dies"]["line"] and "division" in stage["checks"]["raises"]["line"]
    assert stage["checks"]["first"]["line"] != stage["checks"]["last"]["line"]  # a process that is not broken
    assert stage["state"] == "ok" and not record.is_good()


def test_a_missing_package_is_named_and_the_next_stage_goes_on(running, run):
    def checks(setting, note):
        raise ModuleNotFoundError("No module named 'av'", name="av")

    record = run(60.0, checks)
    assert record.stages["made"]["state"] == "failed" and not record.is_good()
    assert record.stages["made"]["checks"]["start"]["line"].startswith("the Python package av is missing")


def test_without_time_left_a_stage_is_not_begun(running, tmp_path, capsys):
    record = running.Record(tmp_path / "found.json", {})
    setting = running.Setting("cpu", True, tmp_path, ("tiny",), 1, 0.0)
    running.run_stages([running.Stage("late", "made", 10)], setting, record, time.monotonic() + 1)
    assert json.loads((tmp_path / "found.json").read_text())["stages"]["late"]["state"] == "skipped"
    assert "late" in capsys.readouterr().out and not record.is_good()


KILLED = """
import sys, time, os
from types import SimpleNamespace
sys.path.insert(0, {scripts!r})
from pathlib import Path
from gpu_bench import running
def wait(note):
    with running.Worker(lambda: SimpleNamespace(pid=os.getpid)) as worker:
        note({{"pids": [os.getpid(), worker.ask("pid")]}})
        time.sleep(60)
sys.modules["gpu_bench.made"] = SimpleNamespace(checks=lambda setting, note: {{"waits": lambda: wait(note)}})
setting = running.Setting("cpu", True, Path("."), ("tiny",), 1, 0.0)
record = running.Record(Path({path!r}), {{}})
running.run_stages([running.Stage("made", "made", 60)], setting, record, time.monotonic() + 60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes end with their parent as Linux lets them")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_leaves_its_figures_and_no_process(how, tmp_path):
    path = tmp_path / "found.json"
    process = subprocess.Popen([sys.executable, "-c", KILLED.format(scripts=str(SCRIPTS), path=str(path))],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pids = None
    while pids is None and process.poll() is None:
        time.sleep(0.05)
        if path.exists():
            pids = json.loads(path.read_text())["stages"]["made"]["checks"].get("waits", {}).get("pids")
    process.send_signal(how)
    process.wait()
    assert pids and json.loads(path.read_text())["stages"]["made"]["checks"]["waits"]["pids"] == pids
    while any(is_at_work(pid) for pid in pids):  # the test's own limit ends a wait in vain
        time.sleep(0.05)


def is_at_work(pid):
    """Whether a process is there and not only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- packages

def test_the_packages_are_printed_as_requirements_and_need_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = call("bench_gpu", "--wheels", PYTHONPATH=str(tmp_path))
    from packaging.requirements import Requirement
    names = [Requirement(line).name for line in done.stdout.splitlines()]
    assert done.returncode == 0 and {"av", "fvcore", "pytorchvideo", "click"} <= set(names)
    assert not {"torch", "triton", "numpy", "torchvision"} & set(names)


def test_what_is_missing_is_installed_from_a_folder_without_a_registry(running, tmp_path, monkeypatch):
    from gpu_bench import wheels
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "x3d_made_up-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("x3d_made_up.py", "here = True\n")
        about = "x3d_made_up-1.0.dist-info/"
        wheel.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: x3d-made-up\nVersion: 1.0\n")
        wheel.writestr(about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(about + "RECORD", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    wanted = {"x3d-made-up": "x3d_made_up", "pytest": "pytest"}
    assert wheels.install(tmp_path / "wheels", tmp_path / "site", wanted) == ["x3d-made-up"]
    assert wheels.missing(wanted) == {} and os.environ["PYTHONPATH"] == str(tmp_path / "site")
    with pytest.raises(Exception, match="no folder.*--fetch-wheels"):
        wheels.install(tmp_path / "none", tmp_path / "site", wanted)


# --- what is compared

def test_the_convolutions_are_those_that_a_network_has(running):
    import torch
    from gpu_bench.stepping import Shape, convolutions, network_of, our_model

    from expand.model.convolution import plain_operators
    network, seen = network_of("tiny"), {True: {}, False: {}}

    def look(module, inputs):
        seen[module.groups > 1][Shape(*inputs[0].shape[1:], module.out_channels, module.kernel_size, module.stride[-1],
                                      module.groups)] = None

    model = our_model(network).eval()
    for block in [model.stem.temporal, *(part for stage in model.stages for part in stage.modules()
                                         if isinstance(part, torch.nn.Conv3d) and part.bias is None)]:
        block.register_forward_pre_hook(look)
    with plain_operators(), torch.inference_mode():
        model(torch.zeros(1, 3, network.factors.frames, 32, 32))
    for depthwise, found in seen.items():
        assert len(found) > 3 and set(convolutions(network, depthwise=depthwise)) == set(found)


def test_every_variant_of_our_network_takes_the_same_first_step(running, tmp_path):
    import torch
    from gpu_bench.speed import MORE, VARIANTS
    from gpu_bench.stepping import Steps
    setting = running.Setting("cpu", True, tmp_path, ("tiny",), 1, 0.0)
    losses = set()
    for variant in (VARIANTS | MORE).values():
        if not variant.is_plain:
            steps = Steps(setting, "tiny", variant, 2)
            losses.add(round(float(steps._stepper.step(steps._x_BCTHW, steps._y_B)), 4))
    assert len(losses) == 1 and torch.isfinite(torch.tensor(list(losses))).all()
