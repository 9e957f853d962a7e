// The depthwise 3x3x3 convolution of a block between its norms: a spatial stride of 1 or 2, none in time, padding 1.
// Rows of a frame are brought through the norm into buffers with zeros around them as they are needed, so that the
// activations between norm and convolution never go to memory.
#pragma once

#include "convolve.h"
#include "norm.h"

namespace [[gnu::visibility("hidden")]] x3d {

struct Volume {
    int64_t clips, frames, height, width, channels, stride;  // of the input; channels are padded
    int64_t out_height() const { return (height - 1) / stride + 1; }
    int64_t out_width() const { return (width - 1) / stride + 1; }
    int64_t row(int64_t clip, int64_t t, int64_t y) const {
        return ((clip * frames + t) * height + y) * width * channels;
    }
    int64_t out_row(int64_t clip, int64_t t, int64_t y) const {
        return ((clip * frames + t) * out_height() + y) * out_width() * channels;
    }
};

// Bands of `rows` rows of one clip, all frames of it: the tasks of a convolution.
struct Bands {
    int64_t height, rows, each;
    // as many rows as keep `buffered` numbers a row in the second cache, and at least two bands a thread where rows
    // allow
    Bands(int threads, int64_t clips, int64_t height, int64_t buffered) : height(height) {
        rows = 65536 / buffered;
        if (threads > 1 && clips < 2 * threads) {
            const int64_t most = height * clips / (2 * threads);
            if (rows > most) rows = most;
        }
        if (rows < 4) rows = 4;
        if (rows > height) rows = height;
        each = (height + rows - 1) / rows;
        rows = (height + each - 1) / each;  // of about the same size
    }
};

// A depthwise weight, channels x taps, as taps x padded channels; backwards for the input gradient.
template <typename S>
std::vector<S> tap_lines(const S* weight, int64_t channels, int64_t taps, bool backwards) {
    const int64_t line = padded(channels);
    std::vector<S> lines(taps * line, S(0));
    for (int64_t k = 0; k < taps; ++k)
        for (int64_t c = 0; c < channels; ++c) lines[(backwards ? taps - 1 - k : k) * line + c] = weight[c * taps + k];
    return lines;
}

// Up to three frames of lines with a zero position before and after each row; frame t at t % 3.
template <typename S>
class Ring {
public:
    Ring(int slot, int64_t frames, int64_t rows, int64_t width, int64_t channels)
        : frames_(frames < 3 ? frames : 3), rows_(rows), line_((width + 2) * channels), channels_(channels),
          data_(scratch<S>(slot, frames_ * rows * line_)) {
        for (int64_t i = 0; i < frames_ * rows; ++i) {
            std::memset(data_ + i * line_, 0, channels * sizeof(S));
            std::memset(data_ + (i + 1) * line_ - channels, 0, channels * sizeof(S));
        }
    }
    // the line of row `r` of frame `t`, from the zero before its first position
    S* line(int64_t t, int64_t r) const { return data_ + (t % frames_ * rows_ + r) * line_; }
    S* first(int64_t t, int64_t r) const { return line(t, r) + channels_; }

private:
    int64_t frames_, rows_, line_, channels_;
    S* data_;
};

// n = relu(norm(u)), `size` numbers.
template <typename S>
void normalise(int64_t size, int64_t channels, const S* u, Norm<const S> norm, S* n) {
    for (int64_t x = 0; x < size; x += channels)
        for (int64_t c = 0; c < channels; c += LANES)
            store(n + x + c, relu<S>(load(norm.scale + c) * load(u + x + c) + load(norm.shift + c)));
}

// v = conv(relu(norm(u))), the norm of v and each clip's means of it. u: B T H W x padded(state.width); means: clips x
// padded; weight: state.width x 27. Without `norm`, means alone.
template <typename S>
void depthwise_forward(int threads, Volume shape, const S* u, const S* u_norm, const S* weight, S* v,
                       NormState<S> state, S* norm, S* means) {
    const int64_t channels = shape.channels, line = shape.width * channels;
    const int64_t stride = shape.stride, ring_frames = shape.frames < 3 ? shape.frames : 3;
    const Norm<const S> before(u_norm, channels);
    const std::vector<S> taps = tap_lines(weight, state.width, 27, false);
    const Bands bands(threads, shape.clips, shape.out_height(), ring_frames * stride * (line + 2 * channels));
    std::vector<Moments<S>> moments(shape.clips * bands.each);
    parallel(threads, int64_t(moments.size()), [&](int64_t task) {
        const int64_t clip = task / bands.each, begin = task % bands.each * bands.rows;
        const int64_t end = begin + bands.rows < bands.height ? begin + bands.rows : bands.height;
        const int64_t top = stride * begin - 1, rows = stride * (end - begin - 1) + 3;
        moments[task].reset(channels);
        const Ring<S> ring(0, shape.frames, rows, shape.width, channels);
        const auto bring = [&](int64_t t) {
            for (int64_t r = 0; r < rows; ++r) {
                if (top + r < 0 || top + r >= shape.height) continue;
                normalise<S>(line, channels, u + shape.row(clip, t, top + r), before, ring.first(t, r));
            }
        };
        bring(0);
        for (int64_t t = 0; t < shape.frames; ++t) {
            if (t + 1 < shape.frames) bring(t + 1);
            for (int64_t y = begin; y < end; ++y) {
                Lines<S> lines;
                for (int64_t kt = 0; kt < 3; ++kt)
                    for (int64_t kh = 0; kh < 3; ++kh) {
                        const int64_t at = stride * y - 1 + kh;
                        if (t + kt < 1 || t + kt > shape.frames || at < 0 || at >= shape.height) continue;
                        lines.add(ring.line(t + kt - 1, at - top), int(kt * 3 + kh));
                    }
                S* out = v + shape.out_row(clip, t, y);
                if (stride == 1) convolve_row<S, 1>(lines, taps.data(), channels, shape.out_width(), out);
                else convolve_row<S, 2>(lines, taps.data(), channels, shape.out_width(), out);
            }
            moments[task].add(v + shape.out_row(clip, t, begin), (end - begin) * shape.out_width());
        }
    });
    for (int64_t clip = 0; clip < shape.clips; ++clip)
        for (int64_t c = 0; c < channels; ++c) {
            Merged all;
            for (int64_t i = 0; i < bands.each; ++i) all.add(moments[clip * bands.each + i], c);
            means[clip * channels + c] = S(all.mean);
        }
    if (norm) finish<S>(moments, state, norm, channels);
}

// Back through it, in place; `sums` gets the gradient's sums, and after them those of it times the normalised u.
template <typename S>
void normalise_backward(int64_t size, int64_t channels, const S* u, const S* n, Norm<const S> norm, S* du,
                        double* sums) {
    const int64_t block = 16 * channels;  // positions that stay in the first cache
    for (int64_t first = 0; first < size; first += block)
        for (int64_t c = 0; c < channels; c += LANES) {
            const Vec<S> mean = load(norm.mean + c), inverse = load(norm.inverse + c);
            const int64_t end = first + block < size ? first + block : size;
            Vec<S> plain = {}, normal = {};
            for (int64_t at = first + c; at < end; at += channels) {
                const Vec<S> passed = where_positive<S>(load(n + at), load(du + at));
                store(du + at, passed);
                plain += passed;
                normal += passed * ((load(u + at) - mean) * inverse);
            }
            add_to<S>(sums + c, plain);
            add_to<S>(sums + channels + c, normal);
        }
}

// Back from the gradient g that project_backward left: dv = slope * g + along * v + offset (slope and offset a clip's,
// gate_backward), through the convolution and relu. du receives the gradient of the norm of u; its slopes, and the
// gradients of its gamma and beta and of the weight, are returned too.
template <typename S>
void depthwise_backward(int threads, Volume shape, int64_t real_channels, const S* g, const S* v, const S* slope,
                        const S* along, const S* offset, const S* u, const S* u_norm, const S* weight, S* du,
                        S* u_slopes, S* dgamma, S* dbeta, S* dweight) {
    const int64_t channels = shape.channels, width = shape.width, out_width = shape.out_width(), stride = shape.stride;
    const int64_t ring_frames = shape.frames < 3 ? shape.frames : 3, out_line = out_width * channels;
    const Norm<const S> norm(u_norm, channels);
    // with stride 1 the input gradient is a convolution with the kernel turned round; with 2, taps are picked
    const std::vector<S> taps = tap_lines(weight, real_channels, 27, stride == 1);
    const Bands bands(threads, shape.clips, shape.height,
                      ring_frames * (out_line + 2 * channels) / stride + width * channels);
    const int64_t tasks = shape.clips * bands.each, count = shares(threads, tasks);
    Partial<S> dweights(count, 27, channels);
    std::vector<GradientSums> sums(count, GradientSums(channels));
    const auto work = [&](int64_t index, int64_t task) {
        const int64_t clip = task / bands.each, begin = task % bands.each * bands.rows;
        const int64_t end = begin + bands.rows < bands.height ? begin + bands.rows : bands.height;
        // rows of the output that these rows of the input take part in
        const int64_t top = begin == 0 ? 0 : (begin - 1 + stride - 1) / stride;
        const int64_t last = (end - 1 + 1) / stride, bottom = last < shape.out_height() ? last : shape.out_height() - 1;
        const Ring<S> ring(0, shape.frames, bottom - top + 1, out_width, channels);
        const int64_t row = width * channels, size = (end - begin) * row;
        S* n = scratch<S>(1, size);
        const auto bring = [&](int64_t t) {
            for (int64_t y = top; y <= bottom; ++y) {
                const int64_t at = shape.out_row(clip, t, y);
                through_norm<S>(out_width, channels, g + at, v + at, slope + clip * channels, along,
                                offset + clip * channels, ring.first(t, y - top));
            }
        };
        bring(0);
        for (int64_t t = 0; t < shape.frames; ++t) {
            if (t + 1 < shape.frames) bring(t + 1);
            const S* from = u + shape.row(clip, t, begin);
            S* to = du + shape.row(clip, t, begin);
            normalise<S>(size, channels, from, norm, n);
            for (int64_t kt = 0; stride == 1 && kt < 3; ++kt)
                if (const int64_t at = t + 1 - kt; at >= 0 && at < shape.frames)
                    correlate_band(n, ring.line(at, begin - top), begin, end, shape.height, channels, width,
                                   dweights.of(index) + kt * 9 * channels);
            for (int64_t y = begin; y < end; ++y) {
                Lines<S> lines, turned;
                for (int64_t kt = 0; kt < 3; ++kt)
                    for (int64_t kh = 0; kh < 3; ++kh) {
                        const int64_t of = t + 1 - kt, at = y + 1 - kh;  // of the output, the latter times the stride
                        if (of < 0 || of >= shape.frames || at < 0 || at % stride) continue;
                        if (at / stride >= shape.out_height()) continue;
                        const S* line = ring.line(of, at / stride - top);
                        lines.add(line, int(kt * 3 + kh));
                        turned.add(line, int(8 - (kt * 3 + kh)));
                    }
                S* out = to + (y - begin) * row;
                if (stride == 1) convolve_row<S, 1>(turned, taps.data(), channels, width, out);
                else {
                    correlate_row(n + (y - begin) * row, lines, channels, width, dweights.of(index));
                    spread_row(lines, taps.data(), channels, width, out);
                }
            }
            normalise_backward<S>(size, channels, from, n, norm, to, sums[index].data());
        }
    };
    parallel(threads, count, [&](int64_t index) {
        const Range mine = share(index, count, tasks);
        for (int64_t task = mine.begin; task < mine.end; ++task) work(index, task);
    });
    finish<S>(sums, norm, real_channels, channels, double(shape.clips * shape.frames * shape.height * width),
              Slope<S>(u_slopes, channels), dgamma, dbeta);
    dweights.sum(threads, dweight, real_channels, 1, 27);
}

}  // namespace x3d
