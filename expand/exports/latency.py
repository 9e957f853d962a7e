"""How long one clip takes."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from expand.model import X3D
from expand.model.folded_batch_norm import for_inference
from expand.space.geometry import evaluation_crop
from expand.training.evaluate import probabilities_of
from expand.training.runtime import Runtime

WARM_UP = 2
PASSES = (3, 30)
"""At least, and at most."""
ENOUGH_S = 0.5
"""Time after which no further pass begins."""


def measure_latency(model: X3D, runtime: Runtime) -> dict[str, Any]:
    """Return the median time to a clip's class probabilities in `runtime`: batch 1, at the evaluation crop, the clip's
    way to the device included. `model` is moved there. Raises `UsageError` for one without a description."""
    network = model.description
    crop = evaluation_crop(network.factors.resolution)
    x_BCTHW = torch.zeros(1, 3, network.factors.frames, crop, crop)
    model = model.to(runtime.device).to(memory_format=runtime.memory_format)
    answering = for_inference(model, runtime.autocast_dtype)
    threads = torch.get_num_threads()
    times_s: list[float] = []
    runtime.prepare()
    try:
        with torch.inference_mode():
            for _ in range(WARM_UP):
                probabilities_of(answering, x_BCTHW, runtime)
            while len(times_s) < PASSES[0] or len(times_s) < PASSES[1] and sum(times_s) < ENOUGH_S:
                began = time.perf_counter()
                probabilities_of(answering, x_BCTHW, runtime)
                times_s.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    is_gpu = runtime.device.type == "cuda"
    return {"latency_ms": 1000 * statistics.median(times_s), "passes": len(times_s), "batch": 1, "crop": crop,
            "device": torch.cuda.get_device_name(runtime.device) if is_gpu else "CPU", "threads": runtime.threads,
            "precision": runtime.precision}
