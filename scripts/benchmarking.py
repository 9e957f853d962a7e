"""What the benchmarks beside this file share: measuring in turn, helper processes, tables, and the JSON that is left.

    from benchmarking import Helper, arguments, finish, in_turn, main_of, median_ratio, rate, serve, table

Import it before anything of `expand` or torch: it puts the repository on the import path, and where the Python of the
call has no torch it starts the script again with the project's (`.venv/bin/python`), so that `scripts/bench_x` is the
whole command. A benchmark is written so:

    def main() -> None:
        options = arguments(__doc__, rounds=5).parse_args()
        work = {"ours": lambda: rate(step_a, 1.0), "theirs": lambda: rate(step_b, 1.0)}   # each call: one figure
        rates = in_turn(work, options.rounds)                       # {"ours": [a figure a round], "theirs": [...]}
        print(table("network", {"xs": {"ours": ..., "ratio": f"{median_ratio(rates['ours'], rates['theirs']):.2f}"}}))
        finish(options, {"clips_per_s": rates})                     # JSON: machine, versions, date and these figures

    if __name__ == "__main__":
        main_of(main)                                               # errors as one line, exit code 1

The machine is often shared, so only ratios last: everything is measured in turn within a round, a ratio is of one
round's figures, and what is told is the median over the rounds. Where memory, environment variables or threads must
not mix, each kind works in a `Helper`, a process of its own that waits between its turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, Self

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "runs" / "bench"
"""Where figures go unless `--json` names another file; not under version control."""
PACKAGES = ("torch", "torchvision", "triton", "pytorchvideo", "fvcore", "av", "numpy")
PYTHON = ROOT / ".venv" / "bin" / "python"


def _use_project() -> None:
    """The repository on the import path; the project's Python where this one cannot run it."""
    sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec("torch") is None and PYTHON.exists() and Path(sys.prefix) != PYTHON.parents[1]:
        os.execv(PYTHON, [str(PYTHON), *sys.argv])


_use_project()


class BenchmarkFailed(Exception):
    """A benchmark cannot go on; the text says why, and what to do about it."""


# --- measuring

def rate(step: Callable[[], float], seconds: float, *, wait: Callable[[], Any] = lambda: None) -> float:
    """Items a second of `step`, which returns how many it did, over at least `seconds` and one call. `wait` lets a
    device finish (`torch.cuda.synchronize`): it is called before the clock starts and before it is read."""
    wait()
    began, items, spent = time.perf_counter(), 0.0, 0.0
    while not items or spent < seconds:
        items += step()
        wait()
        spent = time.perf_counter() - began
    return items / spent


def in_turn(work: Mapping[str, Callable[[], float]], rounds: int,
            report: Callable[[str], None] | None = None) -> dict[str, list[float]]:
    """The figure that each of `work` gives in each round. Every other round goes backwards, so that neither a machine
    that grows slower nor a place in the order favours one. `report` takes a line a round (default: print it)."""
    report = report or say
    figures: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        for name in list(work)[::-1 if number % 2 else 1]:
            figures[name].append(work[name]())
        report(f"round {number + 1} of {rounds}")
    return figures


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def sgemm_gflops(threads: int | None = None, *, side: int = 1024, seconds: float = 0.5, device: str = "cpu") -> float:
    """10^9 multiply-adds a second of float32 matrix products of `side` squared, with `threads` CPU threads of torch
    (None: as many as it has): the rate that a training step's arithmetic cannot exceed by much."""
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
        out = torch.empty(side, side, device=device)
        work = side ** 3 / 1e9

        def step() -> float:
            torch.mm(a, b, out=out)
            return work

        rate(step, seconds / 10, wait=_waiting(device))
        return max(rate(step, seconds / 3, wait=_waiting(device)) for _ in range(3))
    finally:
        torch.set_num_threads(before)


def copy_gb_per_s(threads: int | None = None, *, megabytes: int = 256, seconds: float = 0.5,
                  device: str = "cpu") -> float:
    """10^9 bytes a second, read and written together, of copying memory that is too large for the caches."""
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        source = torch.ones(megabytes * 250_000, device=device)
        target = torch.empty_like(source)

        def step() -> float:
            target.copy_(source)
            return 2 * source.numel() * 4 / 1e9

        rate(step, seconds / 10, wait=_waiting(device))
        return max(rate(step, seconds / 3, wait=_waiting(device)) for _ in range(3))
    finally:
        torch.set_num_threads(before)


def _waiting(device: str) -> Callable[[], Any]:
    import torch
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def peak_memory_mb() -> float:
    """Most memory that this process has had, MB (10^6 bytes)."""
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


# --- helper processes

class Helper:
    """Another process of this script, started with `arguments`, that answers requests until it is closed: `serve` is
    its side. `environment` is added to this process's. A context manager; closing it ends the process."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None,
                 script: Path | None = None) -> None:
        self.name = " ".join(arguments)
        self._process = subprocess.Popen(
            [sys.executable, str(script or Path(sys.argv[0]).resolve()), *arguments], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})})

    def ask(self, request: str, **fields: Any) -> Any:
        """What the helper's handler `request` returns for `fields`. Raises `BenchmarkFailed` where it fails or dies."""
        try:
            self._process.stdin.write(json.dumps({"request": request, **fields}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: there is no answer then
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkFailed(f"the helper process `{self.name}` ended with exit code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise BenchmarkFailed(f"the helper process `{self.name}`: {answer['error']}")
        return answer["answer"]

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def serve(handlers: Mapping[str, Callable[..., Any]]) -> None:
    """Answers a `Helper`'s requests with `handlers` (keyword arguments in, anything that JSON takes out) until the
    other side closes. What handlers print goes to the terminal and not to the other side."""
    from expand.errors import ExpandError
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"answer": handlers[request.pop("request")](**request)}
        except (ExpandError, BenchmarkFailed, RuntimeError, MemoryError, OSError, ValueError, TypeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


# --- telling

def say(text: str) -> None:
    """A line of progress, at once."""
    print(f"  {text}", flush=True)


def table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of cells by column name as a Markdown table, aligned to be read as it is; a missing cell is empty."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [[title, *columns], *([name, *(str(row.get(column, "")) for column in columns)]
                                  for name, row in rows.items())]
    widths = [max(len(cells[place]) for cells in lines) for place in range(len(columns) + 1)]
    padded = [[cell.ljust(width) for cell, width in zip(cells, widths, strict=True)] for cells in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def arguments(doc: str, *, rounds: int | None = None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have: `--json`, and `--rounds` where there are any."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / f"{Path(sys.argv[0]).name}.json",
                        help="where the figures go (default %(default)s)")
    if rounds:
        parser.add_argument("--rounds", type=positive, default=rounds, help="turns of each (default %(default)s)")
    return parser


def positive(text: str) -> int:
    """For a parser: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return value


def machine() -> dict[str, Any]:
    """Where, when and with what: date, processor, cores that this process may use, memory, GPU, versions, commit, and
    the share of the machine that others take just now (0..1; above a tenth, distrust everything but ratios)."""
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "cpu": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "gpu": _gpu(), "system": platform.platform(), "python": platform.python_version(),
            "versions": versions(PACKAGES), "commit": _commit(), "others": others_share()}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Those of `packages` that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def others_share(seconds: float = 0.3) -> float | None:
    """Share of the machine's processor time that goes to others while this process sleeps; None where the system does
    not tell (it is not Linux)."""
    def ticks() -> tuple[int, int]:
        values = list(map(int, Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]))
        return sum(values) - values[3] - values[4], sum(values)  # all but idle and waiting for disks

    try:
        busy, total = ticks()
        time.sleep(seconds)
        busy_after, total_after = ticks()
    except (OSError, ValueError, IndexError):
        return None
    return round((busy_after - busy) / max(1, total_after - total), 3)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> str | None:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None


def _commit() -> str | None:
    """The repository's commit, with a + where files differ from it."""
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def finish(options: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """Writes `figures` with the machine to the file that the options name, and says where."""
    from expand.rundir.files import write_json
    about = machine()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.json, {"machine": about, **figures})
    print(f"{options.json}")


def main_of(main: Callable[[], None]) -> NoReturn:
    """Runs `main`; a known error is one line and exit code 1, an interruption 130."""
    from expand.errors import ExpandError
    try:
        main()
    except (BenchmarkFailed, ExpandError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
