// Batch norm: moments of what passes by, and what its backward pass makes of sums.
#pragma once

#include "vec.h"

namespace [[gnu::visibility("hidden")]] x3d {

// The lines of a norm's results, each of the padded width: (x - mean) * inverse, and x * scale + shift = beta + gamma *
// that.
template <typename S>
struct Norm {
    S *mean, *inverse, *scale, *shift;
    Norm(S* lines, int64_t width) : mean(lines), inverse(mean + width), scale(inverse + width), shift(scale + width) {}
};

// Parameters and running statistics of a norm of `width` channels.
template <typename S>
struct NormState {
    int64_t width;
    const S *gamma, *beta;
    S *running_mean, *running_var;
    int64_t* batches;  // how many have been tracked
    double momentum, eps;
};

// Moments of rows of one width. Sums are about the first row, so that a mean far from zero costs no digits; short sums
// are in S, long ones in double.
template <typename S>
class Moments {
public:
    void reset(int64_t width) {
        width_ = width, count_ = 0;
        first_.resize(width);
        sum_.assign(width, 0.0);
        square_.assign(width, 0.0);
    }
    void add(const S* rows, int64_t count) {
        if (count_ == 0) std::memcpy(first_.data(), rows, width_ * sizeof(S));
        count_ += count;
        constexpr int64_t SHORT = 256;
        for (; count > SHORT; count -= SHORT, rows += SHORT * width_) add_short(rows, SHORT);
        add_short(rows, count);
    }
    int64_t count() const { return count_; }
    double mean(int64_t c) const { return first_[c] + sum_[c] / double(count_); }
    double squares(int64_t c) const {  // of the distances from the mean
        const double left = square_[c] - sum_[c] * sum_[c] / double(count_);
        return left < 0 ? 0 : left;  // NaN stays
    }

private:
    void add_short(const S* rows, int64_t count) {
        for (int64_t c = 0; c < width_; c += LANES) {
            const Vec<S> first = load(&first_[c]);
            Vec<S> sum[2] = {}, square[2] = {};
            int64_t r = 0;
            for (; r + 2 <= count; r += 2)
                for (int i = 0; i < 2; ++i) {
                    const Vec<S> x = load(rows + (r + i) * width_ + c) - first;
                    sum[i] += x;
                    square[i] += x * x;
                }
            if (r < count) {
                const Vec<S> x = load(rows + r * width_ + c) - first;
                sum[0] += x;
                square[0] += x * x;
            }
            sum[0] += sum[1];
            square[0] += square[1];
            add_to<S>(&sum_[c], sum[0]);
            add_to<S>(&square_[c], square[0]);
        }
    }

    int64_t width_ = 0, count_ = 0;
    std::vector<S> first_;
    std::vector<double> sum_, square_;
};

// Mean and summed squares of channel `c` over several moments (Chan, Golub, LeVeque 1979).
struct Merged {
    double count = 0, mean = 0, squares = 0;
    template <typename S>
    void add(const Moments<S>& part, int64_t c) {
        if (part.count() == 0) return;
        const double n = double(part.count()), delta = part.mean(c) - mean, total = count + n;
        mean += delta * n / total;
        squares += part.squares(c) + delta * delta * count * n / total;
        count = total;
    }
};

// The norm of the rows that `parts` saw, and its running statistics updated as PyTorch does.
template <typename S>
void finish(const std::vector<Moments<S>>& parts, const NormState<S>& state, S* lines, int64_t width) {
    const Norm<S> norm(lines, width);
    ++*state.batches;
    for (int64_t c = 0; c < width; ++c) {
        if (c >= state.width) {
            norm.mean[c] = norm.inverse[c] = norm.scale[c] = norm.shift[c] = 0;
            continue;
        }
        Merged all;
        for (const auto& part : parts) all.add(part, c);
        const double var = all.squares / all.count, inverse = 1 / std::sqrt(var + state.eps);
        norm.mean[c] = S(all.mean);
        norm.inverse[c] = S(inverse);
        norm.scale[c] = S(inverse * state.gamma[c]);
        norm.shift[c] = S(state.beta[c] - all.mean * inverse * state.gamma[c]);
        state.running_mean[c] += S(state.momentum * (all.mean - state.running_mean[c]));
        state.running_var[c] += S(state.momentum * (all.squares / (all.count - 1) - state.running_var[c]));
    }
}

// Sums over rows of a gradient g, and of g times the normalised input.
class GradientSums {
public:
    explicit GradientSums(int64_t width) : width_(width), sums_(2 * width, 0.0) {}
    template <typename S>
    void add(int64_t c, Vec<S> of_plain, Vec<S> of_normal) {
        add_to<S>(&sums_[c], of_plain);
        add_to<S>(&sums_[width_ + c], of_normal);
    }
    double* data() { return sums_.data(); }
    double plain(int64_t c) const { return sums_[c]; }
    double normal(int64_t c) const { return sums_[width_ + c]; }

private:
    int64_t width_;
    std::vector<double> sums_;
};

// The gradient of a norm's input x: slope * g + along * x + offset, a line each. Also those of gamma and beta.
template <typename S>
struct Slope {
    S *slope, *along, *offset;
    Slope(S* lines, int64_t width) : slope(lines), along(lines + width), offset(lines + 2 * width) {}
    void set(int64_t c, const Norm<const S>& norm, double plain, double normal, double count) const {
        slope[c] = norm.scale[c];
        along[c] = S(-double(norm.scale[c]) * norm.inverse[c] * normal / count);
        offset[c] = S(double(norm.scale[c]) * (double(norm.mean[c]) * norm.inverse[c] * normal - plain) / count);
    }
};

// to = slope * g + along * x + offset: back through the norm of x, rows of one width.
template <typename S>
void through_norm(int64_t rows, int64_t width, const S* g, const S* x, const S* slope, const S* along,
                  const S* offset, S* to) {
    for (int64_t r = 0; r < rows; ++r, g += width, x += width, to += width)
        for (int64_t c = 0; c < width; c += LANES)
            store(to + c, load(slope + c) * load(g + c) + load(along + c) * load(x + c) + load(offset + c));
}

// to = slope * (dz where z is positive) + along * y + offset: back through z = relu(norm(y)), rows of one width.
template <typename S>
void through_relu_and_norm(int64_t rows, int64_t width, const S* dz, const S* z, const S* y, Slope<const S> slope,
                           S* to) {
    for (int64_t r = 0; r < rows; ++r, dz += width, z += width, y += width, to += width)
        for (int64_t c = 0; c < width; c += LANES)
            store(to + c, load(slope.slope + c) * where_positive<S>(load(z + c), load(dz + c)) +
                              load(slope.along + c) * load(y + c) + load(slope.offset + c));
}

template <typename S>
void finish(const std::vector<GradientSums>& parts, const Norm<const S>& norm, int64_t real_width, int64_t width,
            double count, const Slope<S>& slope, S* of_gamma, S* of_beta) {
    for (int64_t c = 0; c < width; ++c) {
        double plain = 0, normal = 0;
        for (const auto& part : parts) plain += part.plain(c), normal += part.normal(c);
        slope.set(c, norm, plain, normal, count);
        if (c >= real_width) continue;
        of_gamma[c] = S(normal);
        of_beta[c] = S(plain);
    }
}

}  // namespace x3d
