"""Stage 7: several processes on one GPU, and a search with two of them."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarking import ROOT, BenchmarkFailed, median_ratio

from gpu_bench.running import Check, Note, NotHere, Result, Setting, Worker, die_with_parent

COUNTS, BATCH = (1, 2, 4, 8), 16
CONTROL = "nvidia-cuda-mps-control"
SMALLEST = ["--target-gflops", "0.0017", "--set", "search.basis.resolution=32", "--set", "search.basis.depth=0.4",
            "--set", "data.builtin={size: 32, seconds: 1.5, fps: 12, train_clips: 32, val_clips: 16, test_clips: 16}",
            "--set", "candidate={epochs: 1, batch_size: 16, eval_clips: 1, precise_bn_batches: 1}",
            "--set", "final={epochs: 1, batch_size: 16, eval_clips: 1, precise_bn_batches: 1}",
            "--set", "run.threads=1"]
"""A search of a few seconds, whose decisions mean nothing."""


def checks(setting: Setting, note: Note) -> dict[str, Check]:
    """Steps in several processes without and with MPS, and the search, on the CPU too where all is measured."""
    found: dict[str, Check] = {"processes": partial(share, setting, note),
                               "processes with MPS": partial(share_with_mps, setting, note),
                               "search": partial(search, setting, note)}
    if setting.is_full and setting.is_gpu:
        found["search as on the CPU"] = partial(compare_searches, setting, note)
    return found


def share(setting: Setting, note: Note, environment: dict[str, str] | None = None) -> Result:
    """Measure X2D's steps in 1, 2, 4 and 8 processes at a time: clips a second of all together."""
    from gpu_bench.stepping import TINY, Steps, Variant

    counts, batch, name = ((1, 2), 2, TINY) if setting.is_tiny else (COUNTS, BATCH, "x2d")
    rates: dict[int, list[float]] = {count: [] for count in counts}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(Steps, setting, name, Variant(triton="off", sharers=counts[-1]), batch,
                                              environment=environment)) for _ in range(counts[-1])]
        _ask_all(workers, 0)
        for number in range(setting.rounds):
            for count in counts[::-1 if number % 2 else 1]:
                rates[count].append(sum(_ask_all(workers[:count], setting.seconds)))
            note({"clips_per_s": rates})
    gains = {count: median_ratio(found, rates[1]) for count, found in rates.items()}
    return Result(", ".join(f"{count} at a time: {statistics.median(rates[count]):,.0f} clips/s ({gain:.2f} times)"
                            for count, gain in gains.items()), {"clips_per_s": rates, "gain": gains})


def _ask_all(workers: Sequence[Worker], seconds: float) -> list[float]:
    for worker in workers:
        worker.send("rate", seconds=seconds)
    return [worker.answer() for worker in workers]


# --- MPS

def share_with_mps(setting: Setting, note: Note) -> Result:
    """`share` under NVIDIA's Multi-Process Service, started for that alone."""
    if not setting.is_gpu or not setting.mps:
        raise NotHere("MPS is for GPUs" if setting.mps else "--no-mps")
    if shutil.which(CONTROL) is None:
        raise NotHere(f"{CONTROL} is not installed")
    folder = setting.scratch / "mps"
    (folder / "log").mkdir(parents=True)
    server = subprocess.Popen(
        [CONTROL, "-f"], env=os.environ | mps_environment(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, preexec_fn=die_with_parent)  # noqa: PLW1509 - a stage has no threads
    try:
        until = time.monotonic() + 5
        while not (folder / "control").exists() and server.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        if server.poll() is not None:
            raise NotHere(f"MPS did not start: {server.stdout.read().strip()}")
        return share(setting, note, mps_environment(folder))
    finally:
        stop_mps(setting.scratch)
        server.kill()
        server.wait()


def mps_environment(folder: Path) -> dict[str, str]:
    """How CUDA finds the service."""
    return {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder / "log")}


def stop_mps(scratch: Path) -> None:
    """End the service that `share_with_mps` may have left: the control process and its server."""
    folder = scratch / "mps"
    if folder.exists():
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run([CONTROL], input="quit -t 1\n", text=True, env=os.environ | mps_environment(folder),
                           capture_output=True, timeout=10, check=False)
        shutil.rmtree(folder, ignore_errors=True)


# --- the search

def search(setting: Setting, note: Note, device: str | None = None) -> Result:
    """Run the quickstart search with two workers; note what its journal holds while it runs."""
    device = device or setting.device.partition(":")[0]
    run_dir = setting.scratch / f"search-{device}"
    words = [*(SMALLEST if setting.is_tiny else ["quickstart"]), "--workers", "2", "--device", device, "--run-dir",
             str(run_dir), "--yes"]
    began = time.monotonic()
    with open(setting.scratch / f"search-{device}.txt", "w+", encoding="utf-8") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "expand", "search", *words], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)  # noqa: PLW1509 - a stage has no threads
        while process.poll() is None:
            time.sleep(0.2 if setting.is_tiny else 1)
            note({"events": len(_events(run_dir)), "seconds": time.monotonic() - began})
        said.seek(0)
        end = said.read().strip().splitlines()[-15:]
    events = _events(run_dir)
    steps = [{"axis": event["axis"], "id": event["id"]} for event in events if event["event"] == "step_selected"]
    trained = [event for event in events if event["event"] == "candidate_finished"]
    figures = {"seconds": time.monotonic() - began, "exit_code": process.returncode, "steps": steps,
               "trainings": [{key: event.get(key) for key in ("id", "state", "accuracy", "stderr", "wall_s",
                                                              "clips_per_s", "peak_memory_mb", "reason", "notes")}
                             for event in trained], "said": end}
    if process.returncode:
        raise BenchmarkFailed(f"the search ended with exit code {process.returncode}: {' '.join(end[-3:])}")
    return Result(f"{len(trained)} trainings in {figures['seconds']:.0f} s: "
                  f"{' '.join(step['axis'] for step in steps)}", figures,
                  is_right=all(event["state"] == "finished" for event in trained))


def compare_searches(setting: Setting, note: Note) -> Result:
    """Run the same search on the CPU, and compare what was chosen on the GPU."""
    gpu = [event for event in _events(setting.scratch / f"search-{setting.device.partition(':')[0]}")
           if event["event"] == "step_selected"]
    here = search(setting, note, "cpu")
    cpu = here.figures["steps"]
    same = sum(a["axis"] == b["axis"] for a, b in zip(gpu, cpu, strict=False))
    return Result(f"{same} of {len(cpu)} steps chose the same axis",
                  {"gpu": [event["axis"] for event in gpu], **here.figures}, is_right=same == len(cpu))


def _events(run_dir: Path) -> list[dict[str, Any]]:
    path, found = run_dir / "journal.jsonl", []
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # the last line, in the making
                found.append(json.loads(line))
    return found
