"""What every test shares: caches of their own, few threads, and the real clips where they are at hand."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from expand import logs

# Read when torch is first imported, here or in a process that a test starts: tests share their cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

GPU_SWITCH = "X3D_EXPAND_TEST_GPU"
"""Set to 1, this environment variable lets the tests see the machine's GPUs, for those that need one. Without it all
train on the CPU, where results are the same to the bit, as most of them promise."""
if os.environ.get(GPU_SWITCH) != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would what they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow moment of a busy machine is no failure of the code.
hypothesis.settings.register_profile("tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("tests")


SLOW = ("docs/test_python_guide.py", "executors/", "exports/test_graph_files.py", "kernels/test_bench_gpu.py",
        "kernels/test_library.py", "kernels/test_triton_depthwise.py", "model/test_exactness.py", "scripts/",
        "space/test_complexity.py", "training/test_device_faults.py", "training/test_memory.py",
        "training/test_same_curve.py", "training/test_sync_norms.py")
"""Files and folders of tests that take over five seconds, or have such tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by where they are, so that `scripts/test quick` leaves out the slow ones."""
    for item in items:
        place = item.path.relative_to(Path(__file__).parent).as_posix()
        if place.startswith("e2e/"):
            item.add_marker(pytest.mark.e2e)
        if place.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if "ray" in re.split(r"\W|_", item.nodeid.removeprefix("tests/")):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of this test run; the user's own is never touched."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines that the package has logged in this test."""
    logged: list[str] = []
    with logs.shown_by(logged.append):
        yield logged


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips beside the repository; the test is skipped where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real clips are not at hand: no folder {folder}")
    return folder
