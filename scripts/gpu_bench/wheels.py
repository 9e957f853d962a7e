"""The Python packages that a bare machine with torch may lack, and how they get there without a registry."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from benchmarking import BenchmarkFailed

BINARY = {"av>=17.1": "av", "pyyaml>=6.0": "yaml", "safetensors>=0.4": "safetensors"}
"""Requirement and module of the packages that are built for a Python and a platform."""
PURE = {"click>=8.1": "click", "rich>=13": "rich", "markdown-it-py": "markdown_it", "mdurl": "mdurl",
        "pygments": "pygments", "termcolor": "termcolor", "tabulate": "tabulate", "portalocker": "portalocker",
        "yacs": "yacs", "tqdm": "tqdm", "packaging": "packaging", "parameterized": "parameterized",
        "fvcore>=0.1.5": "fvcore", "iopath": "iopath", "pytorchvideo>=0.1.5": "pytorchvideo"}
"""Those that are Python alone, some of which have no wheel in the registry, so that one is built here."""
WHEELS = BINARY | PURE
PYTHON, PLATFORMS = "3.12", ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def fetch(folder: Path) -> None:
    """Fetch all of them into `folder`, for `PYTHON` on x86-64. Needs pip and its registry."""
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    _pip("download", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON,
         *platforms, "--dest", str(folder), *BINARY)
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), *PURE)


def _pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *words, "--quiet", "--disable-pip-version-check"], check=False)
    if done.returncode:
        raise BenchmarkFailed(f"pip could not do it: {' '.join(words[:2])} ... (see above)")


def missing(wanted: dict[str, str] = WHEELS) -> dict[str, str]:
    """Those of `wanted` whose module cannot be imported here."""
    return {requirement: module for requirement, module in wanted.items() if importlib.util.find_spec(module) is None}


def install(folder: Path, into: Path, wanted: dict[str, str] = WHEELS) -> list[str]:
    """Install what is missing here from the wheels in `folder`, without a registry, `into` a folder from which this
    process and those that it starts then import. Return the requirements. Raises `BenchmarkFailed` where pip cannot."""
    if not folder.is_dir():
        raise BenchmarkFailed(f"{folder} is no folder; scripts/bench_gpu --fetch-wheels {folder} makes it where there "
                              "is a network")
    lacking = list(missing(wanted))
    if lacking:
        _pip("install", "--no-index", "--find-links", str(folder), "--no-deps", "--no-compile", "--target", str(into),
             *lacking)
        sys.path.append(str(into))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(into))))
        importlib.invalidate_caches()
    return lacking
