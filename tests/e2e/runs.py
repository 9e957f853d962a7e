"""A search of a second a candidate, through the real command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from expand.cli import main; main()"]
TINY = [
    "--target-gflops", "0.00258", "--set", "search.basis.resolution=32", "--set", "search.basis.depth=0.4",
    "--set", "search.axes=[x_spatial, x_fast, x_width]", "--set", "search.grid.resolution=2",
    "--set", "search.rungs=[0.5]", "--set", "search.race_margin=0.05",
    "--set", "data.builtin={size: 32, seconds: 1.0, fps: 12, train_clips: 32, val_clips: 16, test_clips: 16}",
    "--set", "candidate={epochs: 3, batch_size: 8, lr: 0.00625, eval_clips: 1, precise_bn_batches: 1}",
    "--set", "final={epochs: 3, batch_size: 8, eval_clips: 1, precise_bn_batches: 1}",
    "--set", "run.threads=1", "--set", "run.checkpoint_every_s=0"]


def start(*arguments: str | Path) -> subprocess.Popen:
    """The command, running."""
    return subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def call(*arguments: str | Path, code: int = 0) -> str:
    """What the command prints; it must end with `code` and never with a traceback."""
    process = start(*arguments)
    out, err = process.communicate()
    assert process.returncode == code, err + out
    assert "Traceback" not in err, err
    return out if code == 0 else err


def events(run_dir: Path) -> list[dict]:
    """The journal."""
    path = run_dir / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results(run_dir: Path) -> dict:
    """Decisions and measured values, without anything that depends on time or order of execution."""
    found = {}
    for event in events(run_dir):
        kind = event["event"]
        if kind == "candidate_finished":
            found[event["id"]] = {key: event[key] for key in ("state", "accuracy", "stderr", "top5", "loss")}
        elif kind in ("step_proposed", "candidates_stopped", "step_selected", "contraction_proposed", "winner_chosen",
                      "final_finished"):
            found[kind, event.get("step")] = {
                key: value for key, value in event.items() if key not in ("time", "wall_s", "event")}
    return found


def wait_for(run_dir: Path, process: subprocess.Popen, count: int) -> None:
    """Until the journal has `count` events, or the process has ended."""
    while process.poll() is None and len(events(run_dir)) < count:
        time.sleep(0.02)


def kill(process: subprocess.Popen) -> None:
    """kill -9."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
