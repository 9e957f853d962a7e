"""Stage 1: what there is here: packages, compiler, GPU, and what the doctor says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarking import ROOT, machine, versions

from gpu_bench.running import Check, Note, NotHere, Result, Setting, die_with_parent
from gpu_bench.wheels import WHEELS, missing


def checks(setting: Setting, note: Note) -> dict[str, Check]:
    """What is here."""
    return {"machine": describe_machine, "packages": look_at_packages, "compiler": try_compiler,
            "device": partial(try_device, setting), "doctor": ask_doctor}


def describe_machine() -> Result:
    """Return where, when and with what."""
    about = machine()
    return Result(f"{about['gpu'] or about['cpu']}, {about['cores']} cores, Python {about['python']}", about)


def look_at_packages() -> Result:
    """Return which packages that the program or its comparison need are missing."""
    lacking = list(missing())
    found = versions(["torch", "torchvision", "triton", "numpy", "matplotlib", "pandas",
                      *(requirement.partition(">")[0] for requirement in WHEELS)])
    line = f"missing: {', '.join(lacking)}; --wheels says how to bring them along" if lacking else "none is missing"
    return Result(line, {"missing": lacking, "versions": found}, is_right=not lacking)


def try_compiler() -> Result:
    """Compile a file that includes Python.h, as Triton does for its launchers."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    include = sysconfig.get_paths()["include"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.c"
        source.write_text("#include <Python.h>\nint main(void) { return 0; }\n")
        done = compiler and subprocess.run([compiler, "-fsyntax-only", f"-I{include}", str(source)], text=True,
                                           capture_output=True, check=False)
    has_header = (Path(include) / "Python.h").exists()
    problem = None if done and done.returncode == 0 else "no C compiler" if not compiler else (
        "no Python.h" if not has_header else done.stderr.strip().splitlines()[0])
    line = f"{compiler} compiles with Python.h" if problem is None else f"Triton cannot build its launchers: {problem}"
    return Result(line, {"compiler": compiler, "python_h": has_header, "problem": problem}, is_right=problem is None)


def try_device(setting: Setting) -> Result:
    """Run a small convolution, forward and backward, in each precision; describe the GPU."""
    import torch

    said: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 4, 2, 8, 8, device=setting.device, dtype=dtype, requires_grad=True)
        weight = torch.randn(4, 1, 3, 3, 3, device=setting.device, dtype=dtype)
        torch.nn.functional.conv3d(x, weight, padding=1, groups=4).float().sum().backward()
        said[str(dtype)] = bool(x.grad.isfinite().all())
    if not setting.is_gpu:
        return Result("the CPU convolves in float32 and bfloat16", said, all(said.values()))
    about = torch.cuda.get_device_properties(setting.device)
    said |= {"name": about.name, "memory_gb": about.total_memory / 1e9, "capability": [about.major, about.minor],
             "processors": about.multi_processor_count, "cuda": torch.version.cuda,
             "cudnn": torch.backends.cudnn.version(), "mps_control": shutil.which("nvidia-cuda-mps-control"),
             "nvidia_smi": _nvidia_smi()}
    return Result(f"{about.name}, {about.total_memory / 1e9:.0f} GB, capability {about.major}.{about.minor}, cuDNN "
                  f"{said['cudnn']}; convolves in float32 and bfloat16", said, all(map(bool, list(said.values())[:2])))


def _nvidia_smi() -> str | None:
    wanted = "name,driver_version,compute_mode,mig.mode.current,memory.used,memory.total"
    try:
        return subprocess.run(["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader"], text=True,
                              capture_output=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def ask_doctor() -> Result:
    """Return what `x3d-expand doctor` says."""
    done = subprocess.run([sys.executable, "-m", "expand", "doctor", "--json"], text=True, capture_output=True,
                          cwd=ROOT, check=False, preexec_fn=die_with_parent)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines()
        if lines and "ModuleNotFoundError" in lines[-1]:
            raise NotHere(lines[-1]) from None
        raise
    worse = {name: check["text"] for name, check in found["checks"].items() if check["state"] != "ok"}
    line = "; ".join(f"{name}: {text}" for name, text in worse.items()) or "all is well"
    return Result(line, {"doctor": found}, is_right=found["state"] != "problem")
