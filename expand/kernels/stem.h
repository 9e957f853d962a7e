// The stem: a 1x3x3 convolution of 3 channels with stride 2 in space, a depthwise 5x1x1 one in time, and the norm of
// that. What lies between the convolutions stays in the cache, and is made again on the way back.
#pragma once

#include "depthwise.h"
#include "gemm.h"

namespace [[gnu::visibility("hidden")]] x3d {

constexpr int64_t PATCH = 27;  // kh, kw, colours of a position
constexpr int64_t REACH = 2;   // of the temporal kernel

// Clips as they come, B T H W x 3.
struct StemShape {
    int64_t clips, frames, height, width, channels;
    int64_t out_height() const { return (height - 1) / 2 + 1; }
    int64_t out_width() const { return (width - 1) / 2 + 1; }
    int64_t out_row(int64_t clip, int64_t t, int64_t y) const {
        return ((clip * frames + t) * out_height() + y) * out_width() * channels;
    }
};

// The 27 numbers that each position of row `y` of the output sees: out_width x PATCH. Those of a kh lie together in x.
template <typename S>
void gather(const StemShape& shape, const S* x, int64_t clip, int64_t t, int64_t y, S* patches) {
    const int64_t positions = shape.out_width();
    for (int64_t kh = 0; kh < 3; ++kh) {
        const int64_t at = 2 * y - 1 + kh;
        S* to = patches + kh * 9;
        if (at < 0 || at >= shape.height) {
            for (int64_t i = 0; i < positions; ++i) std::memset(to + i * PATCH, 0, 9 * sizeof(S));
            continue;
        }
        const S* row = x + ((clip * shape.frames + t) * shape.height + at) * shape.width * 3;
        for (int64_t i = 0; i < positions; ++i, to += PATCH) {
            const int64_t column = 2 * i - 1;
            if (column >= 0 && column + 3 <= shape.width) {
                std::memcpy(to, row + column * 3, 9 * sizeof(S));
                continue;
            }
            const int64_t first = column < 0 ? 0 : column, end = column + 3 < shape.width ? column + 3 : shape.width;
            std::memset(to, 0, 9 * sizeof(S));
            std::memcpy(to + (first - column) * 3, row + first * 3, (end - first) * 3 * sizeof(S));
        }
    }
}

// The spatial weight, channels x 3 x 3 x 3 (colour, kh, kw), as PATCH x channels.
template <typename S>
std::vector<S> patch_lines(const S* weight, int64_t channels) {
    std::vector<S> lines(PATCH * channels);
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t colour = 0; colour < 3; ++colour)
            for (int64_t k = 0; k < 9; ++k) lines[(k * 3 + colour) * channels + c] = weight[(c * 3 + colour) * 9 + k];
    return lines;
}

// A band's rows of the last five frames, frame t at t % 5.
template <typename S>
struct Frames {
    S* data;
    int64_t size;
    S* of(int64_t t) const { return data + t % (2 * REACH + 1) * size; }
};

// The taps of frame `t` of `count`, from `first` to `end`: tap k meets the frame t + sign * (k - REACH).
inline Range taps_of(int64_t t, int64_t count, int sign) {
    const int64_t before = t < REACH ? REACH - t : 0, after = t + REACH >= count ? t + REACH + 1 - count : 0;
    return sign > 0 ? Range{before, 2 * REACH + 1 - after} : Range{after, 2 * REACH + 1 - before};
}

// to = sum over taps of the frames they meet * weight[tap].
template <typename S>
void in_time(const Frames<S>& frames, int64_t t, int64_t count, int sign, const S* weight, int64_t channels, S* to) {
    const Range taps = taps_of(t, count, sign);
    const S* met[2 * REACH + 1];
    for (int64_t k = taps.begin; k < taps.end; ++k) met[k] = frames.of(t + sign * (k - REACH));
    for (int64_t i = 0; i < frames.size; i += channels)
        for (int64_t c = 0; c < channels; c += LANES) {
            Vec<S> sum = {};
            for (int64_t k = taps.begin; k < taps.end; ++k)
                sum += load(met[k] + i + c) * load(weight + k * channels + c);
            store(to + i + c, sum);
        }
}

// sums[k] += sum over positions of before * the frame of dq that tap k brought it to.
template <typename S>
void correlate_in_time(const Frames<S>& dq, int64_t t, int64_t count, const S* before, int64_t channels, S* sums) {
    const Range taps = taps_of(t, count, -1);
    const S* met[2 * REACH + 1];
    for (int64_t k = 0; k <= 2 * REACH; ++k)  // a tap that meets none reads its neighbour's, and is left out
        met[k] = dq.of(t + REACH - (k < taps.begin ? taps.begin : k < taps.end ? k : taps.end - 1));
    for (int64_t c = 0; c < channels; c += LANES) {
        Vec<S> sum[2 * REACH + 1] = {};
        for (int64_t i = c; i < dq.size; i += channels) {
            const Vec<S> here = load(before + i);
#pragma GCC unroll 5
            for (int k = 0; k <= 2 * REACH; ++k) sum[k] += here * load(met[k] + i);
        }
#pragma GCC unroll 5
        for (int k = 0; k <= 2 * REACH; ++k) {
            S* to = sums + k * channels + c;
            if (k >= taps.begin && k < taps.end) store(to, load(to) + sum[k]);
        }
    }
}

template <typename S>
struct Stem {
    StemShape shape;
    const S* x;
    const std::vector<S> spatial, temporal;
    Bands bands;
    Stem(int threads, StemShape shape, const S* x, const S* of_space, const S* of_time)
        : shape(shape), x(x), spatial(patch_lines(of_space, shape.channels)),
          temporal(tap_lines(of_time, shape.channels, 2 * REACH + 1, false)),
          bands(threads, shape.clips, shape.out_height(), 6 * shape.out_width() * shape.channels) {}
    int64_t tasks() const { return shape.clips * bands.each; }

    // rows begin to end of frame t after the convolution in space; `patches`: what it saw, room for all these rows
    void in_space(int64_t clip, int64_t t, int64_t begin, int64_t end, S* patches, S* to) const {
        const int64_t row = shape.out_width(), rows = (end - begin) * row;
        for (int64_t y = begin; y < end; ++y) gather(shape, x, clip, t, y, patches + (y - begin) * row * PATCH);
        multiply<S>(rows, PATCH, shape.channels, patches, PATCH, 1, {spatial.data(), shape.channels}, to,
                    shape.channels, false);
    }
};

// q = the two convolutions of x, and its norm. q: B T H/2 W/2 x channels (a multiple of 8).
template <typename S>
void stem_forward(int threads, StemShape shape, const S* x, const S* of_space, const S* of_time, S* q,
                  NormState<S> state, S* norm) {
    const Stem<S> stem(threads, shape, x, of_space, of_time);
    const int64_t channels = shape.channels, line = shape.out_width() * channels;
    std::vector<Moments<S>> moments(stem.tasks());
    parallel(threads, stem.tasks(), [&](int64_t task) {
        const int64_t clip = task / stem.bands.each, begin = task % stem.bands.each * stem.bands.rows;
        const int64_t end = begin + stem.bands.rows < stem.bands.height ? begin + stem.bands.rows : stem.bands.height;
        const Frames<S> frames{scratch<S>(0, (2 * REACH + 1) * (end - begin) * line), (end - begin) * line};
        S* patches = scratch<S>(2, (end - begin) * shape.out_width() * PATCH);
        moments[task].reset(channels);
        for (int64_t ahead = 0; ahead < shape.frames + REACH; ++ahead) {
            if (ahead < shape.frames) stem.in_space(clip, ahead, begin, end, patches, frames.of(ahead));
            const int64_t t = ahead - REACH;
            if (t < 0) continue;
            S* to = q + shape.out_row(clip, t, begin);
            in_time(frames, t, shape.frames, 1, stem.temporal.data(), channels, to);
            moments[task].add(to, (end - begin) * shape.out_width());
        }
    });
    if (norm) finish<S>(moments, state, norm, channels);
}

// Back from dz through relu and norm (add_backward's slopes) to the gradients of both weights; x needs none.
template <typename S>
void stem_backward(int threads, StemShape shape, const S* x, const S* of_space, const S* of_time, const S* dz,
                   const S* z, const S* q, const S* slopes, S* d_space, S* d_time) {
    const Stem<S> stem(threads, shape, x, of_space, of_time);
    const int64_t channels = shape.channels, line = shape.out_width() * channels;
    const Slope<const S> slope(slopes, channels);
    const int64_t count = shares(threads, stem.tasks());
    Partial<S> in_space(count, PATCH, channels), in_time_(count, 2 * REACH + 1, channels);
    const auto work = [&](int64_t index, int64_t task) {
        const int64_t clip = task / stem.bands.each, begin = task % stem.bands.each * stem.bands.rows;
        const int64_t end = begin + stem.bands.rows < stem.bands.height ? begin + stem.bands.rows : stem.bands.height;
        const int64_t size = (end - begin) * line;
        const Frames<S> dq{scratch<S>(0, (2 * REACH + 1) * size), size};
        S *before = scratch<S>(1, 2 * size), *d_before = before + size;
        const int64_t positions = (end - begin) * shape.out_width();
        S* patches = scratch<S>(2, positions * PATCH);
        for (int64_t ahead = 0; ahead < shape.frames + REACH; ++ahead) {
            if (ahead < shape.frames) {
                const int64_t at = shape.out_row(clip, ahead, begin);
                through_relu_and_norm<S>(size / channels, channels, dz + at, z + at, q + at, slope, dq.of(ahead));
            }
            const int64_t t = ahead - REACH;
            if (t < 0) continue;
            stem.in_space(clip, t, begin, end, patches, before);
            correlate_in_time(dq, t, shape.frames, before, channels, in_time_.of(index));
            in_time(dq, t, shape.frames, -1, stem.temporal.data(), channels, d_before);
            multiply<S>(PATCH, positions, channels, patches, 1, PATCH, {d_before, channels}, in_space.of(index),
                        channels, true);
        }
    };
    parallel(threads, count, [&](int64_t index) {
        const Range mine = share(index, count, stem.tasks());
        for (int64_t task = mine.begin; task < mine.end; ++task) work(index, task);
    });
    std::vector<S> lines(PATCH * channels);
    in_space.sum(threads, lines.data(), channels, channels, 1);
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t colour = 0; colour < 3; ++colour)
            for (int64_t k = 0; k < 9; ++k) d_space[(c * 3 + colour) * 9 + k] = lines[(k * 3 + colour) * channels + c];
    in_time_.sum(threads, d_time, channels, 1, 2 * REACH + 1);
}

}  // namespace x3d
