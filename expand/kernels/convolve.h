// Rows of a depthwise 3x3x3 convolution, forward and backward: every position is loaded once, and what is summed stays in
// the registers.
#pragma once

#include "vec.h"

namespace [[gnu::visibility("hidden")]] x3d {

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

}  // namespace x3d
