"""Triton's kernels, as far as they go without a GPU: interpreted, compiled for GPUs, and left alone where there is
none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expand.errors import UsageError
from expand.kernels import triton_depthwise

HERE = Path(__file__).parent
BLOCK, STEM = {"WHOLE_KT": 3, "K": 3}, {"WHOLE_KT": 5, "K": 1}


@pytest.fixture
def fresh():
    """What is looked up once a process is looked up anew."""
    caches = (triton_depthwise.mode, triton_depthwise.unavailable)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_interpreted_the_kernels_are_exact():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(HERE),
               str(HERE / "interpreted_depthwise.py")]
    done = subprocess.run(command, cwd=HERE.parents[1], env={**os.environ, "TRITON_INTERPRET": "1"},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 9


@pytest.mark.parametrize("name, constants", [
    ("gather", {**BLOCK, "KT": 3}), ("gather", {**BLOCK, "KT": 1}), ("gather", {**STEM, "KT": 5}),
    ("spread", {"WHOLE_KT": 3, "KT": 3}), ("spread", {"WHOLE_KT": 3, "KT": 1}), ("collect", {"KT": 3, "K": 3}),
    ("collect", {"KT": 5, "K": 1})])
def test_the_kernels_compile_for_a_gpu_without_spilling_its_registers(name, constants, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = compiled(triton, name, {**constants, "CHANNELS": 54, **triton_depthwise._tile(54)})
    (tmp_path / "kernel.ptx").write_text(code.asm["ptx"])
    ptxas = triton.knobs.nvidia.ptxas.path
    told = subprocess.run([ptxas, "-v", "-arch=sm_80", str(tmp_path / "kernel.ptx"), "-o", str(tmp_path / "kernel")],
                          capture_output=True, text=True, check=True).stderr
    assert "0 bytes spill stores" in told and "0 bytes spill loads" in told
    assert int(re.search(r"Used (\d+) registers", told)[1]) <= 255
    assert not re.search(r"\b(atom|red)\.global", code.asm["ptx"])  # sums in the order of execution


def compiled(triton, name, constants, arch=80):
    """The code of a kernel for bfloat16 tensors, as the first call on such a GPU would make it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(triton_depthwise._device_code(), name)
    pointers = {"x": "*bf16", "y": "*bf16", "grad": "*bf16", "grad_x": "*bf16", "weight": "*fp32", "parts": "*fp32"}
    signature = {argument: "constexpr" if argument in constants else pointers.get(argument, "i32")
                 for argument in kernel.arg_names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, argument in enumerate(kernel.arg_names)
               if argument in pointers}
    return triton.compile(ASTSource(kernel, signature, constants, aligned), target=GPUTarget("cuda", arch, 32),
                          options={"num_warps": 4})


def test_nothing_of_triton_is_imported_where_there_is_no_gpu():
    program = ("import sys, torch; from expand.model import X3D; from expand.kernels import triton_depthwise as t; "
               "before = 'triton' in sys.modules; x, w = torch.zeros(1, 2, 1, 4, 4), torch.zeros(2, 1, 3, 3, 3); "
               "assert not t.supports(x, w) and t.fits(x, w); print(before == ('triton' in sys.modules))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False,
                          cwd=HERE.parents[1])
    assert (done.stdout.strip(), done.stderr) == ("True", "")


@pytest.mark.parametrize("x, weight, fits", [
    (torch.zeros(2, 6, 1, 4, 4), torch.zeros(6, 1, 3, 3, 3), True),
    (torch.zeros(2, 6, 1, 4, 4), torch.zeros(6, 1, 5, 1, 1), True),
    (torch.zeros(2, 6, 1, 4, 4).bfloat16(), torch.zeros(6, 1, 3, 3, 3), True),
    (torch.zeros(2, 6, 1, 4, 4).double(), torch.zeros(6, 1, 3, 3, 3), False),
    (torch.zeros(2, 6, 1, 4, 4), torch.zeros(6, 1, 3, 3, 3).bfloat16(), False),
    (torch.zeros(2, 6, 1, 4, 4), torch.zeros(6, 1, 3, 1, 1), False),
    (torch.zeros(2, 6, 1, 4, 4), torch.zeros(6, 2, 3, 3, 3), False),
    (torch.zeros(0, 6, 1, 4, 4), torch.zeros(6, 1, 3, 3, 3), False),
    (torch.empty(1, 6, 16, 5000, 5000, device="meta"), torch.zeros(6, 1, 3, 3, 3), False)])
def test_only_what_the_kernels_are_made_for_fits(x, weight, fits):
    assert triton_depthwise.fits(x, weight) is fits


def test_a_wrong_switch_is_refused_with_the_choices(monkeypatch, fresh):
    monkeypatch.setenv("X3D_EXPAND_TRITON", "yes")
    with pytest.raises(UsageError, match="'yes' is none of auto, on, off"):
        triton_depthwise.mode()


def test_an_old_gpu_and_a_missing_triton_are_told(monkeypatch, fresh):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "older than compute capability 8.0" in triton_depthwise.unavailable(0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(triton_depthwise, "_device_code", lambda: (_ for _ in ()).throw(ImportError("no triton")))
    assert triton_depthwise.unavailable(1) == "Triton cannot be used: no triton"


@pytest.mark.parametrize("chosen", ["native", "triton"])
def test_a_convolution_is_done_as_chosen(chosen, monkeypatch):
    asked = []
    monkeypatch.setattr(triton_depthwise, "_choices", lambda device: type("Made", (), {
        "pick": lambda self, key, rivals: (asked.append((key, list(rivals))), chosen)[1]})())
    monkeypatch.setattr(triton_depthwise, "triton_depthwise", lambda x, weight, stride: "by triton")
    x, weight = torch.randn(2, 6, 3, 5, 5), torch.randn(6, 1, 3, 3, 3, requires_grad=True)
    y = triton_depthwise.depthwise(x, weight, 2)
    assert asked == [("6x3x5x5 kernel 3x3x3 stride 2 float32 train", ["native", "triton"])]
    native = torch.nn.functional.conv3d(x, weight, None, (1, 2, 2), 1, 1, 6)
    assert y == "by triton" if chosen == "triton" else torch.equal(y, native)
    with torch.no_grad():
        triton_depthwise.depthwise(x, weight, 2)
    assert asked[1][0].endswith("eval")


def test_a_rivals_work_leaves_the_graph_in_the_making_alone():
    x, weight = torch.randn(2, 6, 3, 5, 5, requires_grad=True), torch.randn(6, 1, 3, 3, 3, requires_grad=True)
    results = triton_depthwise._results(triton_depthwise._native, x, weight, 2, True)
    assert [tuple(result.shape) for result in results] == [(2, 6, 3, 3, 3), tuple(x.shape), tuple(weight.shape)]
    assert x.grad is None and weight.grad is None and not results[0].requires_grad
    assert x.requires_grad and weight.requires_grad
    assert len(triton_depthwise._results(triton_depthwise._native, x, weight, 2, False)) == 1
