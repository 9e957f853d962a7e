"""The GPU benchmark where there is no GPU: it says so, and its parts at least run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from argparse import Namespace
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_gpu"


@pytest.fixture
def bench(monkeypatch):
    """The script as a module, on the CPU."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = SourceFileLoader("bench_gpu", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench_gpu", loader))
    loader.exec_module(module)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    return module


def test_without_a_gpu_it_says_so_in_a_line():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("bench_gpu: there is no GPU here") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("variant", ["plain", "plain, channels last", "ours"])
def test_a_variant_takes_steps(bench, variant):
    if variant.startswith("plain"):
        pytest.importorskip("pytorchvideo")
    steps = bench.Steps(variant, "x2d", 2)
    before = [parameter.clone() for parameter in steps.model.parameters()]
    assert steps.step() == 2
    assert all(not torch.equal(old, new) for old, new in zip(before, steps.model.parameters(), strict=True)
               if new.grad.any())
    assert any(parameter.grad.any() for parameter in steps.model.parameters())


def test_the_shapes_are_those_that_the_network_has(bench):
    from expand.model import X3D
    from expand.model.convolution import Depthwise

    found = []
    model = X3D.preset("x2d")
    for module in model.modules():
        if isinstance(module, Depthwise):
            module.register_forward_pre_hook(lambda layer, args: found.append(
                ((bench.BATCHES["x2d"], *args[0].shape[1:]), layer.kernel_size, layer.stride[-1])))
    from expand.model.convolution import plain_operators
    with plain_operators(), torch.inference_mode():
        model(torch.zeros(1, 3, 1, 112, 112))
    assert set(bench.depthwise_shapes("x2d")) == set(found)


def test_kernels_are_compared_in_a_table(bench, monkeypatch, capsys):
    from expand.kernels import triton_depthwise
    monkeypatch.setattr(triton_depthwise, "triton_depthwise", triton_depthwise._native)
    monkeypatch.setitem(bench.BATCHES, "x2d", 1)
    found = bench.kernels_part(Namespace(networks=["x2d"], rounds=1, seconds=0), copying=10.0)
    table = capsys.readouterr().out
    assert len(found) == len(bench.depthwise_shapes("x2d")) == table.count(" times ")
    assert all(set(each["seconds"]) == {"PyTorch", "Triton"} for each in found.values())
