"""What `scripts/bench_gpu` and `scripts/bench_gpu_full` have in common: their options, and the order of the stages."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarking import RESULTS, ROOT, BenchmarkFailed, positive, say

from gpu_bench import wheels
from gpu_bench.running import OK, Record, Setting, Stage, preload, run_stages

STAGES = (Stage("setup", "machine", 30), Stage("triton", "kernels", 40), Stage("training", "training", 100),
          Stage("faults", "faults", 30), Stage("steps", "speed", 100), Stage("bandwidth", "bandwidth", 60),
          Stage("sharing", "sharing", 70))
PATIENCE = 10
"""How many times as long as on a GPU a stage may take on a CPU."""
NETWORKS = ("tiny", "x2d", "xs", "s", "m", "l", "xl")


def options_of(doc: str, stages: Sequence[Stage], *, budget_s: float, networks: Sequence[str], rounds: int,
               seconds: float) -> argparse.Namespace:
    """Read the command line; `networks`, `rounds` and `seconds` are the defaults on a GPU."""
    name = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the script out with the smallest "
                        "sizes (default %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=[stage.name for stage in stages], metavar="STAGE",
                        help=f"of {', '.join(stage.name for stage in stages)} (default: all)")
    parser.add_argument("--budget-s", type=float, help=f"seconds for all (default {budget_s:g})")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help=f"default: {' '.join(networks)}")
    parser.add_argument("--rounds", type=positive, help=f"turns of each measurement (default {rounds})")
    parser.add_argument("--seconds", type=float, help=f"of a turn at the least (default {seconds})")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{name}.json",
                        help="where the figures go, each as soon as it is measured (default %(default)s)")
    parser.add_argument("--no-mps", action="store_true", help="do not start NVIDIA's MPS")
    parser.add_argument("--wheels", action="store_true", help="print the packages that are needed beside torch, a pip "
                        "requirement a line, and end")
    parser.add_argument("--fetch-wheels", type=Path, metavar="DIR", help="fetch those packages into DIR, for CPython "
                        f"{wheels.PYTHON} on x86-64, and end; needs a network")
    parser.add_argument("--find-links", type=Path, metavar="DIR", help="take packages that are missing here from DIR, "
                        "without a network")
    options = parser.parse_args()
    is_tiny = options.device == "cpu"
    options.networks = tuple(options.networks or (("tiny",) if is_tiny else networks))
    options.rounds = options.rounds or (1 if is_tiny else rounds)
    options.seconds = options.seconds if options.seconds is not None else 0.0 if is_tiny else seconds
    # a CPU is tried out, not measured: it may have other work
    options.budget_s = options.budget_s or (PATIENCE * budget_s if is_tiny else budget_s)
    stages = [replace(stage, limit_s=PATIENCE * stage.limit_s) for stage in stages] if is_tiny else stages
    options.stages = [stage for stage in stages if options.stages is None or stage.name in options.stages]
    return options


def run(options: argparse.Namespace, *, is_full: bool) -> None:
    """Run the stages as the options say. Raises `BenchmarkFailed` where one of them did not come out well."""
    began = time.monotonic()
    if options.wheels:
        print("\n".join(wheels.WHEELS))
        return
    if options.fetch_wheels:
        return wheels.fetch(options.fetch_wheels)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the stage at work, as an interruption does
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="bench_gpu-") as scratch:
        folder = Path(scratch)
        # for the processes that a stage starts; a stage's own imports come from this one
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        if options.find_links and (got := wheels.install(options.find_links, folder / "site")):
            say(f"from {options.find_links}: {', '.join(got)}")
        preload()
        if options.device != "cpu":
            _check_gpu(options.device)
        setting = Setting(options.device, options.device == "cpu", folder, options.networks, options.rounds,
                          options.seconds, is_full, not options.no_mps)
        record = Record(options.json, _about(options))
        options.json.parent.mkdir(parents=True, exist_ok=True)
        try:
            run_stages(options.stages, setting, record, began + options.budget_s)
        finally:
            if (folder / "mps").exists():
                from gpu_bench.sharing import stop_mps
                stop_mps(folder)
            record.about["seconds"] = round(time.monotonic() - began, 1)
            record.write()
    print(options.json)
    if not record.is_good():
        worst = [name for name, stage in record.stages.items() if stage["state"] != OK or any(
            found["state"] not in (OK, "skipped") for found in stage["checks"].values())]
        raise BenchmarkFailed(f"not all came out well: see {', '.join(worst)} above")


def _check_gpu(device: str) -> None:
    """Raise `BenchmarkFailed` where there is no such GPU. In a process of its own: this one must not use CUDA."""
    from gpu_bench.running import Worker

    with Worker(_Gpus) as worker:
        count = worker.ask("count")
    if device not in [f"cuda:{number}" for number in range(count)]:
        raise BenchmarkFailed(
            f"'{device}' is none of {', '.join(f'cuda:{number}' for number in range(count))}" if count else
            "there is no GPU here that torch can use (nvidia-smi tells whether a driver sees it); --device cpu tries "
            "the script out")


class _Gpus:
    def count(self) -> int:
        """How many torch can use."""
        import torch
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _about(options: argparse.Namespace) -> dict[str, Any]:
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "device": options.device,
            "networks": options.networks, "rounds": options.rounds, "seconds_of_a_turn": options.seconds}
