"""X3D's stem, residual block and head as a few compiled calls each, forward and backward, on a CPU.

Between two calls only what the next one needs goes through memory: the convolutions' raw outputs. Norms, activations
and gates are applied when rows are read, and their sums taken when rows are written, so that a training step moves
about a third of the bytes that it moves operator by operator (docs/decisions/016-fused-blocks.md).

Letters of shapes: B clips, T frames, H x W positions, C channels; tensors are channels-last.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as every_module

from expand.kernels import library

if TYPE_CHECKING:
    from expand.model.x3d import Head, ResBlock, Stem


LANES = 8
"""Inner widths are padded to a multiple of this."""


class Base(IntEnum):
    """The initial value of the gradient of a block's input (pointwise.h)."""

    NOTHING = 0
    KEPT = 1
    SHORTCUT = 2


def usable(part: Stem | ResBlock | Head, x_BCTHW: Tensor, width_in: int, width_out: int) -> bool:
    """Return True if the compiled form of `part` computes the same as its layers: in training with gradients or in
    evaluation without, on plain CPU tensors, if no hook, tracer or counter watches the layers and none was changed.

    Wrong inputs are left to the layers, which raise the right error.
    """
    if library.load() is None or x_BCTHW.device.type != "cpu" or type(x_BCTHW) is not Tensor or x_BCTHW.ndim != 5:
        return False
    if x_BCTHW.dtype not in (torch.float32, torch.float64) or part.training != torch.is_grad_enabled():
        return False
    is_one_position = take_every(x_BCTHW.permute(0, 2, 3, 4, 1), 2).shape[:4].numel() <= 1  # no batch norm of one
    if is_one_position or x_BCTHW.shape[1] != width_in or width_out % LANES:
        return False
    if (torch.is_autocast_enabled("cpu") or torch.jit.is_tracing() or torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None
            or every_module._global_forward_hooks or every_module._global_forward_pre_hooks):
        return False
    layers: list[nn.Module] = [part]
    for layer in layers:  # the list grows: `modules()` takes several times as long, and this runs at every step
        layers += [inner for inner in layer._modules.values() if inner is not None]
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
            return False
        weight = layer._parameters.get("weight")
        if weight is not None and (weight.dtype != x_BCTHW.dtype or weight.device.type != "cpu"):
            return False
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not (
                type(layer) is nn.BatchNorm3d and layer.training == part.training and layer.affine
                and layer.track_running_stats and layer.momentum is not None):
            return False
    return True


# --- kernel calls, memory for their results, and layouts ---


class Pass:
    """The kernel calls of one pass through a part, for the dtype of `like`. `usable` says that there is a library."""

    def __init__(self, like: Tensor) -> None:
        kernels = library.load()
        if kernels is None:
            raise RuntimeError("there are no compiled kernels")
        self.kernels, self.like = kernels, like

    def __call__(self, name: str, *arguments: Tensor | float | None) -> None:
        self.kernels.call(name, self.like.dtype, *arguments)

    def empty(self, *shape: int) -> Tensor:
        """Return memory for a result."""
        return self.like.new_empty(shape)

    def call_and_norm(self, name: str, *arguments: Any, bn: nn.Module, after: Sequence[Tensor] = ()) -> Tensor:
        """Call a function that measures the batch norm `bn` of its result in training; in evaluation it does not.

        Returns the norm's lines: mean, 1 / deviation, scale and shift, 4 x padded width.
        """
        if not isinstance(bn, nn.BatchNorm3d) or bn.running_mean is None or bn.running_var is None:
            raise TypeError(f"{type(bn).__name__} is no batch norm with statistics")
        lines = self.empty(4, pad_width(bn.num_features)) if bn.training else None
        self(name, *arguments, bn.num_features, bn.weight, bn.bias, bn.running_mean, bn.running_var,
             bn.num_batches_tracked, float(bn.momentum or 0.0), float(bn.eps), lines, *after)
        if lines is None:
            lines = bn.weight.new_zeros(4, pad_width(bn.num_features))
            inverse = torch.rsqrt(bn.running_var + bn.eps)
            scale = bn.weight * inverse
            lines[:, :bn.num_features] = torch.stack(
                [bn.running_mean, inverse, scale, bn.bias - bn.running_mean * scale])
        return lines


def rows_of(x_BCTHW: Tensor) -> Tensor:
    """Return the tensor as B x T x H x W x C, contiguous."""
    return x_BCTHW.permute(0, 2, 3, 4, 1).contiguous()


def clips_of(x_BTHWC: Tensor) -> Tensor:
    """Return the tensor as B x C x T x H x W: the inverse of `rows_of`."""
    return x_BTHWC.permute(0, 4, 1, 2, 3)


def weights_of(*layers: nn.Module) -> list[Tensor | None]:
    """Return weight and bias of each layer, None for those that it lacks."""
    return [layer._parameters.get(name) for layer in layers for name in ("weight", "bias")]


def take_every(x_BTHWC: Tensor, stride: int) -> Tensor:
    """Return every `stride`-th position of each frame."""
    return x_BTHWC[:, :, ::stride, ::stride]


def pad_width(width: int) -> int:
    """Return `width` rounded up to a multiple of `LANES`."""
    return -(-width // LANES) * LANES


# --- the residual block ---


def block(part: ResBlock, x_BCTHW: Tensor) -> Tensor:
    """Return `part(x)`, if `usable`."""
    if not part.training:
        return clips_of(_block_forward(part, rows_of(x_BCTHW)).z)
    return _Block.apply(x_BCTHW, part, *_block_weights(part))


class _Tensors(NamedTuple):
    """The tensors for a block's backward pass: x, the convolutions' results u, v, y and q (of the shortcut, if it has a
    norm), the lines of their norms, each clip's means of v, and the gates with the activations before them."""

    x: Tensor
    u: Tensor
    v: Tensor
    y: Tensor
    q: Tensor | None
    u_norm: Tensor
    v_norm: Tensor
    y_norm: Tensor
    q_norm: Tensor | None
    means: Tensor
    active: Tensor | None
    gate: Tensor | None
    z: Tensor


def _gates(part: ResBlock) -> tuple[nn.Module, nn.Module]:
    """Return the two layers of squeeze-and-excitation, or two without weights."""
    return (part.se, part.se) if isinstance(part.se, nn.Identity) else (part.se.reduce, part.se.expand)


def _block_weights(part: ResBlock) -> list[Tensor | None]:
    return weights_of(part.a, part.a_bn, part.b, part.b_bn, *_gates(part), part.c, part.c_bn, part.shortcut,
                      part.shortcut_bn)


def _gate_weights(part: ResBlock) -> tuple[int | Tensor | None, ...]:
    """Return the number of gates before they are expanded (0 without any), and the weights of both layers."""
    return 0 if isinstance(part.se, nn.Identity) else part.se.reduce.out_channels, *weights_of(*_gates(part))


def _volume(part: ResBlock, x_BTHWC: Tensor) -> tuple[int, ...]:
    """Return the depthwise convolution's shape in the kernels' form."""
    return (*x_BTHWC.shape[:4], pad_width(part.a.out_channels), part.b.stride[-1])


def _block_forward(part: ResBlock, x: Tensor) -> _Tensors:
    call, (clips, _, _, _, outer_in), stride = Pass(x), x.shape, part.b.stride[-1]
    real_inner, outer = part.a.out_channels, part.c.out_channels
    inner, size = pad_width(real_inner), take_every(x, stride).shape[:4]
    rows, per_clip = size.numel(), size[1:].numel()
    u, v, y = call.empty(*x.shape[:4], inner), call.empty(*size, inner), call.empty(*size, outer)
    u_norm = call.call_and_norm("expand_forward", u.numel() // inner, outer_in, x, part.a.weight, u, bn=part.a_bn)
    means = call.empty(clips, inner)
    v_norm = call.call_and_norm("depthwise_forward", *_volume(part, x), u, u_norm, part.b.weight, v, bn=part.b_bn,
                                after=[means])
    active = gate = None
    if not isinstance(part.se, nn.Identity):
        active, gate = call.empty(clips, part.se.reduce.out_channels), call.empty(clips, inner)
        call("gate_forward", clips, real_inner, means, v_norm, *_gate_weights(part), active, gate)
    y_norm = call.call_and_norm("project_forward", clips, per_clip, real_inner, v, v_norm, gate, part.c.weight, y,
                                bn=part.c_bn)
    q, q_norm = x, None
    if isinstance(part.shortcut, nn.Conv3d):
        q, x_strided = call.empty(*size, outer), take_every(x, stride).contiguous()
        arguments = rows, outer_in, x_strided, part.shortcut.weight, q
        if isinstance(part.shortcut_bn, nn.Identity):
            call("expand_forward", *arguments, outer, *[None] * 5, 0.0, 0.0, None)
        else:
            q_norm = call.call_and_norm("expand_forward", *arguments, bn=part.shortcut_bn)
    z = call.empty(*size, outer)
    call("add_forward", rows, outer, y, y_norm, q, q_norm, z)
    return _Tensors(x, u, v, y, None if q_norm is None else q, u_norm, v_norm, y_norm, q_norm, means, active, gate, z)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCTHW: Tensor, part: ResBlock, *weights: Tensor | None) -> Tensor:
        kept = _block_forward(part, rows_of(x_BCTHW))
        z_BCTHW = clips_of(kept.z)
        ctx.part = part
        ctx.save_for_backward(*kept[:-1], z_BCTHW, *weights)  # the weights: torch checks that they stay unchanged
        return z_BCTHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz_BCTHW: Tensor) -> tuple[Tensor | None, ...]:
        part, dz = ctx.part, rows_of(dz_BCTHW)
        *before, z_BCTHW = ctx.saved_tensors[:len(_Tensors._fields)]
        kept = _Tensors._make([*before, z_BCTHW.permute(0, 2, 3, 4, 1)])
        call, (clips, real_inner, outer) = Pass(dz), (len(dz), part.a.out_channels, part.c.out_channels)
        x, inner, rows, per_clip = kept.x, pad_width(real_inner), dz.shape[:4].numel(), dz.shape[1:4].numel()
        weights = _block_weights(part)
        d = {weight: torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in weights
             if weight is not None}

        def of(*layers: nn.Module) -> list[Tensor | None]:
            return [None if weight is None else d[weight] for weight in weights_of(*layers)]

        y_slopes, q_slopes = call.empty(3, outer), call.empty(3, outer) if kept.q_norm is not None else None
        call("add_backward", rows, outer, dz, kept.z, kept.y, kept.y_norm, y_slopes, *of(part.c_bn), kept.q,
             kept.q_norm, q_slopes, *of(part.shortcut_bn))
        dv, sums = torch.empty_like(kept.v), torch.empty(clips, 2, inner, dtype=torch.float64)
        call("project_backward", clips, per_clip, real_inner, outer, dz, kept.z, kept.y, y_slopes, kept.v, kept.v_norm,
             kept.gate, part.c.weight, dv, d[part.c.weight], sums)
        slope, along, offset = call.empty(clips, inner), call.empty(inner), call.empty(clips, inner)
        call("gate_backward", clips, per_clip, real_inner, sums, kept.means, kept.v_norm, *weights_of(part.b_bn),
             *_gate_weights(part), kept.active, kept.gate, slope, along, offset, *of(part.b_bn), *of(*_gates(part)))
        du, u_slopes = torch.empty_like(kept.u), call.empty(3, inner)
        call("depthwise_backward", *_volume(part, x), real_inner, dv, kept.v, slope, along, offset, kept.u, kept.u_norm,
             part.b.weight, du, u_slopes, *of(part.a_bn), d[part.b.weight])
        needs_x = ctx.needs_input_grad[0]
        base, dx = Base.SHORTCUT, torch.empty_like(x) if needs_x else None
        if isinstance(part.shortcut, nn.Conv3d):
            base, dx = Base.KEPT, _through_shortcut(part, call, kept, dz, q_slopes, d, needs_x=needs_x)
        call("expand_backward", x.shape[:4].numel(), x.shape[4], real_inner, du, kept.u, u_slopes, x, part.a.weight, dz,
             kept.z, int(base), dx, d[part.a.weight])
        return clips_of(dx) if dx is not None else None, None, *[None if w is None else d[w] for w in weights]


def _through_shortcut(part: ResBlock, call: Pass, kept: _Tensors, dz: Tensor, q_slopes: Tensor | None,
                      d: dict[Tensor, Tensor], *, needs_x: bool) -> Tensor | None:
    """Return the gradient of x through a shortcut that is a convolution; its weight's gradient goes to `d`."""
    x, outer, stride = kept.x, dz.shape[4], part.b.stride[-1]
    dq, x_strided = torch.empty_like(dz), take_every(x, stride).contiguous()
    dx_strided = torch.empty_like(x_strided) if needs_x else None
    rows = dz.shape[:4].numel()
    call("shortcut_backward", rows, outer, dz, kept.z, kept.q, q_slopes, dq)
    [weight, _] = weights_of(part.shortcut)
    call("expand_backward", rows, x.shape[4], outer, dq, None, None, x_strided, weight, None, None,
         int(Base.NOTHING), dx_strided, None if weight is None else d[weight])
    if dx_strided is None:
        return None
    dx = torch.zeros_like(x)
    take_every(dx, stride).copy_(dx_strided)
    return dx


# --- the stem ---


def stem(part: Stem, x_BCTHW: Tensor) -> Tensor:
    """Return `part(x)`, if `usable` and x needs no gradient."""
    if not part.training:
        return clips_of(_stem_forward(part, rows_of(x_BCTHW))[-1])
    return _Stem.apply(x_BCTHW, part, *weights_of(part.spatial, part.temporal, part.bn))


def _stem_arguments(part: Stem, x: Tensor) -> tuple[int | Tensor, ...]:
    return *x.shape[:4], part.spatial.out_channels, x, part.spatial.weight.contiguous(), part.temporal.weight


def _stem_forward(part: Stem, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the convolutions' result, the lines of its norm, and the stem's result."""
    call, size = Pass(x), (*take_every(x, 2).shape[:4], part.spatial.out_channels)
    q, z = call.empty(*size), call.empty(*size)
    norm = call.call_and_norm("stem_forward", *_stem_arguments(part, x), q, bn=part.bn)
    call("add_forward", q.numel() // size[4], size[4], q, norm, None, None, z)
    return q, norm, z


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCTHW: Tensor, part: Stem, *weights: Tensor | None) -> Tensor:
        x = rows_of(x_BCTHW)
        q, norm, z = _stem_forward(part, x)
        z_BCTHW = clips_of(z)
        ctx.part = part
        ctx.save_for_backward(x, q, norm, z_BCTHW, *weights)
        return z_BCTHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz_BCTHW: Tensor) -> tuple[Tensor | None, ...]:
        part, (x, q, norm, z_BCTHW) = ctx.part, ctx.saved_tensors[:4]
        dz, z, call, width = rows_of(dz_BCTHW), z_BCTHW.permute(0, 2, 3, 4, 1), Pass(x), q.shape[4]
        slopes, (d_gamma, d_beta) = call.empty(3, width), (call.empty(width), call.empty(width))
        call("add_backward", q.numel() // width, width, dz, z, q, norm, slopes, d_gamma, d_beta, *(None,) * 5)
        d_space, d_time = call.empty(*part.spatial.weight.shape), call.empty(*part.temporal.weight.shape)
        call("stem_backward", *_stem_arguments(part, x), dz, z, q, slopes, d_space, d_time)
        return None, None, d_space, None, d_time, None, d_gamma, d_beta


# --- the head, up to its average ---


def pool(part: Head, x_BCTHW: Tensor) -> Tensor:
    """Return the average over the whole clip of the head's first convolution, norm and ReLU: B x C x 1 x 1 x 1."""
    result = _Pool.apply(x_BCTHW, part, *weights_of(part.inner, part.inner_bn)) if part.training \
        else _pool_forward(part, rows_of(x_BCTHW))[-1]
    return result[:, :part.inner.out_channels, None, None, None]


def _pool_forward(part: Head, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the convolution's result, the lines of its norm, and the averages, padded."""
    call, width = Pass(x), pad_width(part.inner.out_channels)
    u, means = call.empty(*x.shape[:4], width), call.empty(len(x), width)
    norm = call.call_and_norm("expand_forward", u.numel() // width, x.shape[4], x, part.inner.weight, u,
                              bn=part.inner_bn)
    call("pool_forward", len(x), x.shape[1:4].numel(), width, u, norm, means)
    return u, norm, means


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCTHW: Tensor, part: Head, *weights: Tensor | None) -> Tensor:
        x = rows_of(x_BCTHW)
        u, norm, means = _pool_forward(part, x)
        ctx.part = part
        ctx.save_for_backward(x, u, norm, *weights)
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_means: Tensor) -> tuple[Tensor | None, ...]:
        part, (x, u, norm) = ctx.part, ctx.saved_tensors[:3]
        call, width = Pass(x), part.inner.out_channels
        du, slopes = torch.empty_like(u), call.empty(3, u.shape[4])
        d_gamma, d_beta, d_weight = call.empty(width), call.empty(width), call.empty(*part.inner.weight.shape)
        call("pool_backward", len(x), x.shape[1:4].numel(), width, d_means.contiguous(), u, norm, du, slopes, d_gamma,
             d_beta)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        call("expand_backward", x.shape[:4].numel(), x.shape[4], width, du, u, slopes, x, part.inner.weight, None,
             None, int(Base.NOTHING), dx, d_weight)
        return clips_of(dx) if dx is not None else None, None, d_weight, None, d_gamma, d_beta
