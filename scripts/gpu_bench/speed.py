"""Stage 5: training steps of whole networks, in turn: PyTorchVideo's, and ours in several ways."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarking import BenchmarkFailed, in_turn, median_ratio

from expand.space.complexity import complexity
from gpu_bench.running import Check, Note, Result, Setting, Worker
from gpu_bench.stepping import BATCHES, MOVES, VALUE_BYTES, Steps, Variant, network_of

VARIANTS = {"plain": Variant(is_plain=True, is_channels_last=False), "native": Variant(triton="off"),
            "native, cudnn.benchmark off": Variant(triton="off", measures=False), "Triton": Variant(triton="on"),
            "graph": Variant(triton="on", is_graphed=True)}
MORE = {"plain, channels last": Variant(is_plain=True), "chosen by shape": Variant(),
        "Triton, cudnn.benchmark off": Variant(triton="on", measures=False),
        "native, graph": Variant(triton="off", is_graphed=True)}
ON_CPU = ("plain", "native", "graph")


def checks(setting: Setting, note: Note) -> dict[str, Check]:
    """A check a network."""
    return {f"steps of {name}": partial(compare, setting, note, name) for name in setting.networks}


def compare(setting: Setting, note: Note, name: str) -> Result:
    """Measure clips a second of all variants, each in a process of its own. They begin all at once, but measure one at
    a time: cuDNN too measures in the first steps."""
    figures: dict[str, Any] = {"batch": BATCHES[name], "failed": {}}
    variants = VARIANTS | MORE if setting.is_full else VARIANTS
    if not setting.is_gpu:  # what is for GPUs alone would be measured twice
        variants = {variant: options for variant, options in variants.items() if variant in ON_CPU}
    with ExitStack() as stack:
        workers = {variant: stack.enter_context(Worker(Steps, setting, name, options, BATCHES[name]))
                   for variant, options in variants.items()}
        for worker in workers.values():
            worker.send("start")
        for variant, worker in list(workers.items()):
            try:
                worker.answer()
                worker.ask("rate", seconds=0)
            except BenchmarkFailed as failure:  # the others go on without it
                figures["failed"][variant] = str(failure)
                del workers[variant]
        note(figures)
        if not workers:
            raise BenchmarkFailed(f"no variant runs: {figures['failed']}")
        copying = next(iter(workers.values())).ask("copy_gb_per_s")
        rates: dict[str, list[float]] = {variant: [] for variant in workers}
        for _ in range(setting.rounds):
            for variant, found in in_turn({variant: partial(worker.ask, "rate", seconds=setting.seconds)
                                           for variant, worker in workers.items()}, 1, lambda line: None).items():
                rates[variant] += found
            note({"clips_per_s": rates})
        peaks = {variant: worker.ask("peak_mb") for variant, worker in workers.items()}
        remarks = {variant: said for variant, worker in workers.items() if (said := worker.ask("remarks"))}
    least_gb = MOVES * VALUE_BYTES * complexity(network_of(name).geometry).activations / 1e9
    figures |= {"clips_per_s": rates, "peak_mb": peaks, "remarks": remarks, "copy_gb_per_s": copying,
                "least_gb_per_clip": least_gb, "most_clips_per_s": copying / least_gb}
    if "plain" in rates:
        figures["times_plain"] = {variant: median_ratio(found, rates["plain"]) for variant, found in rates.items()}
    fastest = max((variant for variant in rates if not variant.startswith("plain")), default="plain",
                  key=lambda variant: statistics.median(rates[variant]))
    clips = statistics.median(rates[fastest])
    against = f", {figures['times_plain'][fastest]:.2f} times plain" if "plain" in rates else ""
    failed = f"; failed: {figures['failed']}" if figures["failed"] else ""
    return Result(f"{fastest}: {clips:,.0f} clips/s{against}, {clips / figures['most_clips_per_s']:.0%} of what memory "
                  f"allows{failed}", figures, is_right=not figures["failed"])
