"""What `doctor` finds: nothing wrong stays unsaid, nothing makes it fail, and nothing is changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expand import health
from expand import health as checks
from expand.errors import UsageError
from expand.health import STATES, Check
from expand.kernels import library


def test_every_check_answers_with_the_same_keys_and_the_worst_counts(monkeypatch):
    found = health.examine()
    assert list(found["checks"]) == list(health.CHECKS) and found["state"] in STATES
    for check in found["checks"].values():
        assert {"state", "text", "fix"} <= set(check) and check["state"] in STATES and "\n" not in check["text"]
    monkeypatch.setattr(health, "CHECKS", {state: lambda state=state: Check(state, state, "") for state in STATES})
    assert health.examine()["state"] == "problem"


def test_a_check_that_fails_is_a_problem_in_a_line(monkeypatch):
    def breaks():
        raise ValueError("first\nsecond")

    def refuses():
        raise UsageError("is no choice", where="HERE", fix="take another")

    monkeypatch.setattr(health, "CHECKS", {"a": breaks, "b": refuses})
    assert health.examine()["checks"] == {
        "a": {"state": "problem", "text": "cannot be examined: ValueError: first", "fix": None},
        "b": {"state": "problem", "text": "HERE: is no choice", "fix": "take another"}}


# --- packages ---


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_versions_are_compared_as_numbers(one, other):
    longer = [part + [0] * (4 - len(part)) for part in (one, other)]
    reason = checks._lacks(".".join(map(str, one)) + "+cpu", ".".join(map(str, other)))
    assert (reason is not None) == (longer[0] < longer[1])


def test_a_package_that_is_missing_old_or_broken_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setattr(checks, "requirements", lambda: {"torch": "99.1", "no-such-package": "", "av": ""})
    monkeypatch.setattr(checks, "_load", lambda name: (_ for _ in ()).throw(OSError(f"lib{name}.so: cut short")))
    monkeypatch.setattr(checks, "NATIVE", ("torch", "av"))
    check = checks.packages()
    assert check.state == "problem" and check.text == (
        f"torch {torch.__version__.split('+')[0]} is older than 99.1; no-such-package is not installed; "
        "av does not load: libav.so: cut short")
    assert check.fix.endswith("pip install --upgrade 'torch>=99.1' no-such-package av")


def test_what_is_required_is_what_the_package_says():
    needed = checks.requirements()
    assert needed["torch"] and needed["torchvision"] and "pytest" not in needed and "onnx" not in needed
    assert checks.packages().state == "ok"


def test_torchvision_loads_as_usual_after_its_compiled_part_was_tried():
    code = "import expand.health as s; s.packages(); import torchvision; print(bool(torchvision.ops.nms))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


# --- kernels and compiler ---


def test_kernels_that_are_switched_off_are_a_note_and_a_wrong_choice_a_problem(monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "off")
    check = checks.kernels()
    assert check.state == "note" and check.text.startswith("none in use: switched off") and "unset" in check.fix
    assert check.facts == {"build": None, "path": None, "shares_threads": False}
    monkeypatch.setenv(library.VARIABLE, "fastest")
    found = health.examine()
    assert found["state"] == "problem"
    assert found["checks"]["kernels"]["text"].startswith("X3D_EXPAND_KERNELS: 'fastest' is no choice")


def test_kernels_that_compute_nonsense_are_a_problem(monkeypatch):
    class Wrong:
        def call(self, name, dtype, out, count):
            out.fill_(1)

    status = library.KernelStatus("avx2", Path("somewhere"))
    monkeypatch.setattr(library, "status", lambda: status)
    monkeypatch.setattr(library, "load", Wrong)
    check = checks.kernels()
    assert check.state == "problem" and "computes something else" in check.text
    assert "X3D_EXPAND_KERNELS=off" in check.fix


def test_a_compiler_is_named_and_one_that_does_not_run_is_a_note(tmp_path, monkeypatch):
    script = tmp_path / "c++"
    script.write_text("#!/bin/sh\necho 'c++ 1.2'\necho more\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert (checks.compiler().state, checks.compiler().text) == ("ok", "c++ 1.2")
    script.write_text("#!/bin/sh\nexit 1\n")
    assert checks.compiler().state == "note" and "apt-get install g++" in checks.compiler().fix
    monkeypatch.setenv("CXX", "not-here")
    assert checks.compiler().state == "ok" and checks.compiler().text.startswith("no C++ compiler")


# --- the machine ---


@pytest.mark.parametrize(("files", "cores"), [
    ({}, None), ({"cpu.max": "max 100000"}, None), ({"cpu.max": "150000 100000"}, 1.5),
    ({"cpu.max": "max 100000", "a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, 4.0),
    ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None), ({"cpu.max": "nonsense"}, None)])
def test_the_least_quota_around_this_process_counts(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    own = tmp_path / "own"
    own.write_text("1:cpu:/elsewhere\n0::/a/b\n")
    assert checks.cpu_quota(tmp_path, own) == cores


def test_less_time_than_cores_is_noted_with_the_threads_to_use(monkeypatch):
    monkeypatch.setattr(checks, "cpu_quota", lambda: 2.5)
    monkeypatch.setattr(checks, "available_cores", lambda: 64)
    check = checks.processor()
    assert check.state == "note" and "only 2.5 cores' worth" in check.text and check.fix.endswith("--threads 2")


def test_a_busy_machine_is_noted(monkeypatch):
    monkeypatch.setattr(checks.os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    monkeypatch.setattr(checks, "cpu_quota", lambda: None)
    assert checks.processor().state == "note" and "load 1000" in checks.processor().text


def test_the_memory_is_that_of_the_control_group_where_it_is_less(monkeypatch):
    monkeypatch.setattr(checks, "_meminfo", {"MemTotal": 64e9, "MemAvailable": 60e9}.get)
    monkeypatch.setattr(checks, "_limits", lambda name, old: [])
    assert checks.memory() == Check("memory", "ok", "64.0 GB, 60.0 GB free",
                                      facts={"total_gb": 64.0, "free_gb": 60.0})
    monkeypatch.setattr(checks, "_limits", lambda name, old: [4e9] if "max" in name else [3e9])
    check = checks.memory()
    assert (check.state, check.text) == ("note", "4.0 GB, 1.0 GB free") and "--workers" in check.fix
    monkeypatch.setattr(checks, "_limits", lambda name, old: [])
    monkeypatch.setattr(checks, "_meminfo", lambda name: None)
    assert checks.memory().text == "unknown on this system"


def test_a_driver_without_a_usable_gpu_is_noted_and_neither_is_all_right(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(checks, "DRIVER", tmp_path / "version")
    assert checks.gpu().state == "ok"
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\n")
    check = checks.gpu()
    assert check.state == "note" and "there is a driver (570.86.15)" in check.text and "nvidia-smi" in check.fix


def test_gpus_are_named_and_a_broken_one_is_a_problem(monkeypatch):
    devices = [{"name": "H100", "memory_gb": 80.0, "error": None}, {"name": "H100", "memory_gb": 80.0, "error": None}]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(checks, "_device", devices.__getitem__)
    monkeypatch.setattr(checks, "_shared_memory_gb", lambda: 0.064)
    check = checks.gpu()
    assert check.state == "note" and "H100, 80 GB; H100, 80 GB" in check.text and "--shm-size" in check.fix
    monkeypatch.setattr(checks, "_shared_memory_gb", lambda: 8.0)
    assert checks.gpu().state == "ok"
    devices[1] = {**devices[1], "error": "CUDA error: ECC"}
    assert checks.gpu().state == "problem" and "GPU 1: CUDA error: ECC" in checks.gpu().text


# --- folders ---


def test_sizes_are_those_of_all_files_as_far_as_the_time_goes(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"x" * 10)
    (tmp_path / "a" / "b" / "two").write_bytes(b"x" * 32)
    assert checks.size_of(tmp_path) == (42, True) and checks.size_of(tmp_path / "none") == (0, True)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert checks.size_of(tmp_path)[1] and checks.size_of(tmp_path, -1.0) == (0, False)


def test_folders_are_tried_and_left_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "to" / "come"))
    monkeypatch.chdir(tmp_path)
    check = checks.cache()
    assert check.facts["folder"] == str(tmp_path / "to" / "come" / "x3d-expand") and not check.facts["exists"]
    assert check.facts["error"] is None and check.facts["free_gb"] > 0 and check.facts["size_gb"] == 0
    assert checks.runs().facts["folder"] == str(tmp_path / "runs") and list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_to_is_a_problem_and_little_room_a_note(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    check = checks.cache()
    assert check.state == "problem" and f"Not a directory ({tmp_path / 'file'})" in check.text
    assert "data.cache_dir" in check.fix
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "LITTLE_GB", 1e12)
    assert checks.runs().state == "note" and "--run-dir" in checks.runs().fix
