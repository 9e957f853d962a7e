// The 1x1x1 convolutions of a block, each with the norms and activations around it. Tensors are rows of channels: one
// row a position, B T H W of them. Inner widths are padded to a multiple of 8; the padding holds zeros.
#pragma once

#include "gemm.h"
#include "norm.h"

namespace [[gnu::visibility("hidden")]] x3d {

// Work in shares (see `shares`) of chunks of rows: work(share, first row, rows).
class Rows {
public:
    Rows(int threads, int64_t rows, int64_t width)
        : count(0), threads_(threads), rows_(rows), chunks_(threads, rows, width) {
        count = shares(threads, chunks_.count);
    }
    int64_t count;
    // the first row of a share, and the one after its last
    Range of(int64_t index) const {
        const Range mine = share(index, count, chunks_.count);
        const int64_t end = mine.end * chunks_.rows;
        return {mine.begin * chunks_.rows, end < rows_ ? end : rows_};
    }
    template <typename Work>
    void each(const Work& work) const {
        parallel(threads_, count, [&](int64_t index) {
            const Range mine = of(index);
            for (int64_t first = mine.begin; first < mine.end; first += chunks_.rows)
                work(index, first, first + chunks_.rows < mine.end ? chunks_.rows : mine.end - first);
        });
    }

private:
    int threads_;
    int64_t rows_;
    Chunks chunks_;
};

// u = x W', and the norm of u. x: rows x depth; weight: state.width x depth; u: rows x width.
template <typename S>
void expand_forward(int threads, int64_t rows, int64_t depth, const S* x, const S* weight, S* u, NormState<S> state,
                    S* norm) {
    const int64_t width = padded(state.width);
    const Packed<S> right(threads, weight, depth, depth, 1, state.width, depth);
    const Rows work(threads, rows, width + depth);
    std::vector<Moments<S>> moments(work.count);
    for (auto& part : moments) part.reset(width);
    work.each([&](int64_t index, int64_t first, int64_t n) {
        multiply<S>(n, depth, width, x + first * depth, depth, 1, right.right(), u + first * width, width, false);
        if (norm) moments[index].add(u + first * width, n);
    });
    if (norm) finish<S>(moments, state, norm, width);
}

// How a gradient of x begins: `NOTHING`, what dx holds, or the gradient through the shortcut that is the identity.
enum Base : int64_t { NOTHING, KEPT, SHORTCUT };

// Back through x -> u -> norm: dx = du W (+ base), dW = du' x, with du = slope * g + along * u + offset; without
// `slope`, du = g. g, u: rows x width (padded `real_width`); dz, z: rows x depth.
template <typename S>
void expand_backward(int threads, int64_t rows, int64_t depth, int64_t real_width, const S* g, const S* u,
                     const S* slopes, const S* x, const S* weight, const S* dz, const S* z, int64_t base, S* dx,
                     S* dweight) {
    const int64_t width = padded(real_width);
    const Packed<S> right(threads, weight, width, real_width, depth, depth, 1);
    const Slope<const S> slope(slopes, width);
    const Rows work(threads, rows, width + depth);
    Partial<S> dweights(work.count, real_width, depth);
    work.each([&](int64_t index, int64_t first, int64_t n) {
        const S* du = g + first * width;
        if (slopes) {
            S* made = scratch<S>(0, n * width);
            through_norm<S>(n, width, du, u + first * width, slope.slope, slope.along, slope.offset, made);
            du = made;
        }
        multiply<S>(real_width, n, depth, du, 1, width, {x + first * depth, depth}, dweights.of(index), depth, true);
        if (!dx) return;
        S* to = dx + first * depth;
        if (base == SHORTCUT)
            for (int64_t i = 0; i < n * depth; i += LANES)
                store(to + i, where_positive<S>(load(z + first * depth + i), load(dz + first * depth + i)));
        multiply<S>(n, width, depth, du, width, 1, right.right(), to, depth, base != NOTHING);
    });
    dweights.sum(threads, dweight, depth, depth, 1);
}

// Each clip's factors before the swish: gate * gamma and gate * beta of the norm, or the norm's alone.
template <typename S>
inline void swish_factors(const Norm<const S>& norm, const S* gate, int64_t width, S* scale, S* shift) {
    for (int64_t c = 0; c < width; c += LANES) {
        const Vec<S> g = gate ? load(gate + c) : all(S(1));
        store(scale + c, g * load(norm.scale + c));
        store(shift + c, g * load(norm.shift + c));
    }
}

// w = swish(scale * v + shift), rows of one width. (What such loops read is given by value: were it behind a reference,
// as in a lambda, the compiler would have to read it again after every number written.)
template <typename S>
void swish_rows(int64_t rows, int64_t width, const S* v, const S* scale, const S* shift, S* w) {
    for (int64_t r = 0; r < rows; ++r, v += width, w += width)
        for (int64_t c = 0; c < width; c += LANES) {
            const Vec<S> x = load(scale + c) * load(v + c) + load(shift + c);
            store(w + c, x * sigmoid<S>(x));
        }
}

// Back through it: g = dw * swish'(x), and w again. `sums` gets g's sums, and after them those of g * normalised v.
template <typename S>
void swish_rows_backward(int64_t rows, int64_t width, const S* v, const S* scale, const S* shift, Norm<const S> norm,
                         const S* dw, S* w, S* g, double* sums) {
    constexpr int64_t BLOCK = 16;  // rows that stay in the first cache while a column's sums stay in registers
    for (int64_t first = 0; first < rows; first += BLOCK) {
        const int64_t end = first + BLOCK < rows ? first + BLOCK : rows;
        for (int64_t c = 0; c < width; c += LANES) {
            const Vec<S> a = load(scale + c), b = load(shift + c);
            const Vec<S> mean = load(norm.mean + c), inverse = load(norm.inverse + c);
            Vec<S> plain = {}, normal = {};
            for (int64_t at = first * width + c; at < end * width; at += width) {
                const Vec<S> raw = load(v + at), x = a * raw + b, s = sigmoid<S>(x), y = x * s;
                const Vec<S> passed = load(dw + at) * (s + y * (S(1) - s));
                store(w + at, y);
                store(g + at, passed);
                plain += passed;
                normal += passed * ((raw - mean) * inverse);
            }
            add_to<S>(sums + c, plain);
            add_to<S>(sums + width + c, normal);
        }
    }
}

// f(first, rows, clip) for the stretches of a chunk that belong to one clip of `per_clip` rows.
template <typename F>
inline void for_clips(int64_t first, int64_t rows, int64_t per_clip, const F& f) {
    for (int64_t end = first + rows; first < end;) {
        const int64_t clip = first / per_clip, next = (clip + 1) * per_clip;
        const int64_t n = (next < end ? next : end) - first;
        f(first, n, clip);
        first += n;
    }
}

// y = swish(gate * norm(v)) W', and the norm of y. v: rows x padded(depth); weight: state.width x depth; gate: clips x
// padded(depth) or null.
template <typename S>
void project_forward(int threads, int64_t clips, int64_t per_clip, int64_t real_depth, const S* v, const S* v_norm,
                     const S* gate, const S* weight, S* y, NormState<S> state, S* norm) {
    const int64_t rows = clips * per_clip, depth = padded(real_depth), width = state.width;
    const Norm<const S> before(v_norm, depth);
    const Packed<S> right(threads, weight, depth, real_depth, 1, width, real_depth);
    const Rows work(threads, rows, width + depth);
    std::vector<Moments<S>> moments(work.count);
    for (auto& part : moments) part.reset(width);
    work.each([&](int64_t index, int64_t first, int64_t n) {
        S *w = scratch<S>(0, n * depth), *scale = scratch<S>(1, 2 * depth), *shift = scale + depth;
        for_clips(first, n, per_clip, [&](int64_t from, int64_t m, int64_t clip) {
            swish_factors(before, gate ? gate + clip * depth : nullptr, depth, scale, shift);
            swish_rows<S>(m, depth, v + from * depth, scale, shift, w + (from - first) * depth);
        });
        multiply<S>(n, depth, width, w, depth, 1, right.right(), y + first * width, width, false);
        if (norm) moments[index].add(y + first * width, n);
    });
    if (norm) finish<S>(moments, state, norm, width);
}

// Back through v -> swish -> y -> norm -> relu. dv receives the gradient before the swish (of gate * norm(v)); `sums` a
// clip's sums of it, and of it times the normalised v: clips x 2 x padded(real_depth).
template <typename S>
void project_backward(int threads, int64_t clips, int64_t per_clip, int64_t real_depth, int64_t width, const S* dz,
                      const S* z, const S* y, const S* y_slopes, const S* v, const S* v_norm, const S* gate,
                      const S* weight, S* dv, S* dweight, double* sums) {
    const int64_t rows = clips * per_clip, depth = padded(real_depth);
    const Norm<const S> before(v_norm, depth);
    const Slope<const S> slope(y_slopes, width);
    const Packed<S> right(threads, weight, width, width, real_depth, real_depth, 1);
    const Rows work(threads, rows, width + depth);
    Partial<S> dweights(work.count, width, depth);
    // a share's first and last clip may be another's too, so every share has sums of its own for the clips it sees
    std::vector<std::vector<double>> parts(work.count);
    std::vector<int64_t> first_clips(work.count);
    for (int64_t i = 0; i < work.count; ++i) {
        const Range mine = work.of(i);
        first_clips[i] = mine.begin / per_clip;
        parts[i].assign(((mine.end - 1) / per_clip - first_clips[i] + 1) * 2 * depth, 0.0);
    }
    work.each([&](int64_t index, int64_t first, int64_t n) {
        S *dy = scratch<S>(0, n * width), *dw = scratch<S>(1, n * depth), *w = scratch<S>(2, n * depth);
        S *scale = scratch<S>(3, 2 * depth), *shift = scale + depth;
        through_relu_and_norm<S>(n, width, dz + first * width, z + first * width, y + first * width, slope, dy);
        multiply<S>(n, width, depth, dy, width, 1, right.right(), dw, depth, false);
        for_clips(first, n, per_clip, [&](int64_t from, int64_t m, int64_t clip) {
            swish_factors(before, gate ? gate + clip * depth : nullptr, depth, scale, shift);
            double* sum = parts[index].data() + (clip - first_clips[index]) * 2 * depth;
            const int64_t at = (from - first) * depth;
            swish_rows_backward<S>(m, depth, v + from * depth, scale, shift, before, dw + at, w + at,
                                   dv + from * depth, sum);
        });
        multiply<S>(width, n, depth, dy, 1, width, {w, depth}, dweights.of(index), depth, true);
    });
    dweights.sum(threads, dweight, real_depth, real_depth, 1);
    std::memset(sums, 0, clips * 2 * depth * sizeof(double));
    for (int64_t i = 0; i < work.count; ++i)
        for (size_t j = 0; j < parts[i].size(); ++j) sums[first_clips[i] * 2 * depth + j] += parts[i][j];
}

// z = relu(norm(y) + shortcut): nothing, x, or the norm of the convolved x (without `q_norm`, that itself).
template <typename S>
void add_forward(int threads, int64_t rows, int64_t width, const S* y, const S* y_norm, const S* q, const S* q_norm,
                 S* z) {
    const Norm<const S> norm(y_norm, width), other(q_norm, width);
    const Rows work(threads, rows, width);
    work.each([&](int64_t, int64_t first, int64_t n) {
        for (int64_t c = 0; c < width; c += LANES) {
            const Vec<S> scale = load(norm.scale + c), shift = load(norm.shift + c);
            const Vec<S> q_scale = q_norm ? load(other.scale + c) : all(S(1));
            const Vec<S> q_shift = q_norm ? load(other.shift + c) : Vec<S>{};
            for (int64_t at = first * width + c; at < (first + n) * width; at += width) {
                Vec<S> sum = scale * load(y + at) + shift;
                if (q) sum += q_scale * load(q + at) + q_shift;
                store(z + at, relu<S>(sum));
            }
        }
    });
}

// Back through relu and the norms of y and, with `q_norm`, q: their slopes, and the gradients of gamma and beta.
template <typename S>
void add_backward(int threads, int64_t rows, int64_t width, const S* dz, const S* z, const S* y, const S* y_norm,
                  S* y_slopes, S* dgamma, S* dbeta, const S* q, const S* q_norm, S* q_slopes, S* q_dgamma,
                  S* q_dbeta) {
    const Norm<const S> norm(y_norm, width), other(q_norm, width);
    const Rows work(threads, rows, width);
    std::vector<GradientSums> sums(work.count, GradientSums(width)), q_sums(q_norm ? sums.size() : 0, sums[0]);
    work.each([&](int64_t index, int64_t first, int64_t n) {
        for (int64_t c = 0; c < width; c += LANES) {
            const Vec<S> mean = load(norm.mean + c), inverse = load(norm.inverse + c);
            const Vec<S> q_mean = q_norm ? load(other.mean + c) : Vec<S>{};
            const Vec<S> q_inverse = q_norm ? load(other.inverse + c) : Vec<S>{};
            Vec<S> plain = {}, normal = {}, q_normal = {};
            for (int64_t at = first * width + c; at < (first + n) * width; at += width) {
                const Vec<S> g = where_positive<S>(load(z + at), load(dz + at));
                plain += g;
                normal += g * ((load(y + at) - mean) * inverse);
                if (q_norm) q_normal += g * ((load(q + at) - q_mean) * q_inverse);
            }
            sums[index].add<S>(c, plain, normal);
            if (q_norm) q_sums[index].add<S>(c, plain, q_normal);
        }
    });
    finish<S>(sums, norm, width, width, double(rows), Slope<S>(y_slopes, width), dgamma, dbeta);
    if (q_norm) finish<S>(q_sums, other, width, width, double(rows), Slope<S>(q_slopes, width), q_dgamma, q_dbeta);
}

// The gradient of a shortcut's convolved x: that through its norm, or without `slopes` that through relu alone.
template <typename S>
void shortcut_backward(int threads, int64_t rows, int64_t width, const S* dz, const S* z, const S* q, const S* slopes,
                       S* dq) {
    const Slope<const S> slope(slopes, width);
    const Rows work(threads, rows, width);
    work.each([&](int64_t, int64_t first, int64_t n) {
        for (int64_t r = first; r < first + n; ++r)
            for (int64_t c = 0; c < width; c += LANES) {
                const int64_t at = r * width + c;
                Vec<S> g = where_positive<S>(load(z + at), load(dz + at));
                if (slopes)
                    g = load(slope.slope + c) * g + load(slope.along + c) * load(q + at) + load(slope.offset + c);
                store(dq + at, g);
            }
    });
}

// The head's average: each clip's mean of relu(norm(u)), clips x width.
template <typename S>
void pool_forward(int threads, int64_t clips, int64_t per_clip, int64_t width, const S* u, const S* u_norm, S* pooled) {
    const Norm<const S> norm(u_norm, width);
    parallel(threads, clips, [&](int64_t clip) {
        for (int64_t c = 0; c < width; c += LANES) {
            const Vec<S> scale = load(norm.scale + c), shift = load(norm.shift + c);
            Vec<S> sum = {};
            for (int64_t r = clip * per_clip; r < (clip + 1) * per_clip; ++r)
                sum += relu<S>(scale * load(u + r * width + c) + shift);
            store(pooled + clip * width + c, sum / S(per_clip));
        }
    });
}

// Back through it: du receives the gradient of the norm's output; slopes and gradients as of any norm.
template <typename S>
void pool_backward(int threads, int64_t clips, int64_t per_clip, int64_t real_width, const S* dpooled, const S* u,
                   const S* u_norm, S* du, S* slopes, S* dgamma, S* dbeta) {
    const int64_t width = padded(real_width);
    const Norm<const S> norm(u_norm, width);
    std::vector<GradientSums> sums(clips, GradientSums(width));
    parallel(threads, clips, [&](int64_t clip) {
        for (int64_t c = 0; c < width; c += LANES) {
            const Vec<S> scale = load(norm.scale + c), shift = load(norm.shift + c);
            const Vec<S> mean = load(norm.mean + c), inverse = load(norm.inverse + c);
            const Vec<S> each = load(dpooled + clip * width + c) / S(per_clip);
            Vec<S> plain = {}, normal = {};
            for (int64_t r = clip * per_clip; r < (clip + 1) * per_clip; ++r) {
                const Vec<S> x = load(u + r * width + c), g = where_positive<S>(scale * x + shift, each);
                store(du + r * width + c, g);
                plain += g;
                normal += g * ((x - mean) * inverse);
            }
            sums[clip].add<S>(c, plain, normal);
        }
    });
    finish<S>(sums, norm, real_width, width, double(clips * per_clip), Slope<S>(slopes, width), dgamma, dbeta);
}

}  // namespace x3d
