# mypy: disable-error-code="assignment, misc"
# (the tuples of Triton's language grow while a kernel is compiled)
"""The device code of `triton_depthwise`: depthwise 3-D convolution over channels-last memory, B x T x H x W x C.

The number of reads bounds such a kernel: 27 taps make 27 reads of every value. Here a program goes along time with a
tile of positions and channels and keeps one sum for each output frame that the present input frame reaches, so that a
value is read 9 times, by neighbouring threads of the same program. Frames before the first and after the last
one are never read. Sums are float32 whatever the tensors' type, and always added up in the same order: nothing here is
atomic, so that the same inputs give the same bits. Importing this needs Triton.
"""

import triton
import triton.language as tl

SIZES = ("clips", "frames", "height", "width", "out_height", "out_width", "stride", "chunk", "flip")
"""Arguments whose values get no builds of their own: a search meets many, and a build takes a second."""


@triton.jit
def _kernel_taps(weight, c, in_c, flip, WHOLE_KT: tl.constexpr, KT: tl.constexpr, K: tl.constexpr):
    """Return the middle `KT` of the kernel's `WHOLE_KT` planes, a 1 x channels tile a tap, in the order of the weight
    or, to `flip`, backwards."""
    TAPS: tl.constexpr = KT * K * K
    FIRST: tl.constexpr = (WHOLE_KT // 2 - KT // 2) * K * K
    taps = ()
    for tap in tl.static_range(TAPS):
        place = FIRST + tap + flip * (TAPS - 1 - 2 * tap)
        taps = taps + (tl.load(weight + c * (WHOLE_KT * K * K) + place, mask=in_c, other=0).to(tl.float32),)
    return taps


@triton.jit
def _share(positions, frames, chunk, CHANNELS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Return this program's positions, first frame, clip and channels, and a mask of the existing channels."""
    tiles, chunks = tl.cdiv(positions, BP), tl.cdiv(frames, chunk)
    program = tl.program_id(0)
    at = ((program % tiles) * BP + tl.arange(0, BP))[:, None]
    first = (program // tiles % chunks) * chunk
    clip = (program // tiles // chunks).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)[None, :]
    return at, first, clip, c, c < CHANNELS


@triton.jit(do_not_specialize=SIZES)
def gather(x, weight, y, frames, height, width, out_height, out_width, stride, chunk, flip, CHANNELS: tl.constexpr,
           WHOLE_KT: tl.constexpr, KT: tl.constexpr, K: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Compute y = x convolved with `weight` (C x WHOLE_KT x K x K); with `flip` and no stride, the input gradient.

    Program axis 0: tiles of BP positions x chunks of `chunk` frames x clips; axis 1: tiles of BC channels.
    """
    at, first, clip, c, in_c = _share(out_height * out_width, frames, chunk, CHANNELS, BP, BC)
    x += clip * frames * height * width * CHANNELS
    y += clip * frames * out_height * out_width * CHANNELS
    top, left = at // out_width * stride - K // 2, at % out_width * stride - K // 2
    is_given = (at < out_height * out_width) & in_c
    taps = _kernel_taps(weight, c, in_c, flip, WHOLE_KT, KT, K)
    sums = ()
    for _ in tl.static_range(KT):
        sums = sums + (tl.zeros((BP, BC), tl.float32),)
    for frame in range(first - KT // 2, tl.minimum(first + chunk, frames) + KT // 2):
        is_there = (frame >= 0) & (frame < frames) & in_c
        for i in tl.static_range(K * K):
            h, w = top + i // K, left + i % K
            is_read = is_there & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            value = tl.load(x + ((frame * height + h) * width + w) * CHANNELS + c, mask=is_read, other=0).to(tl.float32)
            added = ()
            for j in tl.static_range(KT):  # sum j is that of the output frame `frame - KT // 2 + j`
                added = added + (sums[j] + value * taps[(KT - 1 - j) * K * K + i],)
            sums = added
        done = frame - KT // 2
        tl.store(y + (done * out_height * out_width + at) * CHANNELS + c, sums[0].to(y.dtype.element_ty),
                 mask=is_given & (done >= first))
        sums = sums[1:] + (tl.zeros((BP, BC), tl.float32),)


@triton.jit
def _corner(grad, frame, is_there, row, column, out_height, out_width, c, CHANNELS: tl.constexpr):
    is_read = is_there & (row < out_height) & (column < out_width)
    offset = ((frame * out_height + row) * out_width + column) * CHANNELS + c
    return tl.load(grad + offset, mask=is_read, other=0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def spread(grad, weight, grad_x, frames, height, width, out_height, out_width, chunk, CHANNELS: tl.constexpr,
           WHOLE_KT: tl.constexpr, KT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Compute the input gradient of a convolution with a WHOLE_KT x 3 x 3 kernel and a spatial stride of 2.

    A program has the axes of `gather`, over the output's positions; each of those stands for 2 x 2 of the input, which
    the output gradients there, to the right, below, and below to the right reach by 1, 2, 2 and 4 taps of a plane.
    """
    at, first, clip, c, in_c = _share(out_height * out_width, frames, chunk, CHANNELS, BP, BC)
    grad += clip * frames * out_height * out_width * CHANNELS
    grad_x += clip * frames * height * width * CHANNELS
    row, column = at // out_width, at % out_width
    w = _kernel_taps(weight, c, in_c, 0, WHOLE_KT, KT, 3)
    sums = ()
    for _ in tl.static_range(4 * KT):
        sums = sums + (tl.zeros((BP, BC), tl.float32),)
    for frame in range(first - KT // 2, tl.minimum(first + chunk, frames) + KT // 2):
        is_there = (frame >= 0) & (frame < frames) & in_c
        here = _corner(grad, frame, is_there, row, column, out_height, out_width, c, CHANNELS)
        right = _corner(grad, frame, is_there, row, column + 1, out_height, out_width, c, CHANNELS)
        below = _corner(grad, frame, is_there, row + 1, column, out_height, out_width, c, CHANNELS)
        both = _corner(grad, frame, is_there, row + 1, column + 1, out_height, out_width, c, CHANNELS)
        added = ()
        for j in tl.static_range(KT):  # sums 4 j to 4 j + 3 are those of the input frame `frame - KT // 2 + j`
            added = added + (sums[4 * j] + here * w[9 * j + 4],
                             sums[4 * j + 1] + here * w[9 * j + 5] + right * w[9 * j + 3],
                             sums[4 * j + 2] + here * w[9 * j + 7] + below * w[9 * j + 1],
                             sums[4 * j + 3] + here * w[9 * j + 8] + right * w[9 * j + 6] + below * w[9 * j + 2]
                             + both * w[9 * j])
        done = frame - KT // 2
        for q in tl.static_range(4):
            h, v = 2 * row + q // 2, 2 * column + q % 2
            is_given = in_c & (done >= first) & (row < out_height) & (h < height) & (v < width)
            tl.store(grad_x + ((done * height + h) * width + v) * CHANNELS + c, added[q].to(grad_x.dtype.element_ty),
                     mask=is_given)
        sums = added[4:]
        for _ in tl.static_range(4):
            sums = sums + (tl.zeros((BP, BC), tl.float32),)


@triton.jit
def _output_frame(grad, frame, frames, at, is_given, positions, c, CHANNELS: tl.constexpr):
    is_read = is_given & (frame >= 0) & (frame < frames)
    return tl.load(grad + (frame * positions + at) * CHANNELS + c, mask=is_read, other=0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def collect(x, grad, parts, clips, frames, height, width, out_height, out_width, stride, CHANNELS: tl.constexpr,
            KT: tl.constexpr, K: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Compute parts of the weight gradient: `parts` (programs of axis 0 x C x KT x K x K, float32) is to be summed over
    its first axis. A program of axis 0 takes every n-th tile of BP positions of a clip; axis 1: tiles of BC
    channels."""
    split, positions = tl.program_id(0), out_height * out_width
    c = tl.program_id(1) * BC + tl.arange(0, BC)[None, :]
    in_c = c < CHANNELS
    tiles = tl.cdiv(positions, BP)
    sums = ()
    for _ in tl.static_range(KT * K * K):
        sums = sums + (tl.zeros((BP, BC), tl.float32),)
    for work in range(split, clips * tiles, tl.num_programs(0)):
        clip = (work // tiles).to(tl.int64)
        at = ((work % tiles) * BP + tl.arange(0, BP))[:, None]
        is_given = (at < positions) & in_c
        top, left = at // out_width * stride - K // 2, at % out_width * stride - K // 2
        x_clip = x + clip * frames * height * width * CHANNELS
        grad_clip = grad + clip * frames * positions * CHANNELS
        window = ()  # the output gradients of the KT frames around the present one
        for j in tl.static_range(KT):
            window = window + (_output_frame(grad_clip, j - KT // 2 - 1, frames, at, is_given, positions, c,
                                             CHANNELS),)
        for frame in range(frames):
            window = window[1:] + (_output_frame(grad_clip, frame + KT // 2, frames, at, is_given, positions, c,
                                                 CHANNELS),)
            added = ()
            for i in tl.static_range(K * K):
                h, w = top + i // K, left + i % K
                is_read = is_given & (h >= 0) & (h < height) & (w >= 0) & (w < width)
                value = tl.load(x_clip + ((frame * height + h) * width + w) * CHANNELS + c, mask=is_read,
                                other=0).to(tl.float32)
                for j in tl.static_range(KT):
                    added = added + (sums[i * KT + j] + value * window[j],)
            sums = added
    parts += split.to(tl.int64) * CHANNELS * KT * K * K
    for n in tl.static_range(KT * K * K):
        tap = (KT - 1 - n % KT) * K * K + n // KT
        tl.store(parts + c * (KT * K * K) + tap, tl.sum(sums[n], 0, keep_dims=True), mask=in_c)
