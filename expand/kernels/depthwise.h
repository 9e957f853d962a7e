// The depthwise 3x3x3 convolution of a block between its norms: a spatial stride of 1 or 2, none in time, padding 1.
// Rows of a frame are brought through the norm into buffers with zeros around them as they are needed, so that the
// activations between norm and convolution never go to memory.
#pragma once

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

// The lines of numbers that a result's row is made of: up to 9, with the index of the tap (kt, kh) of each.
template <typename S>
struct Lines {
    int count = 0;
    const S* data[9];
    int tap[9];
    void add(const S* line, int of_tap) {
        data[count] = line;
        tap[count++] = of_tap;
    }
};

// out[x] = sum over lines and kw of line[STRIDE * x + kw] * weight[tap][kw], for X positions from x. Every position of
// a line is loaded once.
template <typename S, int X, int STRIDE>
void convolve_block(const Lines<S>& lines, const S* weight, int64_t channels, int64_t x, S* out) {
    for (int64_t c = 0; c < channels; c += LANES) {
        Vec<S> sum[X] = {};
        for (int i = 0; i < lines.count; ++i) {
            const S* at = lines.data[i] + x * STRIDE * channels + c;
            const S* w = weight + lines.tap[i] * 3 * channels + c;
            const Vec<S> weights[3] = {load(w), load(w + channels), load(w + 2 * channels)};
#pragma GCC unroll 24
            for (int p = 0; p < (X - 1) * STRIDE + 3; ++p, at += channels) {
                const Vec<S> here = load(at);
#pragma GCC unroll 3
                for (int kw = 2; kw >= 0; --kw)
                    if (p >= kw && (p - kw) % STRIDE == 0 && (p - kw) / STRIDE < X)
                        sum[(p - kw) / STRIDE] += here * weights[kw];
            }
        }
#pragma GCC unroll 10
        for (int j = 0; j < X; ++j) store(out + (x + j) * channels + c, sum[j]);
    }
}

// A row in blocks of at most 10 positions, which fill the registers, and of about the same size.
template <typename S, int STRIDE>
void convolve_row(const Lines<S>& lines, const S* weight, int64_t channels, int64_t width, S* out) {
    const int64_t blocks = (width + 9) / 10;
    for (int64_t block = 0; block < blocks; ++block) {
        const Range mine = share(block, blocks, width);
        const int64_t x = mine.begin;
        switch (mine.end - x) {
            case 10: convolve_block<S, 10, STRIDE>(lines, weight, channels, x, out); break;
            case 9: convolve_block<S, 9, STRIDE>(lines, weight, channels, x, out); break;
            case 8: convolve_block<S, 8, STRIDE>(lines, weight, channels, x, out); break;
            case 7: convolve_block<S, 7, STRIDE>(lines, weight, channels, x, out); break;
            case 6: convolve_block<S, 6, STRIDE>(lines, weight, channels, x, out); break;
            case 5: convolve_block<S, 5, STRIDE>(lines, weight, channels, x, out); break;
            case 4: convolve_block<S, 4, STRIDE>(lines, weight, channels, x, out); break;
            case 3: convolve_block<S, 3, STRIDE>(lines, weight, channels, x, out); break;
            case 2: convolve_block<S, 2, STRIDE>(lines, weight, channels, x, out); break;
            case 1: convolve_block<S, 1, STRIDE>(lines, weight, channels, x, out); break;
        }
    }
}

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

// out[2x], out[2x + 1] for X positions of a gradient with stride 2: even ones meet the middle tap, odd ones the others.
template <typename S, int X>
void spread_block(const Lines<S>& lines, const S* weight, int64_t channels, int64_t x, S* out, bool is_whole) {
    for (int64_t c = 0; c < channels; c += LANES) {
        Vec<S> even[X] = {}, odd[X] = {};
        for (int i = 0; i < lines.count; ++i) {
            const S* at = lines.data[i] + (x + 1) * channels + c;
            const S* w = weight + lines.tap[i] * 3 * channels + c;
            const Vec<S> w0 = load(w), w1 = load(w + channels), w2 = load(w + 2 * channels);
            Vec<S> here = load(at);
#pragma GCC unroll 5
            for (int j = 0; j < X; ++j) {
                even[j] += here * w1;
                odd[j] += here * w2;
                at += channels;
                here = load(at);
                odd[j] += here * w0;
            }
        }
        S* to = out + 2 * x * channels + c;
#pragma GCC unroll 5
        for (int j = 0; j < X; ++j, to += 2 * channels) {
            store(to, even[j]);
            if (is_whole || j + 1 < X) store(to + channels, odd[j]);
        }
    }
}

template <typename S>
void spread_row(const Lines<S>& lines, const S* weight, int64_t channels, int64_t width, S* out) {
    const int64_t pairs = (width + 1) / 2, blocks = (pairs + 4) / 5;
    for (int64_t block = 0; block < blocks; ++block) {
        const Range mine = share(block, blocks, pairs);
        const int64_t x = mine.begin;
        const bool is_whole = 2 * mine.end <= width;
        switch (mine.end - x) {
            case 5: spread_block<S, 5>(lines, weight, channels, x, out, is_whole); break;
            case 4: spread_block<S, 4>(lines, weight, channels, x, out, is_whole); break;
            case 3: spread_block<S, 3>(lines, weight, channels, x, out, is_whole); break;
            case 2: spread_block<S, 2>(lines, weight, channels, x, out, is_whole); break;
            case 1: spread_block<S, 1>(lines, weight, channels, x, out, is_whole); break;
        }
    }
}

// What rows n of the input add to the weight gradient of TAPS taps kh in a frame, with stride 1: sums[i][kw] += sum
// over rows and x of n[x] * line[x + 2 - kw]. `line` belongs to the first row and tap; the next tap's is the line
// before.
template <typename S, int TAPS>
void correlate_rows(const S* n, const S* line, int64_t rows, int64_t channels, int64_t width, S* sums) {
    const int64_t step = (width + 2) * channels;
    for (int64_t c = 0; c < channels; c += LANES) {
        Vec<S> sum[TAPS][3] = {};
        const S* from_n = n + c;
        for (int64_t r = 0; r < rows; ++r) {
            const S* from = line + r * step + c;
            for (int64_t x = 0; x < width; ++x, from += channels, from_n += channels) {
                const Vec<S> here = load(from_n);
#pragma GCC unroll 3
                for (int i = 0; i < TAPS; ++i) {
                    sum[i][2] += here * load(from - i * step);
                    sum[i][1] += here * load(from - i * step + channels);
                    sum[i][0] += here * load(from - i * step + 2 * channels);
                }
            }
        }
#pragma GCC unroll 3
        for (int i = 0; i < TAPS; ++i)
#pragma GCC unroll 3
            for (int kw = 0; kw < 3; ++kw) {
                S* to = sums + (i * 3 + kw) * channels + c;
                store(to, load(to) + sum[i][kw]);
            }
    }
}

// The same for the rows from `begin` to `end` of a frame of `height`, all taps of a kt; `line` is that of row `begin`.
template <typename S>
void correlate_band(const S* n, const S* line, int64_t begin, int64_t end, int64_t height, int64_t channels,
                    int64_t width, S* sums) {
    const int64_t step = (width + 2) * channels, row = width * channels;
    const int64_t many = 48 / width + 1;  // rows whose lines stay in the first cache
    for (int64_t y = begin; y < end;) {  // above the first row and below the last there is none
        const int64_t left = (end < height - 1 ? end : height - 1) - y;
        const int64_t rows = y == 0 || left < 1 ? 1 : left < many ? left : many;
        const S *from = n + (y - begin) * row, *at = line + (y - begin) * step;
        if (height == 1) correlate_rows<S, 1>(from, at, rows, channels, width, sums + 3 * channels);
        else if (y == 0) correlate_rows<S, 2>(from, at + step, rows, channels, width, sums);
        else if (y == height - 1) correlate_rows<S, 2>(from, at, rows, channels, width, sums + 3 * channels);
        else correlate_rows<S, 3>(from, at + step, rows, channels, width, sums);
        y += rows;
    }
}

// With stride 2, for a row n and TAPS of its lines: position 2x meets kw = 1 of output x; 2x + 1 meets kw = 2 of x and
// kw = 0 of x + 1.
template <typename S, int TAPS>
void correlate_spread(const S* n, const Lines<S>& lines, int first, int64_t channels, int64_t width, S* sums) {
    for (int64_t c = 0; c < channels; c += LANES) {
        Vec<S> sum[TAPS][3] = {};
        for (int64_t x = 0; 2 * x < width; ++x) {
            const S* at = n + 2 * x * channels + c;
            const Vec<S> even = load(at), odd = 2 * x + 1 < width ? load(at + channels) : Vec<S>{};
#pragma GCC unroll 3
            for (int i = 0; i < TAPS; ++i) {
                const S* from = lines.data[first + i] + (x + 1) * channels + c;
                const Vec<S> here = load(from);
                sum[i][1] += even * here;
                sum[i][2] += odd * here;
                sum[i][0] += odd * load(from + channels);
            }
        }
#pragma GCC unroll 3
        for (int i = 0; i < TAPS; ++i)
#pragma GCC unroll 3
            for (int kw = 0; kw < 3; ++kw) {
                S* to = sums + (lines.tap[first + i] * 3 + kw) * channels + c;
                store(to, load(to) + sum[i][kw]);
            }
    }
}

template <typename S>
void correlate_row(const S* n, const Lines<S>& lines, int64_t channels, int64_t width, S* sums) {
    int i = 0;
    for (; i + 3 <= lines.count; i += 3) correlate_spread<S, 3>(n, lines, i, channels, width, sums);
    if (lines.count - i == 2) correlate_spread<S, 2>(n, lines, i, channels, width, sums);
    else if (lines.count - i == 1) correlate_spread<S, 1>(n, lines, i, channels, width, sums);
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
