// The stem: a 1x3x3 convolution of 3 channels with stride 2 in space, a depthwise 5x1x1 one in time, and the norm of
// that. What lies between the convolutions stays in the cache, and is made again on the way back.
#pragma once

#include "depthwise.h"
#include "gemm.h"

namespace x3d {

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

// The 27 numbers that each position of row `y` of the output sees: out_width x PATCH.
template <typename S>
void gather(const StemShape& shape, const S* x, int64_t clip, int64_t t, int64_t y, S* patches) {
    for (int64_t kh = 0; kh < 3; ++kh) {
        const int64_t at = 2 * y - 1 + kh;
        const S* row = x + ((clip * shape.frames + t) * shape.height + at) * shape.width * 3;
        for (int64_t i = 0; i < shape.out_width(); ++i) {
            S* to = patches + i * PATCH + kh * 9;
            for (int64_t kw = 0; kw < 3; ++kw) {
                const int64_t column = 2 * i - 1 + kw;
                const bool is_inside = at >= 0 && at < shape.height && column >= 0 && column < shape.width;
                for (int64_t colour = 0; colour < 3; ++colour)
                    to[kw * 3 + colour] = is_inside ? row[column * 3 + colour] : S(0);
            }
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

// to = sum over taps of the frame t + sign * (k - REACH) * weight[k].
template <typename S>
void in_time(const Frames<S>& frames, int64_t t, int64_t count, int sign, const S* weight, int64_t channels, S* to) {
    for (int64_t k = 0; k <= 2 * REACH; ++k) {
        const int64_t from = t + sign * (k - REACH);
        if (from < 0 || from >= count) continue;
        const bool is_first = sign > 0 ? k == (t < REACH ? REACH - t : 0)
                                       : k == (t + REACH >= count ? t + REACH + 1 - count : 0);
        const S* frame = frames.of(from);
        for (int64_t i = 0; i < frames.size; i += channels)
            for (int64_t c = 0; c < channels; c += LANES) {
                const Vec<S> term = load(frame + i + c) * load(weight + k * channels + c);
                store(to + i + c, is_first ? term : load(to + i + c) + term);
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

    // rows begin to end of frame t after the convolution in space
    void in_space(int64_t clip, int64_t t, int64_t begin, int64_t end, S* to) const {
        S* patches = scratch<S>(2, shape.out_width() * PATCH);
        for (int64_t y = begin; y < end; ++y, to += shape.out_width() * shape.channels) {
            gather(shape, x, clip, t, y, patches);
            multiply<S>(shape.out_width(), PATCH, shape.channels, patches, PATCH, 1, {spatial.data(), shape.channels},
                        to, shape.channels, false);
        }
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
        moments[task].reset(channels);
        for (int64_t ahead = 0; ahead < shape.frames + REACH; ++ahead) {
            if (ahead < shape.frames) stem.in_space(clip, ahead, begin, end, frames.of(ahead));
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
        for (int64_t ahead = 0; ahead < shape.frames + REACH; ++ahead) {
            if (ahead < shape.frames) {
                const int64_t at = shape.out_row(clip, ahead, begin);
                S* to = dq.of(ahead);
                for (int64_t i = 0; i < size; i += channels)
                    for (int64_t c = 0; c < channels; c += LANES)
                        store(to + i + c,
                              load(slope.slope + c) * where_positive<S>(load(z + at + i + c), load(dz + at + i + c)) +
                                  load(slope.along + c) * load(q + at + i + c) + load(slope.offset + c));
            }
            const int64_t t = ahead - REACH;
            if (t < 0) continue;
            stem.in_space(clip, t, begin, end, before);
            for (int64_t k = 0; k <= 2 * REACH; ++k) {
                const int64_t from = t + REACH - k;
                if (from < 0 || from >= shape.frames) continue;
                S* to = in_time_.of(index) + k * channels;
                for (int64_t c = 0; c < channels; c += LANES) {
                    Vec<S> sum = {};
                    for (int64_t i = c; i < size; i += channels) sum += load(before + i) * load(dq.of(from) + i);
                    store(to + c, load(to + c) + sum);
                }
            }
            in_time(dq, t, shape.frames, -1, stem.temporal.data(), channels, d_before);
            S* patches = scratch<S>(3, shape.out_width() * PATCH);
            for (int64_t y = begin; y < end; ++y) {
                gather(shape, x, clip, t, y, patches);
                multiply<S>(PATCH, shape.out_width(), channels, patches, 1, PATCH,
                            {d_before + (y - begin) * line, channels}, in_space.of(index), channels, true);
            }
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
