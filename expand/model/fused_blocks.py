"""X3D's stem, residual block and head as a few compiled calls each, forward and backward, on a CPU.

Between two calls only what the next one needs goes through memory: the convolutions' raw outputs. Norms, activations
and gates are applied when rows are read, and their sums taken when rows are written, so that a training step moves
about a third of the bytes that it moves operator by operator (docs/decisions/016-fused-blocks.md).

Letters of shapes: B clips, T frames, H x W positions, C channels; tensors are channels-last.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as every_module

from expand.kernels import library
from expand.model.kernel_calls import LANES, Pass, clips_of, pad_width, rows_of, take_every, weights_of

if TYPE_CHECKING:
    from expand.model.convolution import Pointwise
    from expand.model.layers import Head, ResBlock, Stem


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


# --- the residual block ---


def block(part: ResBlock, x_BCTHW: Tensor) -> Tensor:
    """Return `part(x)`, if `usable`."""
    if not part.training:
        return clips_of(_block_forward(part, rows_of(x_BCTHW)).z)
    return _Block.apply(x_BCTHW, part, *_block_weights(part))


class _Kept(NamedTuple):
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


def _gates(part: ResBlock) -> tuple[Pointwise, Pointwise] | None:
    """Return the two layers of squeeze-and-excitation, None without it."""
    return None if isinstance(part.se, nn.Identity) else (part.se.reduce, part.se.expand)


def _block_weights(part: ResBlock) -> list[Tensor | None]:
    return weights_of(part.a, part.a_bn, part.b, part.b_bn, *(_gates(part) or (nn.Identity(),) * 2), part.c, part.c_bn,
                    part.shortcut, part.shortcut_bn)


def _gate_weights(part: ResBlock) -> tuple[int | Tensor | None, ...]:
    gates = _gates(part)
    return (gates[0].out_channels, *weights_of(*gates)) if gates else (0, None, None, None, None)


def _volume(part: ResBlock, x_BTHWC: Tensor) -> tuple[int, ...]:
    """Return the depthwise convolution's shape in the kernels' form."""
    return (*x_BTHWC.shape[:4], pad_width(part.a.out_channels), part.b.stride[-1])


def _block_forward(part: ResBlock, x: Tensor) -> _Kept:
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
    if (gates := _gates(part)) is not None:
        active, gate = call.empty(clips, gates[0].out_channels), call.empty(clips, inner)
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
    return _Kept(x, u, v, y, q if q_norm is not None else None, u_norm, v_norm, y_norm, q_norm, means, active, gate, z)


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
        *kept, z_BCTHW = ctx.saved_tensors[:len(_Kept._fields)]
        return _block_backward(ctx.part, _Kept._make([*kept, z_BCTHW.permute(0, 2, 3, 4, 1)]), rows_of(dz_BCTHW),
                               needs_x=ctx.needs_input_grad[0])


def _block_backward(part: ResBlock, kept: _Kept, dz: Tensor, *, needs_x: bool) -> tuple[Tensor | None, ...]:
    call, (clips, real_inner, outer) = Pass(dz), (len(dz), part.a.out_channels, part.c.out_channels)
    x, inner, rows, per_clip = kept.x, pad_width(part.a.out_channels), dz.shape[:4].numel(), dz.shape[1:4].numel()
    weights = _block_weights(part)
    d = {weight: torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in weights
         if weight is not None}

    def of(*layers: nn.Module) -> list[Tensor | None]:
        return [None if weight is None else d[weight] for weight in weights_of(*layers)]

    y_slopes, q_slopes = call.empty(3, outer), call.empty(3, outer) if kept.q_norm is not None else None
    call("add_backward", rows, outer, dz, kept.z, kept.y, kept.y_norm, y_slopes, *of(part.c_bn), kept.q, kept.q_norm,
         q_slopes, *of(part.shortcut_bn))
    dv, sums = torch.empty_like(kept.v), torch.empty(clips, 2, inner, dtype=torch.float64)
    call("project_backward", clips, per_clip, real_inner, outer, dz, kept.z, kept.y, y_slopes, kept.v, kept.v_norm,
         kept.gate, part.c.weight, dv, d[part.c.weight], sums)
    slope, along, offset = call.empty(clips, inner), call.empty(inner), call.empty(clips, inner)
    call("gate_backward", clips, per_clip, real_inner, sums, kept.means, kept.v_norm, *weights_of(part.b_bn),
         *_gate_weights(part), kept.active, kept.gate, slope, along, offset, *of(part.b_bn),
         *of(*(_gates(part) or (nn.Identity(),) * 2)))
    du, u_slopes = torch.empty_like(kept.u), call.empty(3, inner)
    call("depthwise_backward", *_volume(part, x), real_inner, dv, kept.v, slope, along, offset, kept.u, kept.u_norm,
         part.b.weight, du, u_slopes, *of(part.a_bn), d[part.b.weight])
    base, dx = Base.SHORTCUT, torch.empty_like(x) if needs_x else None
    if isinstance(part.shortcut, nn.Conv3d):
        base, dx = Base.KEPT, _through_shortcut(part, call, kept, dz, q_slopes, d, needs_x=needs_x)
    call("expand_backward", x.shape[:4].numel(), x.shape[4], real_inner, du, kept.u, u_slopes, x, part.a.weight, dz,
         kept.z, int(base), dx, d[part.a.weight])
    return clips_of(dx) if dx is not None else None, None, *[None if w is None else d[w] for w in weights]


def _through_shortcut(part: ResBlock, call: Pass, kept: _Kept, dz: Tensor, q_slopes: Tensor | None,
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
