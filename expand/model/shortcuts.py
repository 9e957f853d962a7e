"""The batch norms on the shortcuts, which differ between implementations; in evaluation all compute the same.

SlowFast has one on every shortcut that is a convolution, PyTorchVideo only if the width changes too. These functions
are pure: state dict in, state dict out, in our names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from expand.model.layers import BN_EPS, norm

State = dict[str, Tensor]


def has_first_norm(state: Mapping[str, Tensor]) -> bool:
    """Return `Network.first_projection_bn` of these weights."""
    return "stages.0.0.shortcut_bn.weight" in state


def as_in(state: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> State:
    """Return `state` with batch norms on the same shortcuts as the state dict `targets`."""
    state = dict(state)
    for shortcut in _convolutions(state):
        scale = f"{shortcut}_bn.weight"
        if scale in state and scale not in targets:
            _fold(state, shortcut)
        elif scale in targets and not any(key.startswith(f"{shortcut}_bn.") for key in state):
            _add_identity(state, shortcut, len(targets[scale]))
    return state


def as_in_slowfast(state: Mapping[str, Tensor]) -> State:
    """Return `state` with a batch norm on every shortcut that is a convolution."""
    state = dict(state)
    for shortcut in _convolutions(state):
        if f"{shortcut}_bn.weight" not in state:
            _add_identity(state, shortcut, len(state[f"{shortcut}.weight"]))
    return state


def as_in_pytorchvideo(state: Mapping[str, Tensor]) -> State:
    """Return `state` without batch norms on the shortcuts that keep the width."""
    state = dict(state)
    for shortcut in _convolutions(state):
        width, width_in = state[f"{shortcut}.weight"].shape[:2]
        if width == width_in and f"{shortcut}_bn.weight" in state:
            _fold(state, shortcut)
    return state


def _convolutions(state: Mapping[str, Tensor]) -> list[str]:
    return [key.removesuffix(".weight") for key in state if key.endswith(".shortcut.weight")]


def _fold(state: State, shortcut: str) -> None:
    """Fold a shortcut's batch norm: its scale into the convolution, its shift into the block's last batch norm, whose
    output is added to the shortcut's. A norm that is incomplete or of another width stays, so that it is reported."""
    of_norm = [f"{shortcut}_bn.{entry}" for entry in ("weight", "bias", "running_mean", "running_var")]
    kernel, last = f"{shortcut}.weight", f"{shortcut.removesuffix('shortcut')}c_bn.bias"
    if last not in state or any(key not in state or state[key].shape != state[kernel].shape[:1]
                                for key in (*of_norm, last)):
        return
    scale, shift, mean, variance = (state.pop(key).double() for key in of_norm)
    state.pop(f"{shortcut}_bn.num_batches_tracked", None)
    scale = scale / torch.sqrt(variance + BN_EPS)
    state[kernel] = (state[kernel].double() * scale.reshape(-1, *[1] * (state[kernel].ndim - 1))).float()
    state[last] = (state[last].double() + shift - mean * scale).float()


def _add_identity(state: State, shortcut: str, width: int) -> None:
    identity = norm(width).state_dict()
    identity["running_var"] -= BN_EPS  # which the norm adds again, so that it divides by exactly 1
    state.update({f"{shortcut}_bn.{entry}": value for entry, value in identity.items()})
