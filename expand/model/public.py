"""The differences between this package's X3D and the public implementations: the names of weights, the batch norms on
shortcuts, and the description of a network (docs/decisions/005-public-weights.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from expand.config import yaml_document
from expand.errors import UsageError
from expand.model.x3d import BN_EPS, norm
from expand.space.factors import BASE_RESOLUTION, Factors
from expand.space.geometry import BASE_DEPTHS, BASE_WIDTH, HEAD_WIDTH, WIDTH_FACTOR, evaluation_crop
from expand.space.network import MAX_BYTES, Network

State = dict[str, Tensor]

# --- the names of weights (FACTS: weight names) ---

ENTRY = r"weight|bias|running_mean|running_var|num_batches_tracked"
NUMBER = r"0|[1-9]\d{0,4}"  # "00" would be a second name of the same block


@dataclass(frozen=True)
class Style:
    """The form of an implementation's keys: a place (a block of a stage, or none), a module there, and its entry.

    `block` is the place of block {block} in stage {stage}, whose count begins at `first_stage`; `outside` and `inside`
    are its modules outside the blocks and inside one, each under our name. `trunk` matches the beginning of every name
    before the head, known or not.
    """

    name: str
    block: str
    first_stage: int
    outside: dict[str, str]
    inside: dict[str, str]
    trunk: str

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        place = re.escape(self.block.format(stage="STAGE", block="BLOCK"))
        place = place.replace("STAGE", f"(?P<stage>{NUMBER})").replace("BLOCK", f"(?P<block>{NUMBER})")
        return re.compile(rf"(?:{place}\.)?(?P<module>.+)\.(?P<entry>{ENTRY})", re.ASCII)

    @cached_property
    def _ours(self) -> tuple[dict[str, str], ...]:
        """Our names by theirs, outside the blocks and inside one."""
        return tuple({theirs: our for our, theirs in modules.items()} for modules in (self.outside, self.inside))

    def parse(self, key: str) -> tuple[tuple[int, int] | None, str, str] | None:
        """Return (stage, block) from 0 or None, our name of the module, and the entry; None for a key of another
        style."""
        if not (match := self._pattern.fullmatch(key)):
            return None
        is_inside = match["stage"] is not None
        stage = int(match["stage"]) - self.first_stage if is_inside else 0
        module = self._ours[is_inside].get(match["module"])
        if module is None or stage < 0:
            return None
        return (stage, int(match["block"])) if is_inside else None, module, match["entry"]

    def write(self, place: tuple[int, int] | None, module: str, entry: str) -> str:
        """Return the key of a weight: the inverse of `parse`."""
        if place is None:
            return f"{self.outside[module]}.{entry}"
        block = self.block.format(stage=place[0] + self.first_stage, block=place[1])
        return f"{block}.{self.inside[module]}.{entry}"


OURS = Style(
    "x3d-expand", "stages.{stage}.{block}", 0,
    {name: name for name in ("stem.spatial", "stem.temporal", "stem.bn", "head.inner", "head.inner_bn",
                             "head.features", "head.classifier")},
    {name: name for name in ("shortcut", "shortcut_bn", "a", "a_bn", "b", "b_bn", "se.reduce", "se.expand", "c",
                             "c_bn")},
    r"(stem|stages)\.")
SLOWFAST = Style(
    "slowfast", "s{stage}.pathway0_res{block}", 2,
    {"stem.spatial": "s1.pathway0_stem.conv_xy", "stem.temporal": "s1.pathway0_stem.conv",
     "stem.bn": "s1.pathway0_stem.bn", "head.inner": "head.conv_5", "head.inner_bn": "head.conv_5_bn",
     "head.features": "head.lin_5", "head.classifier": "head.projection"},
    {"shortcut": "branch1", "shortcut_bn": "branch1_bn", "a": "branch2.a", "a_bn": "branch2.a_bn", "b": "branch2.b",
     "b_bn": "branch2.b_bn", "se.reduce": "branch2.se.fc1", "se.expand": "branch2.se.fc2", "c": "branch2.c",
     "c_bn": "branch2.c_bn"},
    r"s[1-5]\.")
PYTORCHVIDEO = Style(  # its stem calls the spatial convolution conv_t and the temporal one conv_xy
    "pytorchvideo", "blocks.{stage}.res_blocks.{block}", 1,
    {"stem.spatial": "blocks.0.conv.conv_t", "stem.temporal": "blocks.0.conv.conv_xy", "stem.bn": "blocks.0.norm",
     "head.inner": "blocks.5.pool.pre_conv", "head.inner_bn": "blocks.5.pool.pre_norm",
     "head.features": "blocks.5.pool.post_conv", "head.classifier": "blocks.5.proj"},
    {"shortcut": "branch1_conv", "shortcut_bn": "branch1_norm", "a": "branch2.conv_a", "a_bn": "branch2.norm_a",
     "b": "branch2.conv_b", "b_bn": "branch2.norm_b.0", "se.reduce": "branch2.norm_b.1.block.0",
     "se.expand": "branch2.norm_b.1.block.2", "c": "branch2.conv_c", "c_bn": "branch2.norm_c"},
    r"blocks\.[0-4]\.")
MMACTION = Style(
    "mmaction2", "backbone.layer{stage}.{block}", 1,
    {"stem.spatial": "backbone.conv1_s.conv", "stem.temporal": "backbone.conv1_t.conv",
     "stem.bn": "backbone.conv1_t.bn", "head.inner": "backbone.conv5.conv", "head.inner_bn": "backbone.conv5.bn",
     "head.features": "cls_head.fc1", "head.classifier": "cls_head.fc2"},
    {"shortcut": "downsample.conv", "shortcut_bn": "downsample.bn", "a": "conv1.conv", "a_bn": "conv1.bn",
     "b": "conv2.conv", "b_bn": "conv2.bn", "se.reduce": "se_module.fc1", "se.expand": "se_module.fc2",
     "c": "conv3.conv", "c_bn": "conv3.bn"},
    r"backbone\.(?!conv5\.)")
STYLES = {style.name: style for style in (OURS, SLOWFAST, PYTORCHVIDEO, MMACTION)}


def translate(key: str, source: Style, target: Style) -> str | None:
    """Return the key of `source` as `target` writes it, None if `source` has no such key."""
    parsed = source.parse(key)
    return None if parsed is None else target.write(*parsed)


# --- batch norms on shortcuts: state dict in, state dict out, in our names ---


def has_first_norm(state: Mapping[str, Tensor]) -> bool:
    """Return `first_projection_bn` of the network that has these weights."""
    return "stages.0.0.shortcut_bn.weight" in state


def fit_shortcuts(state: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> State:
    """Return `state` with batch norms on the same shortcuts as the state dict `targets`."""
    def width(shortcut: str, _: Tensor) -> int:
        scale = targets.get(f"{shortcut}_bn.weight")
        return 0 if scale is None else len(scale)

    return _with_norms(state, width)


def slowfast_shortcuts(state: Mapping[str, Tensor]) -> State:
    """Return `state` with a batch norm on every shortcut that is a convolution."""
    return _with_norms(state, lambda _, kernel: len(kernel))


def pytorchvideo_shortcuts(state: Mapping[str, Tensor]) -> State:
    """Return `state` without batch norms on the shortcuts that keep the width."""
    return _with_norms(state, lambda _, kernel: len(kernel) if kernel.shape[0] != kernel.shape[1] else 0)


def _with_norms(state: Mapping[str, Tensor], width_of: Callable[[str, Tensor], int]) -> State:
    """Return `state` with a batch norm of width `width_of(shortcut, kernel)` on each shortcut that is a convolution, or
    with none if that is 0. In evaluation the result computes the same."""
    state = dict(state)
    for kernel in [key for key in state if key.endswith(".shortcut.weight")]:
        shortcut = kernel.removesuffix(".weight")
        width, has_norm = width_of(shortcut, state[kernel]), f"{shortcut}_bn.weight" in state
        if width and not any(key.startswith(f"{shortcut}_bn.") for key in state):
            identity = norm(width).state_dict()
            identity["running_var"] -= BN_EPS  # which the norm adds again, so that it divides by exactly 1
            state.update({f"{shortcut}_bn.{entry}": value for entry, value in identity.items()})
        elif has_norm and not width:
            # the scale goes into the convolution, the shift into the block's last norm, whose output is added to the
            # shortcut's; a norm that is incomplete or of another width stays, so that it is reported
            of_norm = [f"{shortcut}_bn.{entry}" for entry in ("weight", "bias", "running_mean", "running_var")]
            last = f"{shortcut.removesuffix('shortcut')}c_bn.bias"
            if any(key not in state or state[key].shape != state[kernel].shape[:1] for key in (*of_norm, last)):
                continue
            scale, shift, mean, variance = (state.pop(key).double() for key in of_norm)
            state.pop(f"{shortcut}_bn.num_batches_tracked", None)
            scale = scale / torch.sqrt(variance + BN_EPS)
            state[kernel] = (state[kernel].double() * scale.reshape(-1, *[1] * (state[kernel].ndim - 1))).float()
            state[last] = (state[last].double() + shift - mean * scale).float()
    return state


# --- factors and configurations ---

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
        factors = {"gamma_tau": data["SAMPLING_RATE"], "gamma_t": data["NUM_FRAMES"],
                   "gamma_s": data["TRAIN_CROP_SIZE"] / BASE_RESOLUTION, "gamma_w": x3d["WIDTH_FACTOR"] / WIDTH_FACTOR,
                   "gamma_b": x3d["BOTTLENECK_FACTOR"], "gamma_d": x3d["DEPTH_FACTOR"]}
        classes, pixels = config["MODEL"]["NUM_CLASSES"], {}
        for ours, theirs in (("mean", "MEAN"), ("std", "STD")):
            if theirs in data:
                pixels[ours], *others = data[theirs]
                if any(other != pixels[ours] for other in others):
                    raise ValueError(f"DATA.{theirs} differs between the channels; here it is one number")
    except (yaml_document.NotYaml, KeyError, TypeError, ValueError, ArithmeticError) as error:
        kind = "" if isinstance(error, yaml_document.NotYaml) else f"{type(error).__name__}: "
        raise UsageError(f"its SlowFast configuration cannot be used: {kind}"
                         f"{str(error).splitlines()[0] if str(error) else ''}", where=where) from error
    return Network.from_dict({"network": name, "classes": classes, "factors": factors, **pixels}, where=where)
