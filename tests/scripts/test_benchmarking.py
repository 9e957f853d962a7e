"""The benchmarks' common parts: turns, ratios, helper processes, tables, and the file that is left."""

import importlib.util
import json
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def bench(pytestconfig):
    """The module, which lies beside the scripts and in no package."""
    spec = importlib.util.spec_from_file_location("benchmarking", pytestconfig.rootpath / "scripts" / "benchmarking.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def test_everything_has_its_turn_in_every_round_and_the_order_turns(bench):
    order = []

    def noted(name):
        return lambda: order.append(name) or len(order)

    figures = bench.in_turn({"a": noted("a"), "b": noted("b"), "c": noted("c")}, 3, report=order.append)
    assert order == ["a", "b", "c", "round 1 of 3", "c", "b", "a", "round 2 of 3", "a", "b", "c", "round 3 of 3"]
    assert {name: len(values) for name, values in figures.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_ratio_is_taken_within_a_round_so_that_a_slow_round_does_not_count(bench):
    assert bench.median_ratio([30, 3, 33], [10, 1, 11]) == 3
    with pytest.raises(ValueError, match="shorter"):
        bench.median_ratio([1, 2], [1])


def test_a_rate_is_items_over_time_and_waits_for_the_device(bench, monkeypatch):
    now, waits = [0.0], []

    def step():
        now[0] += 2.0
        return 6

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    assert bench.rate(step, 7.0, wait=lambda: waits.append(now[0])) == 3
    assert waits == [0, 2, 4, 6, 8]
    assert bench.rate(step, 0) == 3  # one call at the least


HELPER = """
import sys
sys.path.insert(0, {scripts!r})
import os
from benchmarking import serve

def fail():
    raise ValueError("not so")

serve({{"add": lambda a, b: print("noise") or a + b, "threads": lambda: os.environ["SOME"], "fail": fail,
        "die": lambda: os._exit(3)}})
"""


def test_a_helper_answers_in_its_own_environment_and_its_failures_are_told(bench, tmp_path, pytestconfig):
    script = tmp_path / "helper.py"
    script.write_text(HELPER.format(scripts=str(pytestconfig.rootpath / "scripts")))
    with bench.Helper(["x", "1"], {"SOME": "thing"}, script) as helper:
        assert helper.ask("add", a=1, b=2.5) == 3.5
        assert helper.ask("threads") == "thing"
        with pytest.raises(bench.BenchmarkFailed, match="`x 1`: ValueError: not so"):
            helper.ask("fail")
        assert helper.ask("add", a=1, b=1) == 2
        with pytest.raises(bench.BenchmarkFailed, match="`x 1` ended with exit code 3"):
            helper.ask("die")
    assert helper._process.returncode == 3


def test_a_table_is_markdown_with_empty_cells_where_there_is_nothing(bench):
    assert bench.table("net", {"xs": {"a": 1, "long": "2.0"}, "x2d": {"long": 3}}).splitlines() == [
        "| net | a | long |", "| --- | - | ---- |", "| xs  | 1 | 2.0  |", "| x2d |   | 3    |"]


def test_what_is_left_says_where_and_when(bench, tmp_path, capsys):
    options = bench.arguments("doc", rounds=2).parse_args(["--json", str(tmp_path / "new" / "x.json")])
    bench.finish(options, {"found": [1, 2]})
    left = json.loads((tmp_path / "new" / "x.json").read_text())
    assert left["found"] == [1, 2] and options.rounds == 2
    assert {"date", "cpu", "cores", "memory_gb", "versions", "commit", "python"} <= set(left["machine"])
    assert "torch" in left["machine"]["versions"] and capsys.readouterr().out.strip().endswith("x.json")


@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_rounds_that_cannot_be_are_refused(bench, value, capsys):
    with pytest.raises(SystemExit):
        bench.arguments("doc", rounds=2).parse_args(["--rounds", value])
    assert "--rounds" in capsys.readouterr().err


def test_a_known_error_is_one_line_and_exit_code_1(bench):
    def main():
        raise bench.BenchmarkFailed("no such thing; do that")

    with pytest.raises(SystemExit) as ended:
        bench.main_of(main)
    assert str(ended.value.code).endswith("no such thing; do that")


@pytest.mark.parametrize("name", ["bench_training", "bench_search", "bench_counting", "bench_decode", "bench_feeding",
                                  "bench_frame_access", "bench_executors", "soak"])
def test_every_benchmark_says_what_it_measures(pytestconfig, name):
    script = pytestconfig.rootpath / "scripts" / name
    done = subprocess.run([sys.executable, str(script), "--help"], text=True, capture_output=True, check=False)
    assert done.returncode == 0 and "usage:" in done.stdout and not done.stderr.strip().startswith("Traceback")


def test_a_network_that_does_not_exist_is_said_without_a_traceback(pytestconfig):
    script = pytestconfig.rootpath / "scripts" / "bench_training"
    done = subprocess.run([sys.executable, str(script), "--networks", "xss"], text=True, capture_output=True,
                          check=False)
    assert done.returncode == 1 and "xss" in done.stderr and "Traceback" not in done.stderr
