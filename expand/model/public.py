"""A network's description in the form of the public implementations: their factors, and SlowFast's configuration.

Both round like `Geometry`, with two differences. They compute in plain floating point, without its guard against
2.2 * 5 > 11; and SlowFast's `X3D` has lost the divisor of its widths since its release, so that it builds 35 channels
where the published X3D-XL has 32 (docs/decisions/005-public-weights.md).
"""

from __future__ import annotations

import math
from typing import Any

from expand.config import yaml_document
from expand.errors import UsageError
from expand.space.factors import BASE_RESOLUTION, Factors
from expand.space.geometry import BASE_DEPTHS, BASE_WIDTH, HEAD_WIDTH, WIDTH_FACTOR, evaluation_crop
from expand.space.network import MAX_BYTES, Network

DECIMALS = 6
"""Decimals of a factor that is written: 0.1 added up 22 times is 2.2 again."""
NATIVE, BY_PYTORCHVIDEO = "X3D", "PTVX3D"
"""SlowFast's two builders of an X3D: its own, and one that calls PyTorchVideo's `create_x3d`."""


def public_factors(factors: Factors) -> tuple[float, float, float]:
    """Return WIDTH_FACTOR, BOTTLENECK_FACTOR and DEPTH_FACTOR."""
    return (float(round(WIDTH_FACTOR * factors.gamma_w, DECIMALS)), float(round(factors.gamma_b, DECIMALS)),
            float(round(factors.gamma_d, DECIMALS)))


def builds(network: Network, divisor: int) -> bool:
    """Return True if a public implementation whose widths are multiples of `divisor` (PyTorchVideo: 8, SlowFast's own
    X3D: 1) builds the network's shapes from `public_factors`."""
    width_factor, bottleneck, depth = public_factors(network.factors)
    theirs = []
    for stage, base_depth in enumerate(BASE_DEPTHS):
        width = BASE_WIDTH * 2 ** stage * width_factor
        outer = max(divisor, int(width + divisor / 2) // divisor * divisor)
        outer += divisor if outer < 0.9 * width else 0
        theirs.append((outer, int(bottleneck * outer), math.ceil(depth * base_depth)))
    return theirs == [(stage[0].outer, stage[0].inner, len(stage)) for stage in network.geometry.stages]


def slowfast_builder(network: Network) -> str:
    """Return the name of the SlowFast builder that makes this network. Raises `UsageError` if neither does."""
    if builds(network, 1):
        return NATIVE
    if builds(network, 8):
        return BY_PYTORCHVIDEO
    raise not_buildable(network, "SlowFast")


def not_buildable(network: Network, whose: str) -> UsageError:
    """Return the error for a network that an implementation would build with other shapes."""
    width, bottleneck, depth = public_factors(network.factors)
    return UsageError(f"{whose} rounds differently: it builds other layers from width {width:g}, bottleneck "
                      f"{bottleneck:g}, depth {depth:g}", where=f"network '{network.name}'",
                      fix="use factors on the search's grids (0.05, 0.25, 0.1), or export another format")


def slowfast_config(network: Network, *, dropout: float, checkpoint: str) -> dict[str, Any]:
    """Return SlowFast's configuration of the network, with the published test protocol; other options keep their
    defaults.

    `checkpoint`: the file that SlowFast's test reads. The model's name is that of `slowfast_builder`.
    """
    factors, crop = network.factors, evaluation_crop(network.factors.resolution)
    width, bottleneck, depth = public_factors(factors)
    return {
        "TRAIN": {"ENABLE": False, "DATASET": "kinetics"},
        "TEST": {"ENABLE": True, "DATASET": "kinetics", "CHECKPOINT_FILE_PATH": checkpoint, "NUM_ENSEMBLE_VIEWS": 10,
                 "NUM_SPATIAL_CROPS": 3},
        "X3D": {"WIDTH_FACTOR": width, "DEPTH_FACTOR": depth, "BOTTLENECK_FACTOR": bottleneck, "DIM_C1": BASE_WIDTH,
                "DIM_C5": HEAD_WIDTH, "SCALE_RES2": False, "BN_LIN5": False, "CHANNELWISE_3x3x3": True},
        "DATA": {"NUM_FRAMES": factors.frames, "SAMPLING_RATE": factors.stride,
                 "TRAIN_JITTER_SCALES": [crop, factors.resolution * 10 // 7], "TRAIN_CROP_SIZE": factors.resolution,
                 "TEST_CROP_SIZE": crop, "INPUT_CHANNEL_NUM": [3], "MEAN": [network.mean] * 3,
                 "STD": [network.std] * 3},
        "RESNET": {"ZERO_INIT_FINAL_BN": True, "TRANS_FUNC": "x3d_transform", "STRIDE_1X1": False},
        "BN": {"WEIGHT_DECAY": 0.0},
        "MODEL": {"NUM_CLASSES": network.classes, "ARCH": "x3d", "MODEL_NAME": slowfast_builder(network),
                  "LOSS_FUNC": "cross_entropy", "DROPOUT_RATE": dropout, "HEAD_ACT": "softmax"},
    }


def network_of_config(text: Any, *, where: str, name: str) -> Network:
    """Return the network of a SlowFast configuration's text, which is untrusted input.

    Raises `UsageError` for any other text, and for a description that fits no `Network`.
    """
    try:
        if not isinstance(text, str) or len(text) > MAX_BYTES:
            raise ValueError("no text of a usual length")
        config = yaml_document.parse_values(text)
        data, x3d = config["DATA"], config["X3D"]
        frames, stride, side = data["NUM_FRAMES"], data["SAMPLING_RATE"], data["TRAIN_CROP_SIZE"]
        gammas = x3d["WIDTH_FACTOR"] / WIDTH_FACTOR, x3d["BOTTLENECK_FACTOR"], x3d["DEPTH_FACTOR"]
        classes, pixels = config["MODEL"]["NUM_CLASSES"], {}
        for ours, theirs in (("mean", "MEAN"), ("std", "STD")):
            if theirs in data:
                pixels[ours], *others = data[theirs]
                if any(other != pixels[ours] for other in others):
                    raise ValueError(f"DATA.{theirs} differs between the channels; here it is one number")
        factors = {"gamma_tau": stride, "gamma_t": frames, "gamma_s": side / BASE_RESOLUTION,
                   **dict(zip(("gamma_w", "gamma_b", "gamma_d"), gammas, strict=True))}
    except (yaml_document.NotYaml, KeyError, TypeError, ValueError, ArithmeticError) as error:
        kind = "" if isinstance(error, yaml_document.NotYaml) else f"{type(error).__name__}: "
        raise UsageError(f"its SlowFast configuration cannot be used: {kind}"
                         f"{str(error).splitlines()[0] if str(error) else ''}", where=where) from error
    return Network.from_dict({"network": name, "classes": classes, "factors": factors, **pixels}, where=where)
